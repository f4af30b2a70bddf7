#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

using V = std::vector<double>;

Function conv(Conv1dOptions options = {}) {
  return [options](const Tensors& in) {
    return conv1d(in[0], in[1], in.size() > 2 ? in[2] : Tensor(), options);
  };
}

struct Case {
  Shape x, w;
  Conv1dOptions options;
};
const Case cases[] = {
    {{2, 3, 9}, {4, 3, 3}, {}},
    {{1, 4, 11}, {6, 2, 3}, {.stride = 2, .padding = 1, .groups = 2}},
    {{2, 3, 8}, {3, 1, 4}, {.padding = 3, .dilation = 2, .groups = 3}},
    {{1, 1, 1}, {2, 1, 3}, {.padding = 1}},
    {{1, 2, 7}, {1, 2, 7}, {.stride = 5}},
    {{0, 2, 7}, {3, 2, 2}, {}},
};

// Products of normal numbers summed over `terms`, as in conv2d's test: class E.
TwinTolerance sums(const Shape& x, const Shape& w) {
  constexpr double each = long_sum * 0.32;
  const auto bound = [](std::int64_t n) { return 1e-7 + each * static_cast<double>(n); };
  const std::int64_t most = std::max(x[0] * x[2], w[0] * w[2]);
  return {{bound(w[1] * w[2]), 0}, {bound(most), 0}};
}

}  // namespace

TEST_CASE("conv1d: literal values, with bias, stride, padding, dilation and groups") {
  for (const Device device : devices()) {
    const auto on = [&](std::vector<float> v, const Shape& s) { return tensor(v, s, device); };
    const Tensor x = on({1, 2, 3, 4}, {1, 1, 4});
    const Tensor w = on({1, 10}, {1, 1, 2});
    CHECK(values(conv1d(x, w)) == V{21, 32, 43});
    CHECK(values(conv1d(x, w, on({.5f}, {1}), {.stride = 2})) == V{21.5, 43.5});
    CHECK(values(conv1d(x, w, {}, {.padding = 1})) == V{10, 21, 32, 43, 4});
    CHECK(values(conv1d(x, w, {}, {.dilation = 3})) == V{41});
    const Tensor two = on({1, 2, 3, 4}, {1, 2, 2});
    CHECK(values(conv1d(two, on({1, 2, 3, 4}, {2, 1, 2}), {}, {.groups = 2})) == V{5, 25});
    CHECK(conv1d(two, on({1, 2}, {1, 2, 1})).shape() == Shape{1, 1, 2});
  }
}

TEST_CASE("conv1d: gradients agree with finite differences") {
  for (const auto& [x, w, options] : cases) {
    if (x[0] == 0) continue;
    check_gradients(conv(options), {randn(x, 1), randn(w, 2), randn({w[0]}, 3)});
    check_gradients(conv(options), {randn(x, 1), randn(w, 2)});
  }
}

TEST_CASE("conv1d: twins agree, without images too") {
  for (const auto& [x, w, options] : cases)
    check_twins(conv(options), {randn(x, 4), randn(w, 5), randn({w[0]}, 6)}, sums(x, w));
  check_twins(conv({.padding = 4}), {randn({2, 5, 700}, 7), randn({6, 5, 9}, 8)},
              sums({2, 5, 700}, {6, 5, 9}));
}

TEST_CASE("conv1d: a shifted input gives a shifted output") {
  const Tensor x = randn({1, 2, 30}, 9);
  const Tensor w = randn({3, 2, 4}, 10);
  const Tensor whole = conv1d(x, w);
  const Tensor part = conv1d(slice(x, 2, 5), w);
  check_close(slice(whole, 2, 5), part, {1e-14, 1e-14}, "shifted");
}

// The CPU's ways for few filters, for many, and for channels by themselves.
TEST_CASE("conv1d: sums over thousands of taps keep class E") {
  Generator g(12);
  const auto positive = [&](const Shape& shape) { return uniform(shape, 0.5, 1, g); };
  for (const auto& [x, w, groups] : {std::tuple{Shape{1, 1, 9000}, Shape{2, 1, 2000}, 1},
                                     {Shape{1, 2, 5000}, Shape{17, 2, 2000}, 1},
                                     {Shape{1, 8, 900}, Shape{8, 1, 800}, 8}}) {
    const Tensor given[] = {positive(x).to(Dtype::f32), positive(w).to(Dtype::f32)};
    const auto results = [&, groups = groups](Dtype dtype) {
      const Tensor a = leaf(given[0].to(dtype).clone()), b = leaf(given[1].to(dtype).clone());
      const Tensor y = conv1d(a, b, {}, {.groups = groups});
      y.backward(ones(y.shape(), {.dtype = dtype}));
      return Tensors{y.detach(), a.grad(), b.grad()};
    };
    const Tensors got = results(Dtype::f32), reference = results(Dtype::f64);
    for (size_t i = 0; i < got.size(); ++i)
      check_close(got[i], reference[i], {1e-7, long_sum}, "result " + std::to_string(i));
  }
}

TEST_CASE("conv1d: errors name conv1d") {
  const Tensor x = zeros({1, 2, 3}), w = zeros({4, 2, 3});
  const auto refuse = [](Kind kind, const char* part, const std::function<void()>& f) {
    check_error(kind, {"conv1d: ", part}, f);
  };
  refuse(Kind::shape, "larger than the padded input", [&] { conv1d(x, zeros({4, 2, 5})); });
  refuse(Kind::shape, "x must be [N,C,L]; got [2,3]", [&] { conv1d(zeros({2, 3}), w); });
  refuse(Kind::shape, "w must be [K,C/groups,R]", [&] { conv1d(x, zeros({4, 2})); });
  refuse(Kind::shape, "x and w differ in channels", [&] { conv1d(x, zeros({4, 3, 3})); });
  refuse(Kind::shape, "side of 0", [&] { conv1d(x, zeros({4, 2, 0})); });
  refuse(Kind::shape, "length of 0", [&] { conv1d(zeros({1, 2, 0}), w, {}, {.padding = 3}); });
  refuse(Kind::shape, "b has the wrong shape", [&] { conv1d(x, w, zeros({3})); });
  refuse(Kind::value, "stride is too small; got 0", [&] { conv1d(x, w, {}, {.stride = 0}); });
  refuse(Kind::value, "padding is negative; got -1", [&] { conv1d(x, w, {}, {.padding = -1}); });
  refuse(Kind::value, "dilation is too small", [&] { conv1d(x, w, {}, {.dilation = 0}); });
  refuse(Kind::value, "groups are too few", [&] { conv1d(x, w, {}, {.groups = 0}); });
  refuse(Kind::value, "groups do not divide", [&] { conv1d(x, w, {}, {.groups = 3}); });
  refuse(Kind::limit, "too large", [&] { conv1d(x, w, {}, {.padding = std::int64_t{1} << 40}); });
  refuse(Kind::dtype, "must be floating", [&] { conv1d(zeros({1, 2, 3}, {Dtype::i32}), w); });
}
