// Numbers that are not finite, and scores that are far apart: what they may reach, and what not.
#include <algorithm>
#include <cstring>

#include "attention.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("flash_attention: scores of ±10,000 and more are finite, and pick the largest") {
  for (const Device device : devices()) {
    const Tensor q = leaf(tensor<float>({100, -100}, {1, 2, 1, 1}, device));
    const Tensor k = leaf(tensor<float>({-100, 0, 100}, {1, 3, 1, 1}, device));
    const Tensor v = leaf(tensor<float>({1, 2, 3}, {1, 3, 1, 1}, device));
    const Tensor y = flash_attention(q, k, v);
    check_close(y, tensor<double>({3, 1}, {1, 2, 1, 1}), exact, "y");
    y.backward(ones({1, 2, 1, 1}, {.device = device}));
    check_close(v.grad(), tensor<double>({1, 0, 1}, {1, 3, 1, 1}), exact, "dv");
    check_close(q.grad(), zeros({1, 2, 1, 1}), exact, "dq");
    check_close(k.grad(), zeros({1, 3, 1, 1}), exact, "dk");
  }
  for (const bool causal : {false, true}) {
    for (const Sizes& s : {Sizes{1, 90, 90, 1, 16}, Sizes{1, 400, 400, 1, 64}}) {
      const Tensors in = inputs(s, 25, Dtype::f32, 100);
      for (const Device device : devices()) {
        Tensors there;
        for (const Tensor& x : in) there.push_back(leaf(x.to(device).detach().clone()));
        const Tensor y = f({.is_causal = causal})(there);
        y.backward(randn(s.q(), 26, Dtype::f32, device));
        for (const double x : values(y)) CHECK(std::abs(x) <= 6);
        for (const Tensor& x : there)
          for (const double g : values(x.grad())) CHECK(std::isfinite(g));
      }
    }
  }
}

// Where one score is far above the others P is 1 there and 0 elsewhere; backward, which makes the
// scores again, must find that same largest one.
TEST_CASE("flash_attention: the last query's dy all goes to its largest score, however large") {
  for (const Dtype dtype : {Dtype::f32, Dtype::f64})
    for (const double size : {3e2, 1e4, 1e6})
      for (const Sizes& s :
           {Sizes{1, 1, 1, 1, 64}, Sizes{1, 1, 100, 1, 128}, Sizes{1, 3, 7, 1, 8},
            Sizes{1, 257, 100, 1, 64}, Sizes{1, 258, 100, 1, 64}, Sizes{1, 513, 70, 1, 128}}) {
        CAPTURE(size);
        CAPTURE(s.length_q);
        const Tensors in = inputs(s, 45, dtype, size);
        const auto q = values(in[0]), k = values(in[1]);
        const auto d = size_t(s.head_dim), last = size_t(s.length_q - 1) * d;
        std::vector<double> scores(size_t(s.length_k), 0.0);
        for (size_t j = 0; j < scores.size(); ++j)
          for (size_t c = 0; c < d; ++c)
            scores[j] += q[last + c] * k[j * d + c] / std::sqrt(double(d));
        const auto top = std::ranges::max_element(scores);
        for (auto other = scores.begin(); other != scores.end(); ++other)
          REQUIRE((other == top || *top - *other >= 800));
        for (const Device device : devices()) {
          Tensors there;
          for (const Tensor& x : in) there.push_back(leaf(x.to(device)));
          Tensor dy = zeros(s.q(), {dtype, cpu_device});
          Tensor dv = zeros(s.k(), {dtype, cpu_device});
          const Tensor row = randn({s.head_dim}, 44, dtype);
          const auto bytes = size_t(row.bytes());
          std::memcpy(static_cast<std::byte*>(dy.raw()) + bytes * size_t(s.length_q - 1), row.raw(),
                      bytes);
          std::memcpy(static_cast<std::byte*>(dv.raw()) + bytes * size_t(top - scores.begin()),
                      row.raw(), bytes);
          f()(there).backward(dy.to(device));
          check_close(there[2].grad(), dv, exact, "dv");
          for (const int i : {0, 1})
            for (const double g : values(there[size_t(i)].grad())) CHECK(std::isfinite(g));
        }
      }
}

TEST_CASE("flash_attention: no positions at all take no time, however many sequences they have") {
  for (const Device device : devices()) {
    const Tensor q = leaf(zeros({std::int64_t{1} << 40, 0, 1, 4}, {.device = device}));
    const Tensor y = flash_attention(q, q, q);
    y.backward(zeros(y.shape(), {.device = device}));
    CHECK(q.grad().shape() == q.shape());
  }
}

TEST_CASE("flash_attention: what a query does not see has no effect, be it NaN") {
  const auto check = [](std::int64_t n, std::int64_t d, Dtype dtype) {
    // The first of all, one within a tile, the first of a tile, and the last of all.
    for (const Device device : devices())
      for (const std::int64_t at : {std::int64_t{0}, std::int64_t{13}, std::int64_t{64}, n - 1}) {
        const auto run = [&](std::optional<float> other) {
          Tensor qkv = randn({1, n, 3, 1, d}, 27, Dtype::f32);
          if (other) std::fill_n(qkv.data<float>() + at * 3 * d, 3 * d, *other);
          qkv = leaf(qkv.to(dtype).to(device).detach().clone());
          const Tensor y = flash_attention(qkv, {.is_causal = true});
          // No upstream gradient from the position itself on: nothing that it touches counts.
          Tensor dy = randn({1, n, 1, d}, 28, Dtype::f32);
          std::fill(dy.data<float>() + at * d, dy.data<float>() + n * d, 0.0f);
          y.backward(dy.to(dtype).to(device));
          return std::pair(values(y), values(qkv.grad()));
        };
        const auto [y, g] = run({});
        for (const float other : {1000.0f, float(NAN), float(inf)}) {
          const auto [z, h] = run(other);
          for (size_t i = 0; i < size_t(at * d); ++i) CHECK(y[i] == z[i]);
          for (size_t i = 0; i < size_t(at * 3 * d); ++i)  // queries before `at`
            if (i % size_t(3 * d) < size_t(d)) CHECK(g[i] == h[i]);
          // A key of 1000s may as well have the least of scores.
          CHECK((at == n - 1 || std::isfinite(other) || y.back() != z.back()));
        }
      }
  };
  check(150, 6, Dtype::f32);
  for (const std::int64_t d : {64, 72}) check(400, d, Dtype::f32);
  for (const std::int64_t d : {6, 64, 72}) check(150, d, Dtype::bf16);
  check(400, 64, Dtype::bf16);
}

TEST_CASE("flash_attention: NaN stays in its row, and in the gradients of what it saw") {
  const auto check = [](std::int64_t n, std::int64_t d, Dtype dtype) {
    for (const bool causal : {false, true})
      for (const Device device : devices())
        for (const std::int64_t at : {std::int64_t{0}, std::int64_t{13}, std::int64_t{64}, n - 1}) {
          Tensors in = inputs({1, n, n, 1, d}, 29, Dtype::f32);
          in[0].data<float>()[at * d + 2] = NAN;
          for (Tensor& x : in) x = leaf(x.to(dtype).to(device).detach().clone());
          const Tensor y = f({.is_causal = causal})(in);
          y.backward(randn({1, n, 1, d}, 30, dtype, device));
          const auto out = values(y), dq = values(in[0].grad()), dk = values(in[1].grad()),
                     dv = values(in[2].grad());
          for (std::int64_t i = 0; i < n * d; ++i) {
            const bool own = i / d == at, seen = !causal || i / d <= at;
            CHECK(std::isnan(out[size_t(i)]) == own);
            CHECK(std::isnan(dq[size_t(i)]) == own);
            CHECK(std::isnan(dk[size_t(i)]) == seen);
            CHECK(std::isnan(dv[size_t(i)]) == seen);
          }
        }
  };
  check(150, 6, Dtype::f32);
  for (const std::int64_t d : {64, 72}) check(400, d, Dtype::f32);
  for (const std::int64_t d : {6, 64, 72}) check(150, d, Dtype::bf16);
  check(400, 128, Dtype::bf16);
}

TEST_CASE("flash_attention: an upstream NaN reaches its row, and the gradients of what that saw") {
  const auto check = [](std::int64_t n, std::int64_t d) {
    for (const bool causal : {false, true})
      for (const Device device : devices())
        for (const std::int64_t at : {std::int64_t{0}, std::int64_t{70}, n - 1}) {
          Tensors in = inputs({1, n, n, 1, d}, 65, Dtype::f32);
          for (Tensor& x : in) x = leaf(x.to(device).detach().clone());
          Tensor dy = randn({1, n, 1, d}, 68, Dtype::f32);
          dy.data<float>()[at * d + 1] = NAN;
          f({.is_causal = causal})(in).backward(dy.to(device));
          const auto dq = values(in[0].grad()), dk = values(in[1].grad()),
                     dv = values(in[2].grad());
          for (std::int64_t i = 0; i < n * d; ++i) {
            const bool own = i / d == at, seen = !causal || i / d <= at;
            CHECK(std::isnan(dq[size_t(i)]) == own);
            CHECK(std::isnan(dk[size_t(i)]) == seen);
            CHECK(std::isnan(dv[size_t(i)]) == (seen && i % d == 1));
          }
        }
  };
  check(150, 6);
  check(400, 64);
}

TEST_CASE("flash_attention: keys that no query sees get no gradient, be they NaN") {
  const auto check = [](const Sizes& s, Dtype dtype, std::int64_t at) {
    const std::int64_t d = s.head_dim;
    for (const Device device : devices()) {
      Tensors in = inputs(s, 39, Dtype::f32);
      std::fill_n(in[1].data<float>() + at * d, d, NAN);
      std::fill_n(in[2].data<float>() + at * d, d, NAN);
      for (Tensor& x : in) x = leaf(x.to(dtype).to(device).detach().clone());
      const Tensor y = flash_attention(in[0], in[1], in[2], {.is_causal = true});
      y.backward(randn(s.q(), 40, dtype, device));
      for (const Tensor& x : {y.detach(), in[0].grad()})
        for (const double v : values(x)) CHECK(std::isfinite(v));
      for (const Tensor& x : {in[1].grad(), in[2].grad()}) {
        const auto g = values(x);
        for (size_t i = 0; i < g.size(); ++i)
          CHECK((i < size_t(s.length_q * d) ? std::isfinite(g[i]) : g[i] == 0));
      }
    }
  };
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const std::int64_t at : {13, 15, 64, 99}) check({1, 13, 100, 1, 5}, dtype, at);
  for (const std::int64_t at : {400, 447, 448, 499}) check({1, 400, 500, 1, 40}, Dtype::f32, at);
}

TEST_CASE("flash_attention: a score of -inf weighs nothing, and a row of them is 0") {
  const auto check = [](std::int64_t d, Dtype dtype) {
    // In each row of d the first of these, and zeros.
    const auto rows = [&](std::vector<float> first, Device device) {
      Tensor x = zeros({1, 2, 1, d});
      for (std::int64_t i = 0; i < 2; ++i) x.data<float>()[i * d] = first[size_t(i)];
      return x.to(dtype).to(device);
    };
    const auto firsts = [&](const Tensor& x) {
      const auto v = values(x);
      return std::vector<double>{v[0], v[size_t(d)]};
    };
    using Pair = std::vector<double>;
    for (const Device device : devices())
      for (const bool both : {false, true}) {
        const Tensor q = rows({1, 1}, device);
        const Tensor k = leaf(rows({-float(inf), both ? -float(inf) : 0}, device).clone());
        const Tensor v = leaf(rows({1, 2}, device).clone());
        const Tensor y = flash_attention(q, k, v);
        y.backward(rows({1, 1}, device));
        CHECK(firsts(y) == (both ? Pair{0, 0} : Pair{2, 2}));
        CHECK(firsts(v.grad()) == (both ? Pair{0, 0} : Pair{0, 2}));
        check_close(k.grad(), zeros(k.shape()), exact, "dk");
      }
  };
  check(1, Dtype::f32);
  for (const std::int64_t d : {1, 8, 72}) check(d, Dtype::bf16);
}
