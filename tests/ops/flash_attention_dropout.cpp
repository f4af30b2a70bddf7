#include "attention.h"
#include "ebb/core/graph.h"
#include "ebb/core/recompute.h"

using namespace ebb;
using namespace ebb::test;

namespace {

constexpr Stream stream{0x123456789abcdefu, 5};

FlashAttentionOptions drops(double p, bool causal = false) {
  return {.is_causal = causal, .dropout = p, .stream = stream};
}

// Which weights are kept, [batch · heads, length_q, length_k], as values and dv tell: all scores
// are 0, and the values, or the upstream gradients, one-hot.
struct Masks {
  std::vector<bool> of_y, of_dv;
};

Masks masks(const Sizes& s, FlashAttentionOptions o, Device device, Dtype dtype) {
  const auto one_hot = [&](std::int64_t length) {
    Tensor x = zeros({s.batch, length, s.heads, s.head_dim});
    for (std::int64_t r = 0; r < s.batch * length * s.heads; ++r)
      x.data<float>()[r * s.head_dim + r / s.heads % length] = 1;
    return x.to(dtype).to(device);
  };
  const auto kept = [&](const Tensor& x, std::int64_t rows, std::int64_t columns) {
    const auto v = values(x);
    std::vector<bool> out;
    for (std::int64_t h = 0; h < s.batch * s.heads; ++h)
      for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < columns; ++j)
          out.push_back(
              v[size_t(((h / s.heads * rows + i) * s.heads + h % s.heads) * s.head_dim + j)] != 0);
    return out;
  };
  const Tensor zero = zeros(s.q(), {dtype, device}), keys = zeros(s.k(), {dtype, device});
  const Tensor v = leaf(one_hot(s.length_k));
  const Tensor y = flash_attention(zero, keys, v, o);
  y.backward(one_hot(s.length_q));
  return {kept(y, s.length_q, s.length_k), kept(v.grad(), s.length_k, s.length_q)};
}

}  // namespace

TEST_CASE("flash_attention: the mask is the one described, on every device, in every dtype") {
  for (const Sizes& s :
       {Sizes{2, 64, 64, 3, 64}, Sizes{1, 128, 128, 2, 128}, Sizes{2, 33, 50, 1, 50},
        Sizes{1, 96, 7, 2, 96}, Sizes{1, 200, 200, 1, 256}, Sizes{2, 1, 128, 2, 128},
        Sizes{1, 24, 32, 3, 32}})
    for (const double p : {0.2, 0.5}) {
      const AttentionMask mask{p, stream, s.length_q, s.length_k};
      for (const Device device : devices())
        for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16}) {
          if (device.is_cuda() && dtype == Dtype::f64 && s.head_dim > 128) continue;
          const Masks m = masks(s, drops(p), device, dtype);
          for (std::int64_t h = 0; h < s.batch * s.heads; ++h)
            for (std::int64_t i = 0; i < s.length_q; ++i)
              for (std::int64_t j = 0; j < s.length_k; ++j) {
                const bool expected = mask.keeps(h, i, j);
                CHECK(m.of_y[size_t((h * s.length_q + i) * s.length_k + j)] == expected);
                CHECK(m.of_dv[size_t((h * s.length_k + j) * s.length_q + i)] == expected);
              }
        }
    }
}

TEST_CASE("flash_attention: dropout agrees with the definition at every edge of its blocks") {
  // As without dropout, at the edges of the tiles of 16 × 16, too, by which weights are drawn.
  for (const bool causal : {false, true}) {
    for (const std::int64_t n : {1, 8, 15, 16, 17, 64, 65, 129, 257})
      check_definition({1, n, n, 2, 8}, drops(0.2, causal), std::uint64_t(n));
    for (const std::int64_t d : {1, 17, 64, 80, 128, 131})
      check_definition({2, 67, 67, 1, d}, drops(0.1, causal), std::uint64_t(d));
    for (const auto& [a, b] :
         Pairs{{1, 59}, {1, 270}, {61, 3}, {61, 131}, {64, 59}, {130, 64}, {130, 270}, {260, 59}})
      check_definition({1, a, b, 1, 6}, drops(0.4, causal), std::uint64_t(100 * a + b));
    for (const std::int64_t d : {64, 100})
      check_f32_definition({2, 400, 400, 1, d}, drops(0.2, causal), true, std::uint64_t(d));
    check_f32_definition({1, 390, 470, 1, 64}, drops(0.4, causal), false, 5);
    FlashAttentionOptions o = drops(0.9, causal);
    o.scale = -0.7;
    check_definition({2, 40, 50, 3, 7}, o, 3);
    check_definition({2, 70, 70, 2, 16}, drops(1e-9, causal), 4);
  }
}

TEST_CASE("flash_attention: dropout in bf16 agrees with the definition") {
  for (const bool causal : {false, true}) {
    for (const std::int64_t n : {1, 16, 17, 63, 64, 65, 128, 129, 200})
      check_bf16_definition({1, n, n, 2, 16}, drops(0.2, causal), n % 2 == 0);
    for (const std::int64_t d : {1, 8, 24, 33, 64, 96, 97, 128, 136})
      check_bf16_definition({2, 70, 70, 1, d}, drops(0.1, causal), d % 16 == 0);
    for (const auto& [a, b] : Pairs{{1, 60}, {50, 140}, {130, 60}, {130, 140}})
      check_bf16_definition({1, a, b, 1, 64}, drops(0.3, causal), false);
    check_bf16_definition({2, 300, 300, 3, 64}, drops(0.2, causal), true);
    check_bf16_definition({1, 150, 150, 2, 128}, drops(0.5, causal), true);
  }
}

TEST_CASE("flash_attention: gradients with dropout agree with finite differences") {
  for (const bool causal : {false, true}) {
    check_gradients(f(drops(0.3, causal)), inputs({2, 3, 3, 2, 4}, 1));
    check_gradients(f(drops(0.3, causal)), inputs({1, 20, 3, 1, 3}, 4));
    check_gradients(f(drops(0.5, causal)), inputs({1, 3, 18, 1, 5}, 7));
    check_gradients(f(drops(0.2, causal)), {randn({1, 5, 3, 2, 3}, 10)});
    check_gradients(f(drops(0.2, causal)), inputs({1, 70, 67, 1, 3}, 14));  // projections
  }
}

TEST_CASE("flash_attention: twins agree with dropout, into poisoned memory and twice") {
  for (const bool causal : {false, true})
    for (const Sizes& s : {Sizes{1, 1, 1, 1, 1}, Sizes{2, 37, 37, 3, 5}, Sizes{2, 64, 64, 4, 32},
                           Sizes{1, 129, 63, 2, 64}, Sizes{1, 65, 193, 1, 128},
                           Sizes{2, 0, 3, 2, 4}, Sizes{2, 3, 0, 2, 4}, Sizes{0, 3, 3, 2, 4}}) {
      const TwinTolerance tolerance{value_tolerance(s.head_dim, 0.25),
                                    gradient_tolerance(s.head_dim, 0.25)};
      check_twins(f(drops(0.25, causal)), inputs(s, 21), tolerance);
      if (s.length_q == s.length_k)
        check_twins(f(drops(0.25, causal)), {pack(inputs(s, 22))}, tolerance);
    }
}

TEST_CASE("flash_attention: as many weights are kept as p says, within 4 sigma, of two million") {
  const Sizes s{4, 128, 128, 32, 128};
  const double n = 4 * 32 * 128 * 128;
  for (const double p : {0.1, 0.2, 0.5, 0.9, 1e-2}) {
    const auto kept = masks(s, drops(p), devices().back(), Dtype::f32).of_y;
    const auto dropped = [&](size_t i) { return !kept[i]; };
    double once = 0;
    for (size_t i = 0; i < kept.size(); ++i) once += dropped(i);
    CHECK(std::abs(once - n * p) <= 4 * std::sqrt(n * p * (1 - p)));
    // Of two weights, also of those that share a word: the keys of one query that are 8 apart.
    for (const size_t apart : {1, 2, 8, 16, 128, 256, 1024, 1032}) {
      double both = 0, pairs = 0;
      for (size_t i = 0; i + apart < kept.size(); ++i, ++pairs)
        both += dropped(i) && dropped(i + apart);
      const bool shared = apart == 8 || apart == 1024 || apart == 1032;
      const double allowed = shared ? n * p / 256 : 0;
      CHECK(std::abs(both - pairs * p * p) <= allowed + 4 * std::sqrt(pairs * p * p));
    }
  }
}

TEST_CASE("flash_attention: without dropout nothing is drawn; with it, each call draws anew") {
  for (const Device device : devices()) {
    const Tensor qkv = randn({2, 40, 3, 2, 8}, 1, Dtype::f32, device);
    manual_seed(1);
    const auto plain = values(flash_attention(qkv));
    CHECK(values(flash_attention(qkv, {.dropout = 0})) == plain);
    CHECK(values(flash_attention(qkv, {.dropout = 1e-11})) == plain);  // p counts in steps of 2⁻³²
    CHECK(default_generator().drawn() == 0);
    const auto a = values(flash_attention(qkv, {.dropout = 0.2}));
    const auto b = values(flash_attention(qkv, {.dropout = 0.2}));
    CHECK(default_generator().drawn() == 2);
    manual_seed(1);
    CHECK(a != plain);
    CHECK(a != b);
    CHECK(values(flash_attention(qkv, {.dropout = 0.2})) == a);
    CHECK(values(flash_attention(qkv, {.dropout = 0.2, .stream = Stream{1, 1}})) == b);
  }
}

TEST_CASE("flash_attention: p of almost 1 leaves zeros, and finite numbers") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor qkv = leaf(randn({1, 70, 3, 2, 16}, 2, dtype, device));
      const Tensor y = flash_attention(qkv, drops(std::nextafter(1.0, 0.0)));
      y.backward(randn(y.shape(), 3, dtype, device));
      check_close(y, zeros(y.shape()), exact, "y");
      check_close(qkv.grad(), zeros(qkv.shape()), exact, "gradient");
      const Tensor some = flash_attention(qkv, drops(0.99));
      some.backward(randn(y.shape(), 3, dtype, device));
      for (const Tensor& x : {some.detach(), qkv.grad()})
        for (const double v : values(x)) CHECK(std::isfinite(v));
      const auto v = values(some);
      CHECK(std::count(v.begin(), v.end(), 0.0) > 0);
    }
}

TEST_CASE("flash_attention: a captured graph draws anew at each replay, as ordinary steps do") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const auto run = [&](bool captured) {
        manual_seed(7);
        Tensor x = randn({2, 70, 3, 2, 64}, 1, dtype, device);
        const auto step = [&] {
          const Tensor in = leaf(x.detach());
          const Tensor y = flash_attention(in, {.is_causal = true, .dropout = 0.3});
          y.backward(y.detach());
          x.copy_(tanh(add(x, in.grad())));
        };
        Graph graph(device, step);
        std::vector<std::vector<double>> after;
        for (int i = 0; i < 8; ++i) {
          captured ? graph.run() : step();
          after.push_back(values(x));
        }
        CHECK(graph.captured() == (captured && device.is_cuda()));
        CHECK(default_generator().drawn() == 8);
        return after;
      };
      CHECK(run(true) == run(false));
    }
}

TEST_CASE("flash_attention: recomputed, it has the same mask again") {
  for (const Device device : devices()) {
    const auto run = [&](bool again) {
      manual_seed(3);
      const Tensor qkv = leaf(randn({2, 40, 3, 2, 8}, 1, Dtype::f32, device));
      const auto attend = [](const Tensor& x) {
        return flash_attention(tanh(x), {.dropout = 0.4});
      };
      const Tensor y = again ? recompute(attend, qkv) : attend(qkv);
      y.backward(randn(y.shape(), 2, Dtype::f32, device));
      return std::pair(values(y), values(qkv.grad()));
    };
    CHECK(run(true) == run(false));
  }
}

TEST_CASE("flash_attention: a dropout outside [0, 1) is refused, and draws nothing") {
  manual_seed(1);
  for (const double p : {-0.1, 1.0, 1.5, double(NAN)})
    check_error(Kind::value, {"flash_attention: bad dropout", "[0, 1)"}, [&] {
      flash_attention(zeros({1, 2, 3, 1, 4}), {.dropout = p});
    });
  CHECK(default_generator().drawn() == 0);
}
