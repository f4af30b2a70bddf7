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

TEST_CASE("slice: rows of any length come from anywhere and go anywhere, in every dtype") {
  constexpr std::int64_t cols = 83;
  for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::i32, Dtype::u8}) {
    std::vector<double> numbers;
    for (std::int64_t i = 0; i < 5 * cols; ++i) numbers.push_back(double(i % 251));
    const Tensor x = tensor<double>(numbers, {5, cols}).to(dtype);
    for (std::int64_t start = 0; start < 18; ++start)
      for (const std::int64_t end : {start + 1, start + 17, start + 40, cols}) {
        const std::vector<double> expected = values(slice(x, 1, start, end));
        for (const Device device : devices()) {
          const Tensor part = slice(x.to(device), 1, start, end);
          CHECK(values(part) == expected);
          const Tensor whole = concat(
              {slice(x.to(device), 1, 0, start), part, slice(x.to(device), 1, end, cols)}, 1);
          CHECK(values(whole) == values(x));
        }
      }
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
