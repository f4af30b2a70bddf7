#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

using V = std::vector<double>;

Tensor indices(const std::vector<std::int32_t>& v, const Shape& shape, Device device = cpu_device) {
  return tensor(v, shape, device);
}

// Indices of [0, rows) in no order, the first of them often.
Tensor some_indices(std::int64_t n, std::int64_t rows) {
  std::vector<std::int32_t> v;
  for (std::int64_t i = 0; i < n; ++i)
    v.push_back(i % 3 == 0 ? 0 : std::int32_t((i * i + 7 * i) % rows));
  return indices(v, {n});
}

Tensor lookup(const Tensors& in) { return embedding(in[0], in[1]); }

}  // namespace

TEST_CASE("embedding: rows by index, for indices of any shape") {
  for (const Device device : devices()) {
    const Tensor w = tensor<float>({1, 2, 3, 4, 5, 6}, {3, 2}, device);
    const Tensor y = embedding(indices({2, 0, 0, 1}, {2, 2}, device), w);
    CHECK(y.shape() == Shape{2, 2, 2});
    CHECK(values(y) == V{5, 6, 1, 2, 1, 2, 3, 4});
    CHECK(embedding(indices({1}, {}, device), w).shape() == Shape{2});
    CHECK(embedding(indices({}, {0}, device), w).shape() == Shape{0, 2});
    CHECK(values(embedding(indices({2}, {1}, device), w.to(Dtype::bf16))) == V{5, 6});
  }
}

TEST_CASE("embedding: gradients of repeated indices are summed, of absent ones 0") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16}) {
      Tensor w = leaf(ones({3, 2}, {dtype, device}));
      const Tensor y = embedding(indices({0, 0, 2}, {3}, device), w);
      y.backward(tensor<float>({1, 2, 3, 4, 5, 6}, {3, 2}).to(dtype).to(device));
      CHECK(values(w.grad()) == V{4, 6, 0, 0, 5, 6});
    }
}

TEST_CASE("embedding: gradients agree with finite differences") {
  for (const Shape& shape : {Shape{5, 3}, Shape{1, 4}, Shape{7, 1}})
    check_gradients(
        [&](const Tensors& in) {
          return embedding(some_indices(9, shape[0]).to(in[0].device()), in[0]);
        },
        {randn(shape, 1)});
}

TEST_CASE("embedding: twins agree at ragged, 1 and 0 sizes") {
  // A row is used up to n times: class E, 16·2⁻²⁴·Σ|dy|, of which double arithmetic needs little.
  const TwinTolerance tolerance{exact, {1e-7, 2e-7}};
  for (const std::int64_t n : {0, 1, 7, 255, 5000})
    for (const Shape& w : {Shape{1, 1}, Shape{3, 130}, Shape{50, 33}, Shape{1500, 8}})
      check_twins(lookup, {some_indices(n, w[0]), randn(w, 2)}, tolerance);
  check_twins(lookup, {indices({}, {0}), randn({0, 3}, 3)}, tolerance);
  check_twins(lookup, {some_indices(4, 2), randn({2, 0}, 3)}, tolerance);
}

TEST_CASE("embedding: 100,000 uses of one row add up to a millionth") {
  for (const Device device : devices()) {
    Tensor w = leaf(zeros({2, 1}, {.device = device}));
    const Tensor y = embedding(zeros({100'000}, {Dtype::i32, device}), w);
    y.backward(full(y.shape(), 0.1f, {.device = device}));
    CHECK(std::abs(values(w.grad())[0] / 1e4 - 1) <= 1e-6);
  }
}

TEST_CASE("embedding: an index that is no row is named, and the next call works") {
  for (const Device device : devices()) {
    const Tensor w = ones({3, 2}, {.device = device});
    const auto refuse = [&](std::int32_t bad, const char* text) {
      check_error(Kind::index, {text}, [&] { embedding(indices({bad, 1}, {2}, device), w); });
    };
    refuse(3, "embedding: index 3 not in [0,3), position 0");
    refuse(-1, "embedding: index -1 not in [0,3), position 0");
    refuse(INT32_MIN, "embedding: index -2147483648 not in [0,3), position 0");
    check_error(Kind::index, {"embedding: index 0 not in [0,0), position 0"}, [&] {
      embedding(indices({0}, {1}, device), zeros({0, 2}, {.device = device}));
    });
    CHECK(values(embedding(indices({1}, {1}, device), w)) == V{1, 1});
  }
}

TEST_CASE("embedding: unchecked, an index that is no row gives NaN and no gradient") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      Tensor w = leaf(ones({3, 2}, {dtype, device}));
      const Tensor bad = indices({INT32_MAX, 1, -1, 3}, {4}, device);
      const Tensor y = embedding(bad, w, {.check_indices = false});
      check_close(y, tensor<double>({NAN, NAN, 1, 1, NAN, NAN, NAN, NAN}, {4, 2}), exact, "y");
      y.backward(ones_like(y));
      CHECK(values(w.grad()) == V{0, 0, 1, 1, 0, 0});
    }
}

TEST_CASE("embedding: tables that are not [V,D] and indices that are not i32 are refused") {
  const Tensor i = indices({0}, {1});
  for (const Shape& shape : {Shape{}, Shape{3}, Shape{2, 2, 2}})
    check_error(Kind::shape, {"embedding: weight must be 2-D"},
                [&] { embedding(i, zeros(shape)); });
  check_error(Kind::dtype, {"embedding: indices must be whole numbers; got f32"}, [&] {
    embedding(zeros({1}), zeros({2, 2}));
  });
  check_error(Kind::dtype, {"embedding: weight must be floating; got i32"}, [&] {
    embedding(i, zeros({2, 2}, {.dtype = Dtype::i32}));
  });
  check_error(Kind::shape, {"embedding: indices have too many dimensions"}, [&] {
    embedding(zeros({1, 1, 1, 1, 1, 1, 1, 1}, {.dtype = Dtype::i32}), zeros({2, 2}));
  });
}
