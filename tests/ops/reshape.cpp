#include "twins.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("reshape: elements keep their order and their storage") {
  for (const Device device : devices()) {
    const Tensor x = randn({2, 3, 4}, 1).to(device);
    const Tensor y = reshape(x, {4, -1});
    CHECK(y.shape() == Shape{4, 6});
    CHECK(y.storage() == x.storage());
    CHECK(values(y) == values(x));
    CHECK(reshape(x, {24}).shape() == Shape{24});
    CHECK(reshape(tensor<float>({5}, {1}, device), {}).rank() == 0);
    CHECK(reshape(zeros({0, 3}, {Dtype::u8, device}), {3, 0}).shape() == Shape{3, 0});
    CHECK(reshape(x, Shape{6, 4}).shape() == Shape{6, 4});
  }
}

TEST_CASE("flatten: makes one dimension of start_dim and all after it") {
  const Tensor x = zeros({2, 3, 4});
  CHECK(flatten(x).shape() == Shape{24});
  CHECK(flatten(x, 1).shape() == Shape{2, 12});
  CHECK(flatten(x, -1).shape() == Shape{2, 3, 4});
  CHECK(flatten(zeros({})).shape() == Shape{1});
  check_error(Kind::index, {"flatten: dimension out of range"}, [&] { flatten(x, 3); });
}

TEST_CASE("reshape and flatten: gradients agree with finite differences") {
  check_gradients([](const Tensors& in) { return reshape(in[0], {3, -1}); }, {randn({2, 6}, 2)});
  check_gradients([](const Tensors& in) { return flatten(in[0], 1); }, {randn({2, 3, 2}, 3)});
}

TEST_CASE("reshape: impossible shapes are refused") {
  const Tensor x = zeros({12});
  check_error(Kind::shape, {"reshape: 12 elements", "[12] into [4,2]"}, [&] {
    reshape(x, {4, 2});
  });
  check_error(Kind::shape, {"reshape: 12 elements"}, [&] { reshape(x, {5, -1}); });
  check_error(Kind::value, {"reshape: only one dimension"}, [&] { reshape(x, {-1, -1}); });
  check_error(Kind::value, {"reshape: -1 is ambiguous"}, [] { reshape(zeros({0}), {0, -1}); });
  check_error(Kind::shape, {"reshape: negative dimension 0"}, [&] { reshape(x, {-2, 6}); });
  check_error(Kind::shape, {"reshape: too many dimensions", "rank 9"}, [&] {
    reshape(x, {12, 1, 1, 1, 1, 1, 1, 1, 1});
  });
  check_error(Kind::limit, {"reshape: "}, [&] {
    reshape(x, {std::int64_t{1} << 62, std::int64_t{1} << 62});
  });
}
