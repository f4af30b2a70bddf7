#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

constexpr double inf = INFINITY;

Tensor p(const Tensors& in) { return softmax(in[0]); }
Tensor log_p(const Tensors& in) { return log_softmax(in[0]); }

// Value and gradient for the cotangent 1, 2, 3 of one row of three.
void check_row(const Function& f, const std::vector<double>& x, const std::vector<double>& y,
               const std::vector<double>& dx) {
  for (const Device device : devices()) {
    Tensor in = leaf(tensor<double>(x, {1, 3}).to(Dtype::f32).to(device));
    const Tensor out = f({in});
    check_close(out, tensor<double>(y, {1, 3}), pointwise, "y");
    if (dx.empty()) continue;
    out.backward(tensor<float>({1, 2, 3}, {1, 3}, device));
    check_close(in.grad(), tensor<double>(dx, {1, 3}), pointwise_gradient, "dx");
  }
}

}  // namespace

TEST_CASE("softmax: large, equal and infinite inputs") {
  const double third = 1.0 / 3;
  check_row(p, {0, 0, 0}, {third, third, third}, {-third, 0, third});
  check_row(p, {1e4, 1e4, 1e4}, {third, third, third}, {-third, 0, third});
  check_row(p, {1e4, 0, -1e4}, {1, 0, 0}, {0, 0, 0});
  check_row(p, {88, 89, 90}, {.09003057, .24472847, .66524096}, {});
  check_row(p, {3.4e38, 3.4e38, -3.4e38}, {.5, .5, 0}, {-.25, .25, 0});
  check_row(p, {-1e38, 1e38, 0}, {0, 1, 0}, {0, 0, 0});
  check_row(p, {-inf, 0, 0}, {0, .5, .5}, {0, -.25, .25});
  check_row(p, {-inf, -inf, -inf}, {NAN, NAN, NAN}, {NAN, NAN, NAN});
  check_row(p, {inf, 0, 0}, {NAN, NAN, NAN}, {NAN, NAN, NAN});
}

TEST_CASE("log_softmax: large, equal and infinite inputs") {
  const double log3 = std::log(3.0);
  check_row(log_p, {1e4, 1e4, 1e4}, {-log3, -log3, -log3}, {-1, 0, 1});
  check_row(log_p, {1e4, 0, -1e4}, {0, -1e4, -2e4}, {-5, 2, 3});
  check_row(log_p, {88, 89, 90}, {-2.4076059, -1.4076059, -.40760596}, {});
  check_row(log_p, {3.4e38, 3.4e38, -3.4e38}, {-std::log(2), -std::log(2), -inf}, {-2, -1, 3});
  check_row(log_p, {-1e38, 1e38, 0}, {-2e38, 0, -1e38}, {1, -4, 3});
  check_row(log_p, {-inf, 0, 0}, {-inf, -std::log(2), -std::log(2)}, {1, -1, 0});
  check_row(log_p, {-inf, -inf, -inf}, {NAN, NAN, NAN}, {NAN, NAN, NAN});
  check_row(log_p, {inf, 0, 0}, {NAN, NAN, NAN}, {NAN, NAN, NAN});
}

TEST_CASE("softmax: a NaN stays in its row, whatever the row's width") {
  for (const Device device : devices())
    for (const std::int64_t cols : {3, 40, 300, 5000}) {
      Tensor x = randn({3, cols}, 1, Dtype::f32);
      x.data<float>()[cols + cols / 2] = NAN;
      for (const auto f : {p, log_p}) {
        const std::vector<double> y = values(f({x.to(device)}));
        for (std::int64_t i = 0; i < 3 * cols; ++i)
          CHECK(std::isnan(y[size_t(i)]) == (i / cols == 1));
      }
    }
}

TEST_CASE("softmax: gradients agree with finite differences, along any dimension") {
  for (const std::int64_t dim : {-1, 0, 1}) {
    check_gradients([=](const Tensors& in) { return softmax(in[0], {dim}); },
                    {randn({3, 4, 5}, 2)});
    check_gradients([=](const Tensors& in) { return log_softmax(in[0], {dim}); },
                    {randn({3, 4, 5}, 3)});
  }
}

TEST_CASE("softmax: twins agree at ragged, 1 and 0 sizes") {
  for (const auto f : {p, log_p}) {
    for (const std::int64_t cols : {1, 3, 31, 32, 33, 127, 512, 1025, 9001})
      check_twins(f, {randn({3, cols}, 4, Dtype::f64, cpu_device, 3)}, {row, row_gradient});
    check_twins(f, {randn({70000, 2}, 5)}, {row, row_gradient});
    for (const Shape& shape : {Shape{0, 3}, Shape{3, 0}, Shape{0}})
      CHECK(f({zeros(shape)}).shape() == shape);
  }
}

TEST_CASE("softmax: twins agree on rows that begin anywhere in 16 bytes") {
  for (const std::int64_t cols :
       {1, 5, 61, 257, 514, 781, 1025, 2047, 4099, 8191, 10001, 20001, 30001, 50001, 65535})
    for (const auto f : {p, log_p})
      check_twins(f, {randn({9, cols}, 14, Dtype::f64, cpu_device, 3)}, {row, row_gradient});
}

TEST_CASE("softmax: twins agree on rows wider than the registers of a block") {
  for (const std::int64_t cols : {33000, 270001})
    for (const auto f : {p, log_p})
      check_twins(f, {randn({1, cols}, 6, Dtype::f64, cpu_device, 3)}, {row, row_gradient});
}

TEST_CASE("softmax: twins agree on either side of what each number of threads keeps of a row") {
  for (const std::int64_t cols :
       {32,   36,   128,  132,  256,  260,   512,   516,   1024,  1028,  2048,
        2052, 4096, 4100, 8192, 8196, 16384, 16388, 32768, 32772, 65536, 65540})
    for (const auto f : {p, log_p})
      check_twins(f, {randn({3, cols}, 10, Dtype::f64, cpu_device, 3)}, {row, row_gradient});
}

// 6 and 14 chunks of 16 KB in each of 16 blocks are 393,216 and 917,504 columns of f32.
TEST_CASE("softmax: twins agree on long rows that blocks share, whatever their number") {
  for (const Shape& shape : {Shape{3, 65537}, Shape{2, 131072}, Shape{2, 131076}, Shape{2, 262147},
                             Shape{2, 393216}, Shape{2, 393220}, Shape{1, 917501}, Shape{1, 917504},
                             Shape{1, 917508}, Shape{37, 70001}, Shape{40, 66000}})
    check_twins(p, {randn(shape, 15, Dtype::f64, cpu_device, 3)}, {row, row_gradient});
  check_twins(log_p, {randn({20, 100003}, 16, Dtype::f64, cpu_device, 3)}, {row, row_gradient});
}

TEST_CASE("softmax: twins agree on more rows than a GPU holds at a time") {
  for (const Shape& shape : {Shape{9000, 132}, Shape{1500, 2052}, Shape{300, 8196},
                             Shape{150, 20000}, Shape{140, 32772}})
    check_twins(p, {randn(shape, 11, Dtype::f64, cpu_device, 3)}, {row, row_gradient});
}

TEST_CASE("softmax: bf16 rows of any width are rounded once, a gradient from what was") {
  for (const std::int64_t cols :
       {3, 64, 781, 1000, 2049, 4096, 9001, 20000, 40000, 50257, 50304, 100003}) {
    const Tensor x = randn({9, cols}, 12, Dtype::bf16, cpu_device, 3);
    const Tensor dy = randn({9, cols}, 13, Dtype::bf16);
    for (const Device device : devices()) {
      const Tensor in = leaf(x.to(device));
      check_close(log_softmax(in.detach()), log_softmax(x.to(Dtype::f64)), {1e-30, 0x1p-8},
                  "log y");
      const Tensor y = softmax(in);
      check_close(y, softmax(x.to(Dtype::f64)), {1e-30, 0x1p-8}, "y");
      y.backward(dy.to(device));
      const Tensor own = y.detach().to(cpu_device).to(Dtype::f64);
      const Tensor wide_dy = dy.to(Dtype::f64);
      const Tensor dot = sum(own * wide_dy, {.dim = {1}, .keepdim = true});
      check_close(in.grad(), own * (wide_dy - dot), {1e-5, 0x1p-8}, "dx");
    }
  }
}

TEST_CASE("softmax: a share below the smallest normal number is not lost") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor x = tensor<float>({0, -90}, {1, 2}).to(dtype).to(device);
      CHECK(std::abs(values(softmax(x))[1] - std::exp(-90)) <= 4.6e-41);  // half a bf16 step
    }
}

TEST_CASE("softmax: twins agree along a dimension that is not the last") {
  for (const Shape& shape : {Shape{2, 7, 3}, Shape{1, 300, 1}, Shape{3, 10, 257}, Shape{2, 1, 4},
                             Shape{1, 30001, 5}, Shape{2, 9000, 33}}) {
    check_twins([](const Tensors& in) { return softmax(in[0], {1}); }, {randn(shape, 7)},
                {row, row_gradient});
    check_twins([](const Tensors& in) { return log_softmax(in[0], {1}); }, {randn(shape, 8)},
                {row, row_gradient});
  }
}

TEST_CASE("softmax: rows sum to 1, and log_softmax is its logarithm") {
  for (const Device device : devices()) {
    const Tensor x = randn({50, 77}, 9, Dtype::f64, device, 4);
    for (const double total : values(sum(softmax(x), {.dim = {1}})))
      CHECK(std::abs(total - 1) <= 1e-14);
    const auto y = values(softmax(x));
    const auto log_y = values(log_softmax(x));
    for (size_t i = 0; i < y.size(); ++i) CHECK(std::abs(std::exp(log_y[i]) - y[i]) <= 1e-14);
  }
}

TEST_CASE("softmax: a dimension out of range and integers are refused") {
  check_error(Kind::index, {"softmax: dimension out of range; got 2"}, [] {
    softmax(zeros({2, 3}), {2});
  });
  check_error(Kind::dtype, {"log_softmax: x must be floating; got i32"},
              [] { log_softmax(zeros({2}, {.dtype = Dtype::i32})); });
}
