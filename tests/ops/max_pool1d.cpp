#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

using V = std::vector<double>;

// Distinct multiples of 1/16 in random order: no ties, no kink within a step of the check.
Tensor distinct(const Shape& shape, std::uint64_t seed) {
  Generator generator(seed);
  V v;
  for (const std::int32_t i : permutation(shape.numel(), generator).to_vector<std::int32_t>())
    v.push_back(i / 16.0);
  return tensor(v, shape);
}

struct Case {
  Shape shape;
  std::int64_t kernel;
  MaxPool1dOptions options;
};
const Case cases[] = {
    {{2, 3, 8}, 2, {}},
    {{1, 2, 9}, 2, {.ceil_mode = true}},
    {{3, 11}, 3, {.stride = 2, .padding = 1}},
    {{2, 1, 13}, 3, {.stride = 1, .padding = 1, .dilation = 3}},
    {{1, 1, 1}, 1, {}},
};
// Its places need i32; not for differences, which would see little but the rounding of its values.
const Case wide{{1, 2, 700}, 300, {.stride = 7}};

Function pool(const Case& c) {
  return [=](const Tensors& in) { return max_pool1d(in[0], c.kernel, c.options); };
}

}  // namespace

TEST_CASE("max_pool1d: literal values, ties, NaN and padding") {
  for (const Device device : devices()) {
    const auto pooled = [&](std::vector<float> v, std::int64_t kernel, MaxPool1dOptions o = {}) {
      Tensor x = leaf(tensor<float>(v, {1, 1, std::int64_t(v.size())}, device));
      const Tensor y = max_pool1d(x, kernel, o);
      CHECK(y.rank() == 3);
      y.backward(ones_like(y));
      return std::pair(values(y), values(x.grad()));
    };
    CHECK(pooled({1, 2, 2, 2, 9}, 2) == std::pair(V{2, 2}, V{0, 1, 1, 0, 0}));
    CHECK(pooled({1, 3, 2}, 2, {.stride = 1}) == std::pair(V{3, 3}, V{0, 2, 0}));
    CHECK(pooled({-5, -6, -7}, 3, {.stride = 2, .padding = 1}) == std::pair(V{-5, -6}, V{1, 1, 0}));
    CHECK(pooled({1, 2, 3}, 2, {.ceil_mode = true}).first == V{2, 3});
    const auto [y, dx] = pooled({1, NAN, 3, 4}, 2);
    CHECK(std::isnan(y[0]));
    CHECK(y[1] == 4);
    CHECK(dx == V{0, 1, 0, 1});
  }
}

TEST_CASE("max_pool1d: gradients agree with finite differences") {
  for (const Case& c : cases)
    check_gradients(pool(c), {distinct(c.shape, 1)}, {.atol = 1e-10, .rtol = 1e-10});
}

TEST_CASE("max_pool1d: twins agree bit for bit, but for sums of gradients") {
  for (const Case& c : cases) check_twins(pool(c), {distinct(c.shape, 2)}, {exact, {1e-6, 1e-6}});
  check_twins(pool(wide), {distinct(wide.shape, 2)}, {exact, {1e-6, 1e-6}});
  check_twins(pool(cases[0]), {randn({0, 3, 8}, 3)}, {exact, exact});
}

TEST_CASE("max_pool1d: a window of 1 changes nothing") {
  const Tensor x = randn({2, 3, 5}, 4);
  CHECK(values(max_pool1d(x, 1)) == values(x));
}

TEST_CASE("max_pool1d: impossible windows are refused under its name") {
  const Tensor x = zeros({1, 1, 4});
  const auto refuse = [&](Kind kind, const char* part, std::int64_t kernel, MaxPool1dOptions o) {
    check_error(kind, {"max_pool1d: ", part}, [&] { max_pool1d(x, kernel, o); });
  };
  refuse(Kind::value, "padding 2 is more than half the kernel; got 2", 2, {.padding = 2});
  refuse(Kind::value, "padding out of range; got -1", 2, {.padding = -1});
  refuse(Kind::value, "kernel_size out of range; got 0", 0, {});
  refuse(Kind::value, "stride", 2, {.stride = 0});
  refuse(Kind::value, "dilation", 2, {.dilation = 0});
  refuse(Kind::shape, "output would be empty", 5, {});
  refuse(Kind::limit, "kernel_size", std::int64_t{1} << 40, {});
  for (const Shape& shape : {Shape{4}, Shape{1, 1, 1, 4}, Shape{1, 0, 4}, Shape{1, 1, 0}})
    check_error(Kind::shape, {"max_pool1d: "}, [&] { max_pool1d(zeros(shape), 2); });
  check_error(Kind::dtype, {"max_pool1d: x must be floating"}, [] {
    max_pool1d(zeros({1, 1, 2}, {.dtype = Dtype::u8}), 2);
  });
}
