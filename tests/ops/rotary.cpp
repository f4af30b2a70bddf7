#include "ebb/ops/attention/rotary.h"

#include <complex>

#include "ebb/ops/shape/slice.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

using Complex = std::complex<double>;

// The definition, a pair at a time: xᵢ + i·xᵢ₊d/₂ times e^(iθ).
std::vector<double> turned(const Tensor& x, const RotaryOptions& options) {
  std::vector<double> v = values(x);
  const std::int64_t d = x.size(-1), heads = x.size(-2), length = x.size(1);
  const std::int64_t parts = x.rank() == 5 ? 3 : 1;
  for (size_t at = 0; at < v.size(); at += static_cast<size_t>(d)) {
    const auto row = static_cast<std::int64_t>(at) / d / heads;
    if (row % parts == 2) continue;
    const auto position = static_cast<double>(options.first + row / parts % length);
    for (std::int64_t i = 0; i < d / 2; ++i) {
      double& low = v[at + static_cast<size_t>(i)];
      double& high = v[at + static_cast<size_t>(i + d / 2)];
      const double angle = position / std::pow(options.base, 2.0 * double(i) / double(d));
      const Complex y = Complex(low, high) * std::polar(1.0, angle);
      low = y.real(), high = y.imag();
    }
  }
  return v;
}

}  // namespace

TEST_CASE("rotary: position 0 stays, position 1 turns the first pair by one radian") {
  for (const Device device : devices()) {
    const Tensor x = tensor<double>({1, 0, 1, 0}, {1, 2, 1, 2}, device);
    const auto y = values(rotary(x));
    CHECK(y[0] == 1);
    CHECK(y[1] == 0);
    CHECK(std::abs(y[2] - std::cos(1.0)) <= 1e-15);
    CHECK(std::abs(y[3] - std::sin(1.0)) <= 1e-15);
  }
}

TEST_CASE("rotary: agrees with complex multiplication, packed or not, wherever it starts") {
  for (const Device device : devices())
    for (const Shape& shape : {Shape{2, 5, 3, 8}, Shape{1, 7, 3, 2, 6}, Shape{3, 1, 1, 2}})
      for (const RotaryOptions options : {RotaryOptions{}, RotaryOptions{1000, 500}}) {
        const Tensor x = randn(shape, 1, Dtype::f64, device);
        const auto y = values(rotary(x, options));
        const auto expected = turned(x, options);
        double worst = 0;
        for (size_t i = 0; i < y.size(); ++i) worst = worse(worst, std::abs(y[i] - expected[i]));
        CHECK(worst <= 1e-12);  // an angle of 1000 has an error of 1e-13
      }
}

// So a token by itself, at its place in a cache, is what it is in its sequence.
TEST_CASE("rotary: the bits of a position do not depend on where x begins") {
  for (const Device device : devices()) {
    const Tensor x = randn({1, 200, 2, 8}, 6, Dtype::f64, device);
    const Tensor whole = rotary(x, {.first = 5});
    for (const std::int64_t place : {1, 58, 59, 60, 130, 199})
      CHECK(values(rotary(slice(x, 1, place), {.first = 5 + place})) ==
            values(slice(whole, 1, place)));
  }
}

TEST_CASE("rotary: products of queries and keys depend on their distance alone") {
  const Tensor q = randn({1, 1, 1, 16}, 2);
  const Tensor k = randn({1, 1, 1, 16}, 3);
  const auto product = [&](std::int64_t query, std::int64_t key) {
    const auto a = values(rotary(q, {.first = query})), b = values(rotary(k, {.first = key}));
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  CHECK(std::abs(product(7, 3) - product(104, 100)) <= 1e-12);
  CHECK(std::abs(product(7, 3) - product(7, 4)) >= 1e-3);
}

TEST_CASE("rotary: values keep their bits") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor x = randn({2, 3, 3, 2, 4}, 4, dtype, device);
      const auto before = values(x), after = values(rotary(x));
      for (size_t i = 0; i < before.size(); ++i)
        if (i / 8 % 3 == 2) CHECK(after[i] == before[i]);
    }
}

TEST_CASE("rotary: gradients agree with finite differences") {
  check_gradients([](const Tensors& in) { return rotary(in[0], {.first = 3}); },
                  {randn({2, 3, 2, 4}, 5)});
  check_gradients([](const Tensors& in) { return rotary(in[0]); }, {randn({2, 3, 3, 1, 6}, 6)});
}

// |y| <= |x| √2, and cos and sin are rounded once: a few roundings of the pair's size.
TEST_CASE("rotary: twins agree at ragged and empty sizes") {
  for (const Shape& shape : {Shape{2, 65, 3, 64}, Shape{1, 3, 3, 5, 2}, Shape{3, 130, 3, 2, 34},
                             Shape{0, 3, 2, 4}, Shape{2, 0, 3, 2, 4}, Shape{2, 3, 2, 0}})
    check_twins([](const Tensors& in) { return rotary(in[0], {.first = 1000}); },
                {randn(shape, 7, Dtype::f32)}, {pointwise, pointwise_gradient});
}

TEST_CASE("rotary: misuse is refused") {
  const auto shaped = [](const Shape& shape, RotaryOptions options = {}) {
    return [=] { rotary(zeros(shape), options); };
  };
  check_error(Kind::shape, {"rotary: x has the wrong shape", "[2,3]"}, shaped({2, 3}));
  check_error(Kind::shape, {"rotary: x has the wrong shape"}, shaped({2, 3, 2, 2, 4}));
  check_error(Kind::shape, {"rotary: head_dim must be even", "got 3"}, shaped({1, 2, 2, 3}));
  check_error(Kind::value, {"rotary: bad first position", "-1"},
              shaped({1, 2, 2, 4}, {.first = -1}));
  check_error(Kind::value, {"rotary: bad first position", "9223372036854775807"}, [] {
    rotary(zeros({1, 2, 1, 2}), {.first = INT64_MAX});
  });
  for (const double base : {1.0, -2.0, std::nan(""), double(INFINITY)})
    check_error(Kind::value, {"rotary: bad base"}, shaped({1, 2, 2, 4}, {.base = base}));
  check_error(Kind::dtype, {"rotary: x must be floating"}, [] {
    rotary(zeros({1, 2, 2, 4}, {.dtype = Dtype::i32}));
  });
}
