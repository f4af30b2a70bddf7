#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Tensor f(const Tensors& in) {
  if (in.size() == 3) return feed_forward(in[0], in[1], in[2]);
  return feed_forward(in[0], in[1], in[2], {in[3], in[4], in[5]});
}

// The same from other operations.
Tensor composed(const Tensors& in) {
  if (in.size() == 3) return linear(gelu(linear(in[0], in[1])), in[2]);
  return linear(gelu(linear(in[0], in[1], in[3])), in[2], in[4]) + in[5];
}

// x, up, down and, if asked for, the biases and the residual; sums of variance about 1.
Tensors arguments(std::int64_t rows, std::int64_t in, std::int64_t hidden, std::int64_t out,
                  bool with_addends, std::uint64_t seed) {
  const auto weight = [&](std::int64_t o, std::int64_t i) {
    const double scale = 1 / std::sqrt(static_cast<double>(std::max<std::int64_t>(i, 1)));
    return randn({o, i}, seed++, Dtype::f64, cpu_device, scale);
  };
  Tensors all = {randn({rows, in}, seed++, Dtype::f64, cpu_device, 1.5), weight(hidden, in),
                 weight(out, hidden)};
  if (with_addends)
    all.insert(all.end(),
               {randn({hidden}, seed++), randn({out}, seed++), randn({rows, out}, seed)});
  return all;
}

// Value and gradients of g at the arguments, as f64.
std::vector<Tensor> answers(const Function& g, const Tensors& in, Dtype dtype, Device device) {
  Tensors there, all;
  for (const Tensor& x : in) there.push_back(leaf(x.to(Dtype::bf16).to(dtype).to(device).clone()));
  const Tensor y = g(there);
  y.backward(randn(y.shape(), 99, Dtype::bf16).to(dtype).to(device));
  all.push_back(y.detach().to(Dtype::f64));
  for (const Tensor& x : there) all.push_back(x.grad().to(Dtype::f64));
  return all;
}

// ‖a − b‖ / ‖b‖
double distance(const Tensor& a, const Tensor& b) {
  const std::vector<double> u = values(a), v = values(b);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < u.size(); ++i) {
    difference += (u[i] - v[i]) * (u[i] - v[i]);
    norm += v[i] * v[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace

TEST_CASE("feed_forward: literal values") {
  for (const Device device : devices()) {
    const auto at = [&](std::vector<float> v, Shape shape) { return tensor(v, shape, device); };
    const Tensor x = at({1, 2}, {1, 2});
    const Tensor up = at({1, 0, 0, -1, 1, 1}, {3, 2});   // h = 1, −2, 3 and the bias
    const Tensor down = at({1, 0, 0, 1, 1, 1}, {2, 3});  // sums of gelu(h)
    const double g[] = {0.8411919906, -0.0454023059, 2.9963626};
    check_close(feed_forward(x, up, down), tensor<double>({g[0], g[0] + g[1] + g[2]}, {1, 2}),
                pointwise, "y");
    const Tensor residual = at({1, 2}, {1, 2});
    check_close(feed_forward(x, up, down,  // h = 0
                             {at({-1, 2, -3}, {3}), at({10, 20}, {2}), residual}),
                tensor<double>({11, 22}, {1, 2}), exact, "+ b + residual");
  }
}

TEST_CASE("feed_forward: gradients agree with finite differences") {
  for (const bool with_addends : {false, true}) {
    check_gradients(f, arguments(3, 4, 5, 2, with_addends, 1));
    Tensors in = arguments(6, 2, 3, 4, with_addends, 7);
    in[0] = randn({2, 3, 2}, 13);
    if (with_addends) in[5] = randn({2, 3, 4}, 14);
    check_gradients(f, in);
  }
}

TEST_CASE("feed_forward: twins agree at ragged, 1 and 0 sizes") {
  const std::int64_t sizes[][4] = {{1, 1, 1, 1},     {0, 3, 2, 4},     {4, 0, 3, 2},
                                   {3, 2, 0, 4},     {3, 2, 4, 0},     {7, 5, 33, 9},
                                   {64, 16, 64, 16}, {300, 40, 72, 24}};  // rows, in, hidden, out
  for (const auto& [rows, in, hidden, out] : sizes)
    for (const bool with_addends : {false, true})
      check_twins(f, arguments(rows, in, hidden, out, with_addends, 20), two_products);
}

// Widths that are multiples of 8 have gelu in the product's last step, the others a pass for it.
// The 2^-10 is half a rounding: so much the few numbers of a bias scatter.
TEST_CASE("feed_forward: in bf16 it errs no more than the operations that it is made of") {
  const std::int64_t sizes[][4] = {{256, 64, 128, 32},
                                   {77, 40, 160, 24},
                                   {256, 60, 131, 33},
                                   {64, 8, 8, 8},
                                   {1, 768, 3072, 768}};
  for (const Device device : devices())
    for (const auto& [rows, in, hidden, out] : sizes)
      for (const bool with_addends : {false, true}) {
        const Tensors all = arguments(rows, in, hidden, out, with_addends, 30);
        const auto reference = answers(composed, all, Dtype::f64, cpu_device);
        const auto parts = answers(composed, all, Dtype::bf16, device);
        const auto whole = answers(f, all, Dtype::bf16, device);
        for (size_t i = 0; i < whole.size(); ++i) {
          INFO("answer ", i, " of ", rows, " rows, ", hidden, " hidden");
          CHECK(distance(whole[i], reference[i]) <=
                1.25 * distance(parts[i], reference[i]) + 0x1p-10);
        }
      }
}

TEST_CASE("feed_forward: only what requires a gradient gets one, and the others are unchanged") {
  for (const Device device : devices())
    for (size_t left_out = 0; left_out < 6; ++left_out) {
      const auto gradients = [&](bool all) {
        Tensors in;
        for (const Tensor& x : arguments(5, 4, 6, 3, true, 40))
          in.push_back(x.clone().to(device).set_requires_grad(all || in.size() != left_out));
        f(in).backward(ones({5, 3}, in[0].options()));
        return in;
      };
      const Tensors some = gradients(false), every = gradients(true);
      for (size_t i = 0; i < 6; ++i) {
        REQUIRE(some[i].grad().defined() == (i != left_out));
        if (i != left_out) CHECK(values(some[i].grad()) == values(every[i].grad()));
      }
    }
}

TEST_CASE("feed_forward: a graph that is retained gives the same gradients again") {
  for (const Device device : devices()) {
    Tensors in;
    for (const Tensor& x : arguments(5, 4, 6, 3, true, 50))
      in.push_back(leaf(x.to(device).clone()));
    const Tensor y = f(in), dy = randn({5, 3}, 51).to(device);
    const auto gradients = [&](bool retain) {
      std::vector<std::vector<double>> all;
      y.backward(dy, retain);
      for (Tensor& x : in) all.push_back(values(x.grad())), x.zero_grad();
      return all;
    };
    const auto first = gradients(true);
    CHECK(gradients(false) == first);
  }
}

TEST_CASE("feed_forward: arguments that do not fit are refused") {
  const auto refuse = [](const char* part, const Shape& x, const Shape& up, const Shape& down,
                         const FeedForwardOptions& o = {}) {
    check_error(Kind::shape, {"feed_forward: ", part},
                [&] { feed_forward(zeros(x), zeros(up), zeros(down), o); });
  };
  refuse("x must be [...,in]", {3}, {4, 3}, {2, 4});
  refuse("up must be [hidden,in]", {2, 3}, {4, 2}, {2, 4});
  refuse("up must be [hidden,in]", {2, 3}, {3}, {2, 4});
  refuse("down must be [out,hidden]", {2, 3}, {4, 3}, {2, 3});
  refuse("up_bias has the wrong shape", {2, 3}, {4, 3}, {2, 4}, {.up_bias = zeros({3})});
  refuse("down_bias has the wrong shape", {2, 3}, {4, 3}, {2, 4}, {.down_bias = zeros({4})});
  refuse("residual has the wrong shape", {2, 3}, {4, 3}, {2, 4}, {.residual = zeros({2, 3})});
  check_error(Kind::dtype, {"feed_forward: x must be floating"}, [] {
    feed_forward(zeros({2, 2}, {.dtype = Dtype::u8}), zeros({2, 2}), zeros({2, 2}));
  });
  check_error(Kind::dtype, {"feed_forward: x and down differ in dtype"}, [] {
    feed_forward(zeros({2, 2}), zeros({2, 2}), zeros({2, 2}, {.dtype = Dtype::f64}));
  });
}
