#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Function f(std::int64_t dim) {
  return [=](const Tensors& in) { return l2_normalize(in[0], {.dim = dim}); };
}

// y, and dx for dy = 1, 2, of a row of two.
void check_row(const std::vector<float>& x, const std::vector<double>& y,
               const std::vector<double>& dx) {
  for (const Device device : devices())
    for (const std::int64_t dim : {0, 1}) {
      const Shape shape = dim == 0 ? Shape{2, 1} : Shape{1, 2};
      const Tensor in = leaf(tensor<float>(x, shape, device));
      const Tensor out = l2_normalize(in, {.dim = dim});
      check_close(out, tensor<double>(y, shape), {0, 1e-6}, "y");
      out.backward(tensor<float>({1, 2}, shape, device));
      check_close(in.grad(), tensor<double>(dx, shape), {1e-7, 1e-6}, "dx");
    }
}

}  // namespace

TEST_CASE("l2_normalize: known rows; below eps x is only scaled") {
  const double half = std::sqrt(.5);
  check_row({3, 4}, {.6, .8}, {-.064, .048});
  check_row({0, 0}, {0, 0}, {1e12, 2e12});
  check_row({1e-13f, 0}, {.1, 0}, {1e12, 2e12});
  check_row({1e20f, 1e20f}, {half, half}, {0, 0});
  check_row({NAN, 1}, {NAN, NAN}, {NAN, NAN});
}

TEST_CASE("l2_normalize: a long row between two others, one of them 0 and one NaN") {
  for (const Device device : devices())
    for (const std::int64_t cols : {5, 300, 5000, 40000}) {
      Tensor x = zeros({3, cols});
      for (std::int64_t i = 0; i < cols; ++i) x.data<float>()[cols + i] = 2;
      x.data<float>()[2 * cols] = NAN;
      const std::vector<double> y = values(l2_normalize(x.to(device)));
      for (std::int64_t i = 0; i < cols; i += 7) {
        CHECK(y[size_t(i)] == 0);
        CHECK(std::abs(y[size_t(cols + i)] * std::sqrt(double(cols)) - 1) <= 1e-6);
        CHECK(std::isnan(y[size_t(2 * cols + i)]));
      }
    }
}

// On a GPU blocks share such columns: those of 0 and NaN take no other steps than the rest.
TEST_CASE("l2_normalize: long columns among others, one of them 0 and one NaN") {
  Tensor x = randn({5000, 64}, 9, Dtype::f32);
  for (std::int64_t i = 0; i < 5000; ++i) x.data<float>()[64 * i + 3] = 0;
  x.data<float>()[64 * 7 + 40] = NAN;
  const Tensor y = l2_normalize(x.to(Dtype::f64), {.dim = 0});
  for (const Device device : devices())
    check_close(l2_normalize(x.to(device), {.dim = 0}), y, row, "y");
}

TEST_CASE("l2_normalize: squares that f32 cannot hold are no loss") {
  for (const float scale : {1e-30f, 1e-19f, 1e18f, 1e30f})
    for (const std::int64_t cols : {4, 300, 5000, 40000}) {
      const Tensor x = randn({2, cols}, 7, Dtype::f64, cpu_device, scale);
      check_twins(f(1), {x}, {row, row_gradient});
    }
}

TEST_CASE("l2_normalize: gradients agree with finite differences, along any dimension") {
  for (const std::int64_t dim : {-1, 0, 1}) check_gradients(f(dim), {randn({3, 4, 5}, 1)});
  check_gradients([](const Tensors& in) { return l2_normalize(in[0], {.dim = 0, .eps = 100}); },
                  {randn({6}, 2)});
}

TEST_CASE("l2_normalize: twins agree at ragged, 1 and 0 sizes") {
  const TwinTolerance tolerance{row, row_gradient};
  for (const std::int64_t cols : {2, 3, 31, 32, 33, 127, 512, 1025, 9001, 33001, 140000})
    check_twins(f(1), {randn({3, cols}, 3)}, tolerance);
  for (const Shape& shape : {Shape{2, 7, 3}, Shape{1, 300, 1}, Shape{3, 10, 257}, Shape{700, 2, 2},
                             Shape{3, 4096, 3}, Shape{2, 9000, 33}})
    check_twins(f(1), {randn(shape, 4)}, tolerance);
  for (const Shape& shape : {Shape{0, 3}, Shape{3, 0}, Shape{2, 0, 3}})
    check_twins(f(1), {randn(shape, 5)}, {exact, exact});
}

TEST_CASE("l2_normalize: rows come out with norm 1") {
  for (const Device device : devices()) {
    const Tensor x = randn({30, 40}, 6, Dtype::f64, device, 1e-3);
    for (const std::int64_t dim : {0, 1})
      for (const double norm : values(l2_norm(l2_normalize(x, {.dim = dim}), {.dim = {dim}})))
        CHECK(std::abs(norm - 1) <= 1e-14);
  }
}

TEST_CASE("l2_normalize: an eps of 0 or less and a missing dimension are refused") {
  for (const double eps : {0.0, -1.0, double(NAN)})
    check_error(Kind::value, {"l2_normalize: eps out of range"}, [&] {
      l2_normalize(zeros({2, 3}), {.eps = eps});
    });
  check_error(Kind::index, {"l2_normalize: dimension out of range; got 1"},
              [] { l2_normalize(zeros({3})); });
  check_error(Kind::dtype, {"l2_normalize: x must be floating; got i32"}, [] {
    l2_normalize(zeros({2, 2}, {.dtype = Dtype::i32}));
  });
}
