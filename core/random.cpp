#include "ebb/core/random.h"

#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "ebb/core/parallel.h"
#include "ebb/core/run.h"

namespace ebb {

Generator& default_generator() {
  thread_local Generator generator;
  return generator;
}

namespace {
thread_local const std::uint64_t* shift_of_streams = nullptr;
}

ShiftedStreams::ShiftedStreams(const std::uint64_t* shift) { shift_of_streams = shift; }
ShiftedStreams::~ShiftedStreams() { shift_of_streams = nullptr; }

Stream Generator::next() {
  require(!shift_of_streams || this == &default_generator(), Kind::state, "random",
          "a generator was drawn from while a step is captured", "one of the caller's own",
          "the default generator, which every replay moves on");
  return {seed_, drawn_++, shift_of_streams};
}

void require_on_host(std::string_view op, const Stream& stream) {
  require(!stream.shift, Kind::state, op, "numbers drawn on the CPU while a step is captured",
          "the same ones at every replay", "a draw on the GPU, or outside the step");
}

void manual_seed(std::uint64_t seed) { default_generator() = Generator(seed); }

namespace {

void check_range(std::string_view op, Dtype dtype, double a, double b, bool ordered) {
  require(is_floating(dtype), Kind::dtype, op, "random numbers are floating", dtype,
          "f32, f64 or bf16");
  const double largest = dtype == Dtype::f64 ? std::numeric_limits<double>::max()
                                             : double{std::numeric_limits<float>::max()};
  const bool finite =
      std::abs(a) <= largest && std::abs(b) <= largest && std::abs(b - a) <= largest;
  require(finite && ordered, Kind::value, op, "bad range", text(a, ", ", b),
          text("finite numbers of ", dtype, " in order"));
}

// Element i is number i % 4 of block i / 4 of the stream.
template <class F>
void for_each_number(const Stream& stream, std::int64_t n, F&& f) {
  require_on_host("uniform", stream);
  parallel_for((n + 3) / 4, 1 << 12, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const Philox random = philox(stream.seed, static_cast<std::uint64_t>(block), stream.index);
      for (int j = 0; j < 4 && 4 * block + j < n; ++j) f(4 * block + j, random.v[j]);
    }
  });
}

}  // namespace

Tensor uniform(const Shape& shape, double low, double high, Generator& generator,
               TensorOptions options) {
  check_range("uniform", options.dtype, low, high, low <= high);
  Tensor y = empty(shape, options);
  run<cpu::uniform, gpu::uniform>(options.device, generator.next(), low, high, y);
  return y;
}

void cpu::uniform(const Stream& stream, double low, double high, Tensor& y) {
  visit<float, double>(y.dtype(), "uniform", [&](auto zero) {
    using T = decltype(zero);
    T* out = y.data<T>();
    const T a = static_cast<T>(low);
    const T width = static_cast<T>(high - low);
    const T below_high = std::nextafter(static_cast<T>(high), a);  // the sum may round up to high
    for_each_number(stream, y.numel(), [&](std::int64_t i, std::uint32_t bits) {
      out[i] = std::min(std::fma(width, static_cast<T>(unit_float(bits)), a), below_high);
    });
  });
}

// Box and Muller: two uniform numbers make two normal ones.
Tensor normal(const Shape& shape, double mean, double deviation, Generator& generator,
              TensorOptions options) {
  check_range("normal", options.dtype, mean, deviation, deviation >= 0);
  Tensor y = empty(shape, {Dtype::f64});
  const Stream stream = generator.next();
  require_on_host("normal", stream);
  double* out = y.data<double>();
  const std::int64_t n = y.numel();
  parallel_for((n + 1) / 2, 1 << 12, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t pair = begin; pair < end; ++pair) {
      const Philox r = philox(stream.seed, static_cast<std::uint64_t>(pair), stream.index);
      const double u = ((std::uint64_t{r.v[0]} << 20 | r.v[1] >> 12) + 1) * 0x1p-52;  // (0, 1]
      const double angle = 2 * std::numbers::pi * (r.v[2] * 0x1p-32);
      const double radius = deviation * std::sqrt(-2 * std::log(u));
      out[2 * pair] = mean + radius * std::cos(angle);
      if (2 * pair + 1 < n) out[2 * pair + 1] = mean + radius * std::sin(angle);
    }
  });
  return y.to(options.dtype).to(options.device);
}

// Fisher and Yates. The draw is (32 random bits · range) / 2³²: biased by at most n / 2³².
Tensor permutation(std::int64_t n, Generator& generator, Device device) {
  require(0 <= n && n <= INT32_MAX, Kind::value, "permutation", "bad size", n, "0 to 2^31 - 1");
  std::vector<std::int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  const Stream stream = generator.next();
  require_on_host("permutation", stream);
  for (std::int64_t i = n - 1; i > 0; --i) {
    const std::uint32_t bits =
        philox(stream.seed, static_cast<std::uint64_t>(i), stream.index).v[0];
    const auto j =
        static_cast<std::int64_t>(std::uint64_t{bits} * static_cast<std::uint64_t>(i + 1) >> 32);
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(j)]);
  }
  return tensor(order, {n}, device);
}

}  // namespace ebb
