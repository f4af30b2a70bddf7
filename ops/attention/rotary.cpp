#include "ebb/ops/attention/rotary.h"

#include <algorithm>
#include <array>
#include <vector>

#include "ebb/ops/map.h"

namespace ebb {
namespace {

constexpr const char* op = "rotary";

RotaryLayout layout_of(const Tensor& x, const RotaryOptions& options) {
  require_floating(op, "x", x);
  const bool packed = x.rank() == 5 && x.size(2) == 3;
  require(x.rank() == 4 || packed, Kind::shape, op, "x has the wrong shape", x.shape(),
          "[batch,length,heads,head_dim] or [batch,length,3,heads,head_dim]");
  require(x.size(-1) % 2 == 0, Kind::shape, op, "head_dim must be even", x.size(-1), x.shape());
  constexpr std::int64_t most = std::int64_t{1} << 53;  // an f64 tells all of them apart
  require(0 <= options.first && options.first <= most, Kind::value, op, "bad first position",
          options.first, text("0 to ", most));
  require(options.base > 1 && std::isfinite(options.base), Kind::value, op, "bad base",
          options.base, "a number above 1");
  const std::int64_t heads = x.size(-2);
  return {x.size(0), x.size(1), packed ? 2 * heads : heads, packed ? heads : 0, x.size(-1)};
}

}  // namespace

Tensor rotary(const Tensor& x, const RotaryOptions& options) {
  const RotaryLayout layout = layout_of(x, options);
  Tensor y = empty_like(x);
  run_as_is<cpu::rotary, gpu::rotary>(x.device(), x, layout, options, 1, y);
  return record(op, y, {x}, [layout, options](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::rotary, gpu::rotary>(dy.device(), dy, layout, options, -1, dx);
    return {dx};
  });
}

namespace {

// cos θ and sin θ of each position and pair, [length][pairs].
template <class T>
struct Angles {
  std::vector<T> cosine, sine;

  Angles(const RotaryLayout& s, const RotaryOptions& options, int turn) {
    const std::int64_t pairs = s.width / 2;
    std::vector<double> frequency;
    for (std::int64_t i = 0; i < pairs; ++i)
      frequency.push_back(
          std::pow(options.base, -2.0 * static_cast<double>(i) / static_cast<double>(s.width)));
    cosine.resize(static_cast<size_t>(s.length * pairs));
    sine.resize(cosine.size());
    // cos (a + b) and sin (a + b), where a is of the last multiple of 64 before a position, and b
    // of what is left: so they depend on the position alone, not on where x begins.
    constexpr std::int64_t block = 64;
    const std::int64_t before = options.first % block;  // positions of the first block, not x's
    const std::int64_t blocks = (before + s.length + block - 1) / block;
    using Row = cpu::Array<double>;
    const Eigen::Map<const Row> theta(frequency.data(), pairs);
    std::array<Row, block> near_cosine, near_sine;
    for (std::int64_t k = 0; k < block; ++k) {
      if ((k - before + block) % block >= s.length) continue;
      near_cosine[static_cast<size_t>(k)] = (static_cast<double>(k) * theta).cos();
      near_sine[static_cast<size_t>(k)] = (static_cast<double>(k) * theta).sin();
    }
    parallel_for(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t place = begin * block - before; begin < end; ++begin, place += block) {
        const Row start = static_cast<double>(options.first + place) * theta;
        const Row c = start.cos(), d = start.sin();
        for (std::int64_t k = std::max<std::int64_t>(0, -place);
             k < std::min(block, s.length - place); ++k) {
          const Row &e = near_cosine[static_cast<size_t>(k)],
                    &f = near_sine[static_cast<size_t>(k)];
          const std::int64_t at = (place + k) * pairs;
          cpu::array(cosine.data() + at, pairs) = (c * e - d * f).template cast<T>();
          cpu::array(sine.data() + at, pairs) = (turn * (d * e + c * f)).template cast<T>();
        }
      }
    });
  }
};

}  // namespace

void cpu::rotary(const Tensor& x, const RotaryLayout& s, const RotaryOptions& options, int turn,
                 Tensor& y) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const Angles<Wide<T>> angles(s, options, turn);
    const std::int64_t pairs = s.width / 2, row = (s.turned + s.kept) * s.width;
    const auto turn_row = [&](std::int64_t place, const T* from, T* to) {
      const auto *c = angles.cosine.data() + place * pairs, *d = angles.sine.data() + place * pairs;
      const auto low = [](auto x, auto y, auto c, auto d) { return x * c - y * d; };
      const auto high = [](auto x, auto y, auto c, auto d) { return y * c + x * d; };
      for (std::int64_t h = 0; h < s.turned; ++h, from += s.width, to += s.width) {
        map_row(to, pairs, low, from, from + pairs, c, d);
        map_row(to + pairs, pairs, high, from, from + pairs, c, d);
      }
      std::copy_n(from, s.kept * s.width, to);
    };
    parallel_for(s.batch * s.length, 1 + 32768 / (row + 1),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t r = begin; r < end; ++r)
                     turn_row(r % s.length, x.data<T>() + r * row, y.data<T>() + r * row);
                 });
  });
}

}  // namespace ebb
