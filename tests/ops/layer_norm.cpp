#include "ebb/core/graph.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

constexpr double inf = INFINITY;

Function f(Shape normalized = {}, double eps = 1e-5) {
  return [=](const Tensors& in) {
    const auto get = [&](size_t i) { return i < in.size() ? in[i] : Tensor(); };
    return layer_norm(in[0], get(1), get(2), {normalized, eps});
  };
}

// One row: y, and dx for dy = 1, 2, 3, …
void check_row(const std::vector<float>& x, const std::vector<double>& y,
               const std::vector<double>& dx, Tolerance of_y = pointwise,
               Tolerance of_dx = {.01, 1e-4}, double eps = 1e-5) {
  for (const Device device : devices()) {
    const Shape shape{1, std::int64_t(x.size())};
    std::vector<float> dy;
    for (size_t i = 1; i <= x.size(); ++i) dy.push_back(float(i));
    const Tensor in = leaf(tensor<float>(x, shape, device));
    const Tensor out = layer_norm(in, {}, {}, {.eps = eps});
    check_close(out, tensor<double>(y, shape), of_y, "y");
    out.backward(tensor<float>(dy, shape, device));
    if (!dx.empty()) check_close(in.grad(), tensor<double>(dx, shape), of_dx, "dx");
  }
}

}  // namespace

TEST_CASE("layer_norm: constant and tiny rows are 0, with the gradient that eps gives") {
  const std::vector<double> dx{-474.34165, -158.11388, 158.11388, 474.34165};
  check_row({0, 0, 0, 0}, {0, 0, 0, 0}, dx, exact);
  check_row({5, 5, 5, 5}, {0, 0, 0, 0}, dx, exact);
  check_row({1e-30f, 2e-30f, 3e-30f, 4e-30f},
            {-4.74341649e-28, -1.58113883e-28, 1.58113883e-28, 4.74341649e-28}, dx, {0, 2e-6});
  check_row({3}, {0}, {0}, exact);
}

TEST_CASE("layer_norm: rows far from 0 keep the digits that f32 inputs have") {
  check_row({10000, 10001, 10002, 10003}, {-1.3416354, -.4472118, .4472118, 1.3416354},
            {0, 0, 0, 0}, {2e-6, 0}, {1e-4, 0});
  check_row({16777216, 16777216, 16777218, 16777220},
            {-.90453239, -.90453239, .30151080, 1.5075540}, {}, {2e-6, 0});
  check_row({1e8f, 1e8f, 1e8f, 1e8f + 8}, {-.57735003, -.57735003, -.57735003, 1.7320501}, {},
            {2e-6, 0});
}

TEST_CASE("layer_norm: a variance beyond f32 gives ±1 or 0 and never NaN") {
  for (const Device device : devices())
    for (const float size : {1e20f, 1e30f}) {
      const Tensor x = leaf(tensor<float>({size, -size, size, -size}, {1, 4}, device));
      const Tensor y = layer_norm(x);
      for (const double v : values(y)) CHECK((std::abs(std::abs(v) - 1) <= 1e-6 || v == 0));
      y.backward(tensor<float>({1, 2, 3, 4}, {1, 4}, device));
      for (const double v : values(x.grad())) CHECK(std::abs(v) <= 1e-6);
    }
}

TEST_CASE("layer_norm: without eps a constant row is NaN") {
  check_row({5, 5, 5}, {NAN, NAN, NAN}, {NAN, NAN, NAN}, exact, exact, 0);
}

TEST_CASE("layer_norm: NaN and infinities stay in their row, whatever its width") {
  for (const Device device : devices())
    for (const float bad : {float(NAN), float(inf), -float(inf)})
      for (const std::int64_t cols : {4, 35, 700, 5000}) {
        Tensor x = randn({3, cols}, 1, Dtype::f32);
        x.data<float>()[cols + cols / 2] = bad;
        const Tensor in = leaf(x.to(device).detach().clone());
        const Tensor out = layer_norm(in);
        out.backward(ones({3, cols}, {.device = device}));
        const std::vector<double> y = values(out);
        const std::vector<double> dx = values(in.grad());
        for (std::int64_t i = 0; i < 3 * cols; ++i) {
          CHECK(std::isnan(y[size_t(i)]) == (i / cols == 1));
          CHECK(std::isnan(dx[size_t(i)]) == (i / cols == 1));
        }
      }
}

TEST_CASE("layer_norm: gradients agree with finite differences") {
  check_gradients(f(), {randn({5, 7}, 2)});
  check_gradients(f(), {randn({3, 2, 6}, 3), randn({6}, 4), randn({6}, 5)});
  check_gradients(f({2, 6}), {randn({3, 2, 6}, 6), randn({2, 6}, 7), randn({2, 6}, 8)});
  check_gradients(f(), {randn({4, 5}, 9), Tensor(), randn({5}, 10)});
  check_gradients(f(), {randn({70, 3}, 11), randn({3}, 12), randn({3}, 13)});
}

TEST_CASE("layer_norm: twins agree at ragged sizes, from short rows to long ones") {
  const TwinTolerance tolerance{row, row_gradient};
  for (const std::int64_t cols : {1, 3, 31, 32, 33, 128, 385, 768, 1000, 2048, 4100, 9001})
    check_twins(f(), {randn({5, cols}, 14), randn({cols}, 15), randn({cols}, 16)}, tolerance);
  check_twins(f(), {randn({3000, 8}, 17), randn({8}, 18), randn({8}, 19)}, tolerance);
  check_twins(f(), {randn({3000, 5}, 20)}, tolerance);
  check_twins(f({3, 4}), {randn({7, 3, 4}, 21), randn({3, 4}, 22), Tensor()}, tolerance);
  for (const Shape& shape : {Shape{0, 4}, Shape{4, 0}, Shape{0}})
    check_twins(f(), {randn(shape, 23), randn({shape[shape.rank() - 1]}, 24)}, {exact, exact});
}

TEST_CASE("layer_norm: many rows add up their columns") {
  for (const Shape& shape :
       {Shape{3001, 264}, Shape{601, 768}, Shape{301, 1000}, Shape{301, 2048}, Shape{701, 4096},
        Shape{141, 8192}, Shape{301, 777}, Shape{141, 5001}, Shape{141, 8200}, Shape{141, 9001},
        Shape{70, 16384}, Shape{70, 33000}, Shape{66, 40001}, Shape{66, 66000}}) {
    const Shape cols{shape[1]};
    check_twins(f(), {randn(shape, 40), randn(cols, 41), randn(cols, 42)}, {row, row_gradient});
  }
  check_twins(f(), {randn({501, 768}, 43)}, {row, row_gradient});
  check_twins(f(), {randn({501, 768}, 44), randn({768}, 45)}, {row, row_gradient});
}

TEST_CASE("large: layer_norm adds up its columns by windows of rows") {
  for (const std::int64_t cols : {132, 131})
    check_twins(f(), {randn({70000, cols}, 49), randn({cols}, 50), randn({cols}, 51)},
                {row, row_gradient});
}

TEST_CASE("large: layer_norm adds up more rows than a window has, of any length") {
  check_twins(f(), {randn({65, 271000}, 52), randn({271000}, 53), randn({271000}, 54)},
              {row, row_gradient});
}

TEST_CASE("large: layer_norm of a row that no block has a slice of") {
  constexpr std::int64_t cols = (std::int64_t{1} << 24) + 4;
  check_twins(f(), {randn({1, cols}, 55), randn({cols}, 56), randn({cols}, 57)},
              {row, row_gradient});
}

TEST_CASE("layer_norm: replays of a step give the bytes of an ordinary one") {
  for (const Device device : devices())
    for (const Shape& shape : {Shape{300, 768}, Shape{3, 9000}}) {
      Tensor x = leaf(randn(shape, 46, Dtype::f32, device));
      Tensor w = leaf(randn({shape[1]}, 47, Dtype::f32, device));
      const Tensor dy = randn(shape, 48, Dtype::f32, device);
      Tensor y, dx, dw;
      Graph step(device, [&] {
        y = layer_norm(x, w);
        y.backward(dy);
        dx = x.grad();
        dw = w.grad();
        x.zero_grad();
        w.zero_grad();
      });
      const auto run = [&] {
        step.run();
        return std::vector{values(y), values(dx), values(dw)};
      };
      const auto ordinary = run();
      for (int i = 0; i < 4; ++i) CHECK(run() == ordinary);
      CHECK(step.captured() == device.is_cuda());
    }
}

TEST_CASE("layer_norm: few long rows are shared by many blocks") {
  for (const Shape& shape :
       {Shape{2, 20000}, Shape{2, 70001}, Shape{64, 4104}, Shape{100, 4104}, Shape{33, 6000},
        Shape{64, 40000}, Shape{1, 400008}, Shape{20, 271000}, Shape{5, 600008}}) {
    const Shape cols{shape[1]};
    check_twins(f(), {randn(shape, 25), randn(cols, 26), randn(cols, 27)}, {row, row_gradient});
  }
  check_twins(f(), {randn({3, 9000}, 34)}, {row, row_gradient});
  check_twins(f(), {randn({3, 9000}, 35), Tensor(), randn({9000}, 36)}, {row, row_gradient});
  for (const Device device : devices())
    for (const double first : {1e4, 1e7}) {  // a row far from 0, and one with an outlier
      Tensor x = randn({1, 50000}, 28, Dtype::f64);
      for (std::int64_t i = 0; i < 50000; ++i) x.data<double>()[i] = 1e4 + 3 * x.data<double>()[i];
      x.data<double>()[0] = first;
      const Tensor rounded = x.to(Dtype::f32);
      check_close(layer_norm(rounded.to(device)), layer_norm(rounded.to(Dtype::f64)),
                  {2e-6, 2e-6, true}, "y");
    }
}

TEST_CASE("layer_norm: adding a number to a row, or scaling it, changes nothing") {
  for (const Device device : devices()) {
    const Tensor x = randn({20, 50}, 29, Dtype::f64, device);
    Tensor moved = x.clone().to(cpu_device);
    for (std::int64_t i = 0; i < x.numel(); ++i)
      moved.data<double>()[i] = 7 * moved.data<double>()[i] + double(i / 50);
    check_close(layer_norm(moved.to(device), {}, {}, {.eps = 0}), layer_norm(x, {}, {}, {.eps = 0}),
                {1e-13, 1e-13}, "y");
  }
}

TEST_CASE("layer_norm: bf16 rounds only the result, and gradients, whatever the width") {
  for (const Device device : devices())
    for (const std::int64_t cols : {8, 61, 96, 100, 129, 768, 777, 1032, 2050, 3333, 4096, 8000,
                                    20000, 33000, 33001, 600000, 1100000}) {
      const std::int64_t rows = cols < 5000 ? 301 : cols / 1000 == 33 ? 70 : cols < 1000000 ? 6 : 3;
      const auto run = [&](Dtype dtype) {
        const Tensor x = leaf(randn({rows, cols}, 30, Dtype::bf16, device).to(dtype).detach());
        const Tensor w = leaf(randn({cols}, 31, Dtype::bf16, device).to(dtype).detach());
        const Tensor b = leaf(randn({cols}, 32, Dtype::bf16, device).to(dtype).detach());
        const Tensor y = layer_norm(x, w, b);
        y.backward(randn({rows, cols}, 33, Dtype::bf16, device).to(dtype));
        return Tensors{y, x.grad(), w.grad(), b.grad()};
      };
      const Tensors got = run(Dtype::bf16);
      const Tensors exact = run(Dtype::f64);
      for (size_t i = 0; i < got.size(); ++i) check_close(got[i], exact[i], rounded_to_bf16, "");
    }
}

TEST_CASE("layer_norm: what does not fit is refused") {
  const Tensor x = zeros({2, 3});
  check_error(Kind::shape, {"layer_norm: normalized_shape", "[2,3]", "got [4]"},
              [&] { layer_norm(x, {}, {}, {.normalized_shape = {4}}); });
  check_error(Kind::shape, {"layer_norm: normalized_shape", "got [1,2,3]"}, [&] {
    layer_norm(x, {}, {}, {.normalized_shape = {1, 2, 3}});
  });
  check_error(Kind::shape, {"layer_norm: x has no dimension"}, [] { layer_norm(zeros({})); });
  check_error(Kind::shape, {"layer_norm: weight has the wrong shape; got [2]; expected [3]"},
              [&] { layer_norm(x, zeros({2})); });
  check_error(Kind::shape, {"layer_norm: bias has the wrong shape"}, [&] {
    layer_norm(x, {}, zeros({2, 3}));
  });
  check_error(Kind::dtype, {"layer_norm: x and weight differ in dtype"},
              [&] { layer_norm(x, zeros({3}, {.dtype = Dtype::f64})); });
  check_error(Kind::dtype, {"layer_norm: x must be floating; got i32"},
              [] { layer_norm(zeros({2}, {.dtype = Dtype::i32})); });
  for (const double eps : {-1.0, double(NAN)})
    check_error(Kind::value, {"layer_norm: eps out of range"},
                [&] { layer_norm(x, {}, {}, {.eps = eps}); });
}
