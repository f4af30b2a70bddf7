#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Tensor f(const Tensors& in) { return dropout(in[0], {.p = 0.3, .seed = 7}); }

std::vector<bool> mask(std::int64_t n, const DropoutOptions& options, Device device = cpu_device,
                       Dtype dtype = Dtype::f32) {
  const auto v = values(dropout(ones({n}, {dtype, device}), options));
  std::vector<bool> keep;
  for (const double e : v) keep.push_back(e != 0);
  return keep;
}

}  // namespace

TEST_CASE("dropout: the mask of a seed is known, on every device and in every dtype") {
  const auto known = mask(1000, {.p = 0.5, .seed = 1});
  // The first draws of philox(1, 0, 0), low half first: elements 0 to 3.
  const Philox first = philox(1, 0, 0);
  for (int j = 0; j < 4; ++j)
    CHECK(known[size_t(j)] == ((first.v[j / 2] >> (j % 2 * 16) & 0xffff) >= 0x8000));
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16})
      CHECK(mask(1000, {.p = 0.5, .seed = 1}, device, dtype) == known);
  CHECK(mask(1000, {.p = 0.5, .seed = 2}) != known);
  CHECK(mask(1000, {.p = 0.5, .stream = Stream{1, 1}}) != known);
  CHECK(mask(1000, {.p = 0.5, .stream = Stream{1, 0}}) == known);
}

TEST_CASE("dropout: kept elements are divided by 1 - p, forward and backward, with one mask") {
  for (const Device device : devices()) {
    const Tensor x = leaf(randn({5000}, 1, Dtype::f32, device));
    const Tensor dy = randn({5000}, 2, Dtype::f32, device);
    const Tensor y = dropout(x, {.p = 0.25, .seed = 3});
    y.backward(dy);
    const auto keep = mask(5000, {.p = 0.25, .seed = 3}, device);
    const auto in = x.to_vector<float>();
    const auto out = y.to_vector<float>();
    const auto g = dy.to_vector<float>();
    const auto dx = x.grad().to_vector<float>();
    for (size_t i = 0; i < keep.size(); ++i) {
      CHECK(out[i] == (keep[i] ? in[i] * static_cast<float>(1 / 0.75) : 0));
      CHECK(dx[i] == (keep[i] ? g[i] * static_cast<float>(1 / 0.75) : 0));
    }
  }
}

// Below 2^-16 an element is dropped by its second draw alone.
TEST_CASE("dropout: as many are kept as p says, within 4 sigma, of millions") {
  for (const Device device : devices()) {
    for (const double p : {0.1, 0.5, 0.9, 1e-5}) {
      const std::int64_t n = p < 0x1p-16 ? 10'000'000 : 1'000'000;
      const auto keep = mask(n, {.p = p, .seed = 11}, device);
      const double dropped = double(std::count(keep.begin(), keep.end(), false));
      CHECK(std::abs(dropped - n * p) <= 4 * std::sqrt(n * p * (1 - p)));
    }
  }
}

TEST_CASE("dropout: p = 0 is the identity, p = 1 is 0, of infinities and NaN too") {
  for (const Device device : devices()) {
    const Tensor x = leaf(tensor<float>({1, inff, -inff, qnanf}, {4}, device));
    check_close(dropout(x, {.p = 0}), x, exact, "p = 0");
    check_close(dropout(x, {.p = 1, .training = false}), x, exact, "not training");
    const Tensor y = dropout(x, {.p = 1});
    check_close(y, zeros({4}), exact, "p = 1");
    const Tensor many = dropout(ones({1000}, {Dtype::f32, device}), {.p = 1});
    check_close(many, zeros({1000}), exact, "p = 1 of many");
    y.backward(full({4}, inf, {.device = device}));
    check_close(x.grad(), zeros({4}), exact, "gradient");
    const auto v = values(dropout(full({1000}, qnan, {.device = device}), {.p = 0.5}));
    CHECK(std::count(v.begin(), v.end(), 0.0) > 400);
  }
}

TEST_CASE("dropout: gradients agree with finite differences") {
  check_gradients(f, {randn({3, 5}, 1)});
  check_gradients(f, {randn({300}, 1)});
}

TEST_CASE("dropout: twins agree at ragged, 1 and 0 sizes, and in bf16") {
  check_sizes(f, 1, {{0, 1.8e-7}, {0, 1.8e-7}});  // 1 / (1 - p) is rounded too
  check_bf16(f, {randn({1000}, 1)});
}

TEST_CASE("dropout: tuned or not, the result is the same") {
  for (const Device device : devices()) {
    const Tensor x = randn({(1 << 20) + 3}, 1, Dtype::f32).to(device);
    const Tensor tuned = dropout(x, {.seed = 5});
    tune_dropout(false);
    check_close(dropout(x, {.seed = 5}), tuned, exact, "fixed");
    tune_dropout(true);
  }
}

TEST_CASE("dropout: each call draws anew from the default generator, which a seed restarts") {
  manual_seed(1);
  const auto a = mask(100, {});
  const auto b = mask(100, {});
  manual_seed(1);
  CHECK(a != b);
  CHECK(a == mask(100, {}));
}

TEST_CASE("dropout: bad probabilities, two sources and integers are refused") {
  for (const double p : {-0.1, 1.1, qnan})
    check_error(Kind::value, {"dropout: bad probability", "0 to 1"},
                [&] { dropout(ones({2}), {.p = p}); });
  check_error(Kind::value, {"dropout: two sources of randomness"}, [] {
    dropout(ones({2}), {.seed = 1, .stream = Stream{1, 2}});
  });
  check_error(Kind::dtype, {"dropout: x must be floating", "got i32"},
              [] { dropout(zeros({2}, {Dtype::i32})); });
}
