#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// By the definition, element by element.
std::vector<double> permuted(const Tensor& x, const std::vector<std::int64_t>& dims) {
  const auto v = values(x);
  const int rank = x.rank();
  std::vector<double> y;
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    std::int64_t rest = i, from = 0;
    for (int d = rank - 1; d >= 0; --d) {
      const auto axis = static_cast<int>(dims[static_cast<size_t>(d)]);
      from += rest % x.shape()[axis] * x.shape().product(axis + 1, rank);
      rest /= x.shape()[axis];
    }
    y.push_back(v[static_cast<size_t>(from)]);
  }
  return y;
}

}  // namespace

TEST_CASE("permute: every dtype and many orders give the definition's elements") {
  struct Case {
    Shape shape;
    std::vector<std::int64_t> dims;
  };
  const Case cases[] = {{{5, 7}, {1, 0}},
                        {{33, 65}, {1, 0}},
                        {{141, 530}, {1, 0}},
                        {{3, 5000}, {1, 0}},
                        {{2, 4, 11, 13}, {0, 2, 3, 1}},
                        {{3, 2, 35}, {0, 2, 1}},
                        {{3, 40, 37}, {0, 2, 1}},
                        {{2, 3, 4, 5}, {0, 2, 3, 1}},
                        {{2, 3, 4, 8}, {0, 2, 1, 3}},
                        {{2, 3, 4}, {2, 1, 0}},
                        {{4, 1, 3}, {1, 2, 0}},
                        {{2, 3}, {0, 1}},
                        {{1}, {0}},
                        {{2, 2, 2, 2, 2, 2}, {5, 3, 1, 0, 2, 4}}};
  for (const Device device : devices())
    for (const auto& [shape, dims] : cases)
      for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::i32, Dtype::u8}) {
        std::vector<double> numbers(static_cast<size_t>(shape.numel()));
        for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<double>(i % 251);
        const Tensor x = tensor(numbers, shape).to(dtype).to(device);
        CHECK(values(permute(x, dims)) == permuted(x, dims));
      }
}

TEST_CASE("permute and transpose: empty tensors and scalars keep their meaning") {
  for (const Device device : devices()) {
    CHECK(permute(zeros({0, 3}, {Dtype::f32, device}), {1, 0}).shape() == Shape{3, 0});
    CHECK(permute(full({}, 3, {Dtype::f32, device}), {}).item() == 3);
  }
}

TEST_CASE("permute and transpose: gradients agree with finite differences") {
  check_gradients(
      [](const Tensors& in) {
        return permute(in[0], {2, 0, 1});
      },
      {randn({2, 3, 4}, 1)});
  check_gradients([](const Tensors& in) { return transpose(in[0], 0, -1); }, {randn({2, 3, 4}, 2)});
}

TEST_CASE("permute: twins agree and undo themselves") {
  check_twins(
      [](const Tensors& in) {
        return permute(in[0], {0, 2, 1});
      },
      {randn({2, 65, 33}, 3)}, {exact, exact});
  const Tensor x = randn({2, 3, 4}, 4);
  CHECK(values(permute(permute(x, {2, 0, 1}), {1, 2, 0})) == values(x));
  CHECK(values(transpose(transpose(x, 0, 2), 2, 0)) == values(x));
}

TEST_CASE("permute and transpose: axes that do not fit are refused") {
  const Tensor x = zeros({2, 3, 4});
  check_error(Kind::value, {"permute: ", "axis 1 repeated"}, [&] { permute(x, {1, 1, 0}); });
  check_error(Kind::value, {"permute: ", "2 axes"}, [&] { permute(x, {1, 0}); });
  check_error(Kind::index, {"permute: dimension out of range"}, [&] { permute(x, {0, 1, 3}); });
  check_error(Kind::index, {"transpose: dimension out of range", "5"}, [&] { transpose(x, 0, 5); });
  check_error(Kind::index, {"[-3, 2]"}, [&] { transpose(x, -4, 0); });
}
