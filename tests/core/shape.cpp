#include "ebb/core/shape.h"

#include <climits>
#include <tuple>

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("shape: extents, products and printing") {
  const Shape s{2, 3, 4};
  CHECK(s.rank() == 3);
  CHECK(s.numel() == 24);
  CHECK(s.product(1, 3) == 12);
  CHECK(s.product(1, 1) == 1);
  CHECK(s.with(1, 5) == Shape{2, 5, 4});
  CHECK(s.without(0) == Shape{3, 4});
  CHECK(s.without(2) == Shape{2, 3});
  CHECK(Shape{}.numel() == 1);
  CHECK(Shape{0, 7}.numel() == 0);
  CHECK(!(Shape{1} == Shape{}));
  std::ostringstream out;
  out << s << Shape{};
  CHECK(out.str() == "[2,3,4][]");
}

TEST_CASE("shape: negative extents, rank 9 and counts beyond int64 are refused") {
  const std::int64_t large = std::int64_t{1} << 32;
  check_error(Kind::shape, {"shape: negative dimension 0", "got -1"}, [] { Shape{-1, 3}; });
  check_error(Kind::shape, {"rank 9", "at most 8"}, [] { Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}; });
  check_error(Kind::limit, {"shape: element count overflows"}, [&] {
    Shape{large / 2, 2 * large};
  });
  check_error(Kind::limit, {"overflows"}, [&] { Shape{large, large, 0}; });
  check_error(Kind::limit, {"overflows"}, [&] { Shape({large, 2}).with(1, large); });
  check_error(Kind::shape, {"negative"}, [] { Shape({2}).with(0, -1); });
  CHECK(Shape{INT64_MAX}.numel() == INT64_MAX);
  CHECK(Shape{1, 1, 1, 1, 1, 1, 1, 1}.rank() == 8);
}

TEST_CASE("shape: dimensions count from the end; those out of range are named") {
  CHECK(wrap_dim("op", -1, 3) == 2);
  CHECK(wrap_dim("op", -3, 3) == 0);
  CHECK(wrap_dim("op", 0, 0) == 0);
  for (const std::int64_t dim : {std::int64_t{3}, std::int64_t{-4}, INT64_MIN, INT64_MAX})
    check_error(Kind::index, {"op: dimension out of range", std::to_string(dim), "[-3, 2]"},
                [&] { wrap_dim("op", dim, 3); });
  const Shape shape{2, 3, 5};
  CHECK(shape[-1] == 5);
  CHECK(shape[-3] == 2);
  for (const int dim : {3, -4, INT_MAX, INT_MIN})
    check_error(Kind::index, {"shape: no dimension", std::to_string(dim), "[2,3,5]", "[-3, 2]"},
                [&] { std::ignore = shape[dim]; });
  check_error(Kind::index, {"shape: no dimension 0", "[]"}, [] { std::ignore = Shape()[0]; });
}

TEST_CASE("shape: broadcasting stretches ones, aligned at the right") {
  CHECK(broadcast("op", {2, 3}, {3}) == Shape{2, 3});
  CHECK(broadcast("op", {2, 1}, {1, 3}) == Shape{2, 3});
  CHECK(broadcast("op", {}, {4}) == Shape{4});
  CHECK(broadcast("op", {0, 3}, {1, 3}) == Shape{0, 3});
  CHECK(broadcast("op", {1}, {0}) == Shape{0});
  check_error(Kind::shape, {"add: shapes differ at axis -1", "[2,3] and [4]"}, [] {
    broadcast("add", {2, 3}, {4});
  });
  check_error(Kind::shape, {"axis -2"}, [] { broadcast("add", {2, 3}, {5, 3}); });
  check_error(Kind::shape, {"axis -1"}, [] { broadcast("add", {0}, {2}); });
  const std::int64_t large = std::int64_t{1} << 40;
  check_error(Kind::limit, {"overflows"}, [&] { broadcast("add", {large, 1}, {1, large}); });
}

TEST_CASE("shape: byte sizes are checked") {
  CHECK(checked_bytes("op", {2, 3}, 4) == 24);
  CHECK(checked_bytes("op", {}, 8) == 8);
  CHECK(checked_bytes("op", {std::int64_t{1} << 62, 0}, 8) == 0);
  check_error(Kind::limit, {"op: size overflows", "[4611686018427387904]", "4-byte"},
              [] { checked_bytes("op", {std::int64_t{1} << 62}, 4); });
}
