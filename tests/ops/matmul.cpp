#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Function with(MatmulOptions o) {
  return [o](const Tensors& in) { return matmul(in[0], in[1], o); };
}

Shape shape_of(std::int64_t rows, std::int64_t columns, bool transposed) {
  return transposed ? Shape{columns, rows} : Shape{rows, columns};
}

const MatmulOptions all_flags[] = {{}, {true, false}, {false, true}, {true, true}};

// Sums of k terms of size about 1 each, rounded in f32: 16 · 2⁻²⁴ · Σ|ab| + 1e-7, where for normal
// numbers Σ|ab| is about 0.64 k.
Tolerance sum_of(std::int64_t k) { return {1e-7 + long_sum * 0.64 * static_cast<double>(k), 0}; }

}  // namespace

TEST_CASE("matmul: literal products, plain, by flags and batched") {
  for (const Device device : devices()) {
    const Tensor a = tensor<float>({1, 2, 3, 4, 5, 6}, {2, 3}, device);
    const Tensor b = tensor<float>({1, 0, 2, 1, 0, 3}, {3, 2}, device);
    check_close(matmul(a, b), tensor<double>({5, 11, 14, 23}, {2, 2}), exact, "a b");
    check_close(matmul(a, a, {.transpose_b = true}), tensor<double>({14, 32, 32, 77}, {2, 2}),
                exact, "a aT");
    check_close(matmul(a, a, {.transpose_a = true}),
                tensor<double>({17, 22, 27, 22, 29, 36, 27, 36, 45}, {3, 3}), exact, "aT a");
    const Tensor p = tensor<float>({1, 2, 3, 4}, {2, 1, 2}, device);
    const Tensor q = tensor<float>({5, 6, 7, 8}, {2, 2, 1}, device);
    check_close(matmul(p, q), tensor<double>({17, 53}, {2, 1, 1}), exact, "batched");
  }
}

TEST_CASE("matmul: gradients agree with finite differences for all flags") {
  for (const MatmulOptions o : all_flags) {
    check_gradients(with(o), {randn(shape_of(3, 4, o.transpose_a), 1),
                              randn(shape_of(4, 5, o.transpose_b), 2)});
    const Shape a = o.transpose_a ? Shape{2, 3, 2} : Shape{2, 2, 3};
    const Shape b = o.transpose_b ? Shape{2, 4, 3} : Shape{2, 3, 4};
    check_gradients(with(o), {randn(a, 3), randn(b, 4)});
  }
}

TEST_CASE("matmul: a matrix times itself gets both gradients") {
  for (const Device device : devices()) {
    Tensor x = leaf(randn({3, 3}, 5).to(device));
    Tensor a = leaf(x.detach().clone());
    Tensor b = leaf(x.detach().clone());
    const Tensor dy = randn({3, 3}, 14).to(device);
    matmul(x, x).backward(dy);
    matmul(a, b).backward(dy);
    const auto da = values(a.grad());
    auto sum = values(b.grad());
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += da[i];
    check_close(x.grad(), tensor(sum, {3, 3}), {1e-14, 0}, "dx");
  }
}

TEST_CASE("matmul: twins agree at ragged, 1 and 0 sizes, and where k is cut in chunks") {
  const std::int64_t sizes[][3] = {{1, 1, 1},     {0, 3, 2},     {3, 0, 2},     {3, 2, 0},
                                   {7, 33, 5},    {17, 31, 129}, {130, 65, 47}, {9, 40, 1100},
                                   {64, 10, 257}, {1, 70, 600},  {129, 257, 3}};
  for (const MatmulOptions o : all_flags)
    for (const auto& [m, n, k] : sizes)
      check_twins(
          with(o),
          {randn(shape_of(m, k, o.transpose_a), 6), randn(shape_of(k, n, o.transpose_b), 7)},
          {sum_of(k), sum_of(std::max(m, n))});
  check_twins(with({}), {randn({2, 3, 5, 7}, 8), randn({2, 3, 7, 4}, 9)}, {sum_of(7), sum_of(5)});
}

TEST_CASE("matmul: CPU blocks give the product of the definition") {
  const std::int64_t sizes[][3] = {{19, 70, 1030}, {3, 5, 9001}, {70, 1, 33},  {90, 1, 70},
                                   {7, 300, 200},  {1, 530, 40}, {2, 600, 40}, {3, 530, 300},
                                   {30, 12, 90},   {8, 1, 2100}, {40, 1, 1}};
  for (const auto& [m, n, k] : sizes)
    for (const MatmulOptions o : all_flags) {
      const Tensor a = randn(shape_of(m, k, o.transpose_a), 10);
      const Tensor b = randn(shape_of(k, n, o.transpose_b), 11);
      const auto va = values(a);
      const auto vb = values(b);
      std::vector<double> y(static_cast<size_t>(m * n));
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = 0; j < n; ++j)
          for (std::int64_t l = 0; l < k; ++l)
            y[static_cast<size_t>(i * n + j)] +=
                va[static_cast<size_t>(o.transpose_a ? l * m + i : i * k + l)] *
                vb[static_cast<size_t>(o.transpose_b ? j * k + l : l * n + j)];
      for (const Device device : devices())
        check_close(matmul(a.to(device), b.to(device), o), tensor(y, {m, n}), {1e-11, 0}, "matmul");
    }
}

TEST_CASE("matmul: a product of a batch is that of its matrices") {
  const std::int64_t sizes[][3] = {{3, 3, 3}, {2, 5, 4}, {3, 3, 9001}, {1, 4, 8}};
  for (const auto& [m, n, k] : sizes)
    for (const MatmulOptions o : all_flags) {
      const Shape of_a = shape_of(m, k, o.transpose_a), of_b = shape_of(k, n, o.transpose_b);
      const Tensor a = randn({7, of_a[0], of_a[1]}, 12), b = randn({7, of_b[0], of_b[1]}, 13);
      for (const Device device : devices()) {
        const Tensor all = matmul(a.to(device), b.to(device), o).to(cpu_device);
        for (std::int64_t i = 0; i < 7; ++i) {
          const auto one = [&](const Tensor& x, const Shape& shape) {
            return reshape(slice(x, 0, i, i + 1), shape);
          };
          check_close(one(all, {m, n}), matmul(one(a, of_a), one(b, of_b), o), {1e-12, 1e-12, true},
                      "matmul");
        }
      }
    }
}

TEST_CASE("matmul: no inner dimension gives zeros, and infinity times zero is NaN") {
  for (const Device device : devices()) {
    const TensorOptions there{Dtype::f32, device};
    check_close(matmul(zeros({2, 0}, there), zeros({0, 3}, there)), zeros({2, 3}), exact, "k = 0");
    const Tensor y = matmul(tensor<float>({INFINITY, 1}, {1, 2}, device), zeros({2, 1}, there));
    CHECK(std::isnan(y.item()));
  }
}

TEST_CASE("matmul: bf16 is multiplied in f32 and rounded once") {
  const std::int64_t sizes[][3] = {{20, 24, 300}, {19, 70, 1031}, {3, 5, 9001}, {7, 300, 33},
                                   {1, 530, 40},  {64, 64, 33},   {130, 1, 70}, {3, 64, 600}};
  for (const auto& [m, n, k] : sizes)
    for (const MatmulOptions o : all_flags) {
      const Tensor a = randn(shape_of(m, k, o.transpose_a), 12).to(Dtype::bf16);
      const Tensor b = randn(shape_of(k, n, o.transpose_b), 13).to(Dtype::bf16);
      const Tensor expected = matmul(a.to(Dtype::f64), b.to(Dtype::f64), o);
      for (const Device device : devices()) {
        const Tensor y = matmul(a.to(device), b.to(device), o);
        CHECK(y.dtype() == Dtype::bf16);
        check_close(y, expected, {sum_of(k).absolute, 0x1p-8}, "bf16");
      }
    }
}

// Some processors' products of bf16 take them for 0.
TEST_CASE("matmul: bf16 numbers, products and sums may be denormal") {
  const double scales[][2] = {{0x1p-65, 0x1p-65}, {0x1p-130, 1}, {1, 0x1p-130}};
  for (const auto& [of_a, of_b] : scales)
    for (const MatmulOptions o : all_flags) {
      const Tensor a = randn(shape_of(20, 300, o.transpose_a), 15, Dtype::bf16, cpu_device, of_a);
      const Tensor b = randn(shape_of(300, 24, o.transpose_b), 16, Dtype::bf16, cpu_device, of_b);
      const Tensor expected = matmul(a.to(Dtype::f64), b.to(Dtype::f64), o);
      check_close(matmul(a, b, o), expected, {0x1p-133, 0x1p-8}, "bf16");
    }
}

TEST_CASE("matmul: operands that do not fit are refused") {
  const auto refuse = [](Kind kind, const char* part, const Shape& a, const Shape& b) {
    check_error(kind, {"matmul: ", part}, [&] { matmul(zeros(a), zeros(b)); });
  };
  refuse(Kind::shape, "got 3 and 4", {2, 3}, {4, 5});
  refuse(Kind::shape, "ranks", {}, {2, 2});
  refuse(Kind::shape, "ranks", {2}, {2});
  refuse(Kind::shape, "ranks", {2, 2, 2}, {2, 2});
  refuse(Kind::shape, "batch dimension 0", {2, 2, 2}, {3, 2, 2});
  check_error(Kind::dtype, {"matmul: a must be floating"}, [] {
    matmul(zeros({2, 2}, {.dtype = Dtype::i32}), zeros({2, 2}));
  });
  check_error(Kind::dtype, {"matmul: a and b differ in dtype"}, [] {
    matmul(zeros({2, 2}, {.dtype = Dtype::f64}), zeros({2, 2}));
  });
}
