#include "twins.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("slice: Python's rules for bounds") {
  for (const Device device : devices()) {
    const Tensor x = tensor<double>({0, 1, 2, 3, 4}, {5}, device);
    const auto sliced = [&](std::int64_t start, std::int64_t end) {
      return values(slice(x, 0, start, end));
    };
    CHECK(sliced(1, 3) == std::vector<double>{1, 2});
    CHECK(sliced(-2, slice_to_end) == std::vector<double>{3, 4});
    CHECK(sliced(-9, 1) == std::vector<double>{0});
    CHECK(sliced(3, 99) == std::vector<double>{3, 4});
    CHECK(sliced(0, -4) == std::vector<double>{0});
    CHECK(sliced(3, 2).empty());
    CHECK(sliced(7, 9).empty());
  }
}

TEST_CASE("slice: inner dimensions in every dtype") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::i32, Dtype::u8}) {
      const Tensor x = tensor<double>({0, 1, 2, 3, 4, 5, 6, 7}, {2, 2, 2}).to(dtype).to(device);
      CHECK(values(slice(x, 1, 1, 2)) == std::vector<double>{2, 3, 6, 7});
      CHECK(values(slice(x, -1, 0, 1)) == std::vector<double>{0, 2, 4, 6});
    }
}

TEST_CASE("slice: gradients agree with finite differences and are 0 outside") {
  const auto f = [](const Tensors& in) { return slice(in[0], 1, 1, -1); };
  check_gradients(f, {randn({2, 4, 3}, 1)});
  check_twins(f, {randn({3, 1025}, 2)}, {exact, exact});
  check_twins(f, {randn({2, 2}, 3)}, {exact, exact});
}

TEST_CASE("slice: what concat joined comes apart again") {
  const Tensor a = randn({3, 2}, 4);
  const Tensor b = randn({3, 5}, 5);
  const Tensor y = concat({a, b}, 1);
  CHECK(values(slice(y, 1, 0, 2)) == values(a));
  CHECK(values(slice(y, 1, 2)) == values(b));
}

TEST_CASE("slice: scalars and dimensions that are not there are refused") {
  check_error(Kind::shape, {"slice: a scalar"}, [] { slice(zeros({}), 0, 0); });
  check_error(Kind::index, {"slice: dimension"}, [] { slice(zeros({2}), 1, 0); });
}
