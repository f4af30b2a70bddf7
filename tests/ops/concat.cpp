#include "twins.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("concat: joins along any dimension, in every dtype") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::i32, Dtype::u8}) {
      const Tensor a = tensor<double>({1, 2, 3, 4}, {2, 2}).to(dtype).to(device);
      const Tensor b = tensor<double>({5, 6}, {2, 1}).to(dtype).to(device);
      CHECK(values(concat({a, b}, 1)) == std::vector<double>{1, 2, 5, 3, 4, 6});
      CHECK(values(concat({a, a}, 0)) == std::vector<double>{1, 2, 3, 4, 1, 2, 3, 4});
      CHECK(values(concat({a, a}, -1)) == std::vector<double>{1, 2, 1, 2, 3, 4, 3, 4});
      CHECK(values(concat({zeros({2, 0}, {dtype, device}), b}, 1)) == std::vector<double>{5, 6});
    }
}

TEST_CASE("concat: gradients agree with finite differences") {
  const auto f = [](const Tensors& in) { return concat(in, 1); };
  check_gradients(f, {randn({2, 3, 2}, 1), randn({2, 1, 2}, 2), randn({2, 0, 2}, 3)});
  check_twins(f, {randn({3, 1025}, 4), randn({3, 7}, 5)}, {exact, exact});
}

TEST_CASE("concat: tensors that do not fit are refused") {
  check_error(Kind::value, {"concat: nothing"}, [] { concat(Tensors{}); });
  check_error(Kind::shape, {"concat: a scalar"}, [] { concat({zeros({}), zeros({})}); });
  check_error(Kind::shape, {"concat: tensor 1"}, [] { concat({zeros({2}), zeros({2, 2})}); });
  check_error(Kind::shape, {"[3,2] and [2,2]"}, [] { concat({zeros({2, 2}), zeros({3, 2})}, 1); });
  check_error(Kind::state, {"concat: tensor 0 is undefined"}, [] { concat({{}, zeros({2})}); });
  check_error(Kind::state, {"concat: tensor 1 is undefined"}, [] { concat({zeros({2}), {}}); });
  check_error(Kind::index, {"concat: dimension"}, [] { concat({zeros({2})}, 1); });
  check_error(Kind::dtype, {"concat: "}, [] {
    concat({zeros({2}), zeros({2}, {.dtype = Dtype::f64})});
  });
}
