#include "ebb/ops/elementwise/dropout.h"

#include <algorithm>
#include <bit>

#include "ebb/ops/map.h"

namespace ebb {

Tensor dropout(const Tensor& x, const DropoutOptions& options) {
  require_floating("dropout", "x", x);
  const double p = options.p;
  require(0 <= p && p <= 1, Kind::value, "dropout", "bad probability", p, "0 to 1");
  require(!options.seed || !options.stream, Kind::value, "dropout", "two sources of randomness",
          "a seed and a stream", "one of them");
  if (!options.training || p == 0) return x;
  const Stream stream = options.stream ? *options.stream
                        : options.seed ? Stream{*options.seed, 0}
                                       : default_generator().next();
  const DropThreshold threshold(p);
  Tensor y = empty_like(x);
  run_as_is<cpu::dropout, gpu::dropout>(x.device(), x, stream, threshold, y);
  return record("dropout", y, {x}, [stream, threshold](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::dropout, gpu::dropout>(dy.device(), dy, stream, threshold, dx);
    return {dx};
  });
}

void tune_dropout(bool on) {
  if constexpr (has_cuda) gpu::tune_dropout(on);
}

DropThreshold::DropThreshold(double p) : scale(p < 1 ? 1 / (1 - p) : 0) {
  const auto steps = static_cast<std::uint64_t>(std::llround(p * 0x1p32));
  high = static_cast<std::uint32_t>(steps >> 16);
  low = static_cast<std::uint32_t>(steps & 0xffff);
}

namespace {

constexpr std::int64_t segment_size = 256;
constexpr int lanes = 32;  // blocks of a segment

// Of each element of a segment, the draw that decides; all blocks at once, round by round, so that
// the compiler turns the rounds of philox() into SIMD. Words are the low halves of 64-bit lanes,
// for that is where the product of two goes; what lies in a high half changes no product.
using Draws = std::array<std::int32_t, segment_size>;

Draws draws(const Stream& stream, std::uint64_t segment) {
  constexpr std::uint64_t low = 0xffffffffu;
  std::uint64_t v[4][lanes];
  for (int l = 0; l < lanes; ++l) {
    const std::uint64_t block = segment * lanes + static_cast<std::uint64_t>(l);
    v[0][l] = block;
    v[1][l] = block >> 32;
    v[2][l] = stream.index;
    v[3][l] = stream.index >> 32;
  }
  auto k0 = static_cast<std::uint32_t>(stream.seed);
  auto k1 = static_cast<std::uint32_t>(stream.seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
    for (int l = 0; l < lanes; ++l) {
      const std::uint64_t p0 = (v[0][l] & low) * 0xD2511F53u;
      const std::uint64_t p1 = (v[2][l] & low) * 0xCD9E8D57u;
      v[0][l] = (p1 >> 32) ^ v[1][l] ^ k0;
      v[1][l] = p1;
      v[2][l] = (p0 >> 32) ^ v[3][l] ^ k1;
      v[3][l] = p0;
    }
  // Two words are the draws of four neighbours: low halves first, as this processor stores them.
  std::array<std::uint64_t, segment_size / 4> quads;
  for (int half = 0; half < 2; ++half)
    for (int l = 0; l < lanes; ++l)
      quads[half * lanes + l] = (v[2 * half][l] & low) | v[2 * half + 1][l] << 32;
  static_assert(std::endian::native == std::endian::little);
  const auto halves = std::bit_cast<std::array<std::uint16_t, segment_size>>(quads);
  Draws d;
  for (int i = 0; i < segment_size; ++i) d[i] = halves[i];
  return d;
}

// Draws that tie with `high` and lose the second time become −1: below any threshold.
void break_ties(const Stream& stream, const DropThreshold& threshold, std::uint64_t segment,
                Draws& d) {
  constexpr std::uint64_t of_ties = std::uint64_t{1} << 63;
  for (int i = 0; i < segment_size; ++i) {
    if (d[i] != static_cast<std::int32_t>(threshold.high)) continue;
    const auto l = static_cast<std::uint64_t>(i % 128 / 4);
    const Philox again = philox(stream.seed, (segment * lanes + l) | of_ties, stream.index);
    const std::uint32_t word = again.v[i / 128 * 2 + i % 4 / 2];
    if ((word >> (i % 2 * 16) & 0xffff) < threshold.low) d[i] = -1;
  }
}

// Drawing fills the processor's window, so that it does not reach the next segment's memory by
// itself. Beyond the end nothing happens.
template <class T>
void fetch_ahead(const T* in, T* out) {
  constexpr std::int64_t line = 64 / sizeof(T);
  constexpr std::int64_t ahead = 4 * segment_size;
  for (std::int64_t i = 0; i < segment_size; i += line) {
    __builtin_prefetch(in + ahead + i, 0);
    __builtin_prefetch(out + ahead + i, 1);
  }
}

}  // namespace

void cpu::dropout(const Tensor& x, const Stream& stream, const DropThreshold& threshold,
                  Tensor& y) {
  require_on_host("dropout", stream);
  visit<float, double, bf16>(x.dtype(), "dropout", [&](auto zero) {
    using T = decltype(zero);
    const T* in = x.data<T>();
    T* out = y.data<T>();
    const std::int64_t n = x.numel();
    const auto scale = static_cast<Wide<T>>(threshold.scale);
    const auto high = static_cast<std::int32_t>(threshold.high);
    parallel_for((n + segment_size - 1) / segment_size, 16, [&](auto begin, auto end) {
      for (std::int64_t s = begin; s < end; ++s) {
        fetch_ahead(in + s * segment_size, out + s * segment_size);
        Draws d = draws(stream, static_cast<std::uint64_t>(s));
        if (threshold.low > 0 && std::ranges::count(d, high) > 0)
          break_ties(stream, threshold, static_cast<std::uint64_t>(s), d);
        const std::int64_t at = s * segment_size, count = std::min(segment_size, n - at);
        const auto drop = [&](const Wide<T>* from, Wide<T>* to) {
          for (std::int64_t i = 0; i < count; ++i) {
            const Wide<T> kept = from[i] * scale;
            to[i] = d[i] >= high ? kept : Wide<T>(0);
          }
        };
        if constexpr (std::is_same_v<T, bf16>) {
          float near[segment_size];
          convert(in + at, count, near);
          drop(near, near);
          convert(near, count, out + at);
        } else {
          drop(in + at, out + at);
        }
      }
    });
  });
}

}  // namespace ebb
