#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Function f(Shape normalized = {}) {
  return [=](const Tensors& in) {
    return rms_norm(in[0], in.size() > 1 ? in[1] : Tensor(), {.normalized_shape = normalized});
  };
}

}  // namespace

TEST_CASE("rms_norm: a known row") {
  for (const Device device : devices()) {
    const Tensor x = leaf(tensor<float>({3, 4}, {1, 2}, device));
    const Tensor w = leaf(tensor<float>({2, -1}, {2}, device));
    const Tensor y = rms_norm(x, w, {.eps = 0});  // r = √(2 / 25)
    check_close(y, tensor<double>({1.69705627, -1.13137085}, {1, 2}), pointwise, "y");
    y.backward(ones({1, 2}, {.device = device}));
    check_close(x.grad(), tensor<double>({.49780317, -.37335238}, {1, 2}), pointwise_gradient,
                "dx");
    check_close(w.grad(), tensor<double>({.84852814, 1.13137085}, {2}), pointwise_gradient, "dw");
  }
}

TEST_CASE("rms_norm: zero and tiny rows are scaled by 1 / √eps, huge ones never NaN") {
  for (const Device device : devices()) {
    for (const float size : {0.0f, 1e-25f}) {
      const Tensor x = leaf(full({1, 3}, size, {.device = device}));
      const Tensor y = rms_norm(x);
      check_close(y, full({1, 3}, 1e3 * size, {.dtype = Dtype::f64}), {0, 1e-6}, "y");
      y.backward(tensor<float>({1, 2, 3}, {1, 3}, device));
      check_close(x.grad(), tensor<double>({1e3, 2e3, 3e3}, {1, 3}), {0, 1e-6}, "dx");
    }
    const Tensor x = leaf(full({1, 3}, 1e20, {.device = device}));
    const Tensor y = rms_norm(x);
    for (const double v : values(y)) CHECK((std::abs(v - 1) <= 1e-6 || v == 0));
    y.backward(tensor<float>({1, 2, 3}, {1, 3}, device));
    for (const double v : values(x.grad())) CHECK(std::abs(v) <= 1e-6);
  }
}

TEST_CASE("rms_norm: NaN stays in its row") {
  for (const Device device : devices())
    for (const std::int64_t cols : {4, 35, 5000}) {
      Tensor x = randn({3, cols}, 1, Dtype::f32);
      x.data<float>()[cols + cols / 2] = NAN;
      const std::vector<double> y = values(rms_norm(x.to(device)));
      for (std::int64_t i = 0; i < 3 * cols; ++i)
        CHECK(std::isnan(y[size_t(i)]) == (i / cols == 1));
    }
}

TEST_CASE("rms_norm: gradients agree with finite differences") {
  check_gradients(f(), {randn({5, 7}, 2)});
  check_gradients(f(), {randn({3, 2, 6}, 3), randn({6}, 4)});
  check_gradients(f({2, 6}), {randn({3, 2, 6}, 5), randn({2, 6}, 6)});
  check_gradients(f(), {randn({70, 3}, 7), randn({3}, 8)});
}

TEST_CASE("rms_norm: twins agree at ragged sizes, from short rows to long ones") {
  const TwinTolerance tolerance{row, row_gradient};
  for (const std::int64_t cols : {3, 31, 32, 33, 128, 385, 768, 1000, 2048, 4100, 9001, 20000})
    check_twins(f(), {randn({5, cols}, 9), randn({cols}, 10)}, tolerance);
  check_twins(f(), {randn({3, 300000}, 19), randn({300000}, 20)}, tolerance);
  check_twins(f(), {randn({3000, 8}, 11), randn({8}, 12)}, tolerance);
  check_twins(f(), {randn({3000, 5}, 13)}, tolerance);
  for (const std::int64_t cols : {264, 768, 777, 2048, 4096, 12288, 20001})
    check_twins(f(), {randn({201, cols}, 21), randn({cols}, 22)}, tolerance);
  check_twins(f({3, 4}), {randn({7, 3, 4}, 14), randn({3, 4}, 15)}, tolerance);
  for (const Shape& shape : {Shape{0, 4}, Shape{4, 0}, Shape{0}})
    check_twins(f(), {randn(shape, 16), randn({shape[shape.rank() - 1]}, 17)}, {exact, exact});
}

TEST_CASE("rms_norm: the mean square of a row becomes 1, and its sign stays") {
  for (const Device device : devices()) {
    const Tensor x = randn({20, 50}, 18, Dtype::f64, device, 40);
    const std::vector<double> in = values(x);
    const std::vector<double> y = values(rms_norm(x, {}, {.eps = 0}));
    for (size_t i = 0; i < 20; ++i) {
      double square = 0;
      for (size_t c = 0; c < 50; ++c) {
        square += y[i * 50 + c] * y[i * 50 + c] / 50;
        CHECK(std::signbit(y[i * 50 + c]) == std::signbit(in[i * 50 + c]));
      }
      CHECK(std::abs(square - 1) <= 1e-14);
    }
  }
}

TEST_CASE("rms_norm: what does not fit is refused") {
  const Tensor x = zeros({2, 3});
  check_error(Kind::shape, {"rms_norm: normalized_shape", "got [2]"},
              [&] { rms_norm(x, {}, {.normalized_shape = {2}}); });
  check_error(Kind::shape, {"rms_norm: weight has the wrong shape; got [2]; expected [3]"},
              [&] { rms_norm(x, zeros({2})); });
  check_error(Kind::dtype, {"rms_norm: x must be floating; got i32"},
              [] { rms_norm(zeros({2}, {.dtype = Dtype::i32})); });
  for (const double eps : {-1.0, double(NAN)})
    check_error(Kind::value, {"rms_norm: eps out of range"},
                [&] { rms_norm(x, {}, {.eps = eps}); });
}
