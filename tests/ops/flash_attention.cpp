#include <omp.h>
#include <sys/resource.h>

#include "attention.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("flash_attention: literal values") {
  for (const Device device : devices()) {
    // Scores 0 and log 3 weigh the values 1 and 5 by 1/4 and 3/4.
    const Tensor q = tensor<double>({1}, {1, 1, 1, 1}, device);
    const Tensor k = tensor<double>({0, std::log(3.0)}, {1, 2, 1, 1}, device);
    const Tensor v = tensor<double>({1, 5}, {1, 2, 1, 1}, device);
    const Tolerance close{1e-14, 0};
    check_close(flash_attention(q, k, v), tensor<double>({4}, {1, 1, 1, 1}), close, "two keys");
    check_close(flash_attention(q, k, v, {.is_causal = true}), tensor<double>({1}, {1, 1, 1, 1}),
                exact, "the first key only");
    check_close(flash_attention(q, k, v, {.scale = 2}), tensor<double>({4.6}, {1, 1, 1, 1}), close,
                "scale 2");
    check_close(flash_attention(q, k, v, {.scale = 0}), tensor<double>({3}, {1, 1, 1, 1}), close,
                "scale 0");
  }
}

TEST_CASE("flash_attention: one token gives its value, and passes its gradient on") {
  for (const Device device : devices()) {
    const Tensor qkv = leaf(randn({2, 1, 3, 2, 4}, 1, Dtype::f32, device));
    const Tensor y = flash_attention(qkv);
    check_close(y, part(qkv.detach(), 2), exact, "y");
    const Tensor dy = randn({2, 1, 2, 4}, 2, Dtype::f32, device);
    y.backward(dy);
    check_close(part(qkv.grad(), 2), dy, exact, "dv");
    check_close(part(qkv.grad(), 0), zeros({2, 1, 2, 4}), {1e-6, 0}, "dq");
  }
}

TEST_CASE("flash_attention: gradients agree with finite differences") {
  for (const bool causal : {false, true}) {
    const FlashAttentionOptions o{.is_causal = causal};
    check_gradients(f(o), inputs({2, 3, 3, 2, 4}, 1));
    check_gradients(f(o), inputs({1, 5, 3, 1, 3}, 4));
    check_gradients(f(o), inputs({1, 3, 6, 1, 5}, 7));
    check_gradients(f(o), {randn({1, 5, 3, 2, 3}, 10)});
    check_gradients(f({.is_causal = causal, .scale = 0.3}), inputs({1, 9, 9, 1, 2}, 11));
    check_gradients(f(o), inputs({1, 70, 67, 1, 3}, 14));  // projections
  }
}

// Blocks own 8 to 128 rows, powers of two, and meet 8 to 64 others at a time; on the CPU the rows
// of a task are 256. Under compute-sanitizer each shape takes seconds: none is for an edge that
// another one has.
TEST_CASE("flash_attention: agrees with the definition at every edge of its blocks") {
  for (const bool causal : {false, true}) {
    const FlashAttentionOptions o{.is_causal = causal};
    // One position; one more than the least block; then one less than whole blocks, whole ones, and
    // one more: 65 is that of all up to 64.
    for (const std::int64_t n : {1, 9, 63, 64, 65, 127, 128, 129})
      check_definition({1, n, n, 2, 8}, o, std::uint64_t(n));
    // One element; a CPU's register, one less and one more; the widths that a GPU's blocks have,
    // or packs that are no such width; and the widest, with no whole pack.
    for (const std::int64_t d : {1, 15, 16, 17, 32, 64, 80, 128, 131})
      check_definition({2, 67, 67, 1, d}, o, std::uint64_t(d));
    // A CPU's task, one more position, and another one of several tiles.
    for (const std::int64_t n : {256, 257, 331}) check_definition({1, n, n, 1, 5}, o, 9);
  }
}

// Long enough for the tensor cores of a GPU that has such of float32's exactness: blocks of 128
// rows, or of 192 where these leave less undone, meet tiles of 64.
TEST_CASE("flash_attention: long wide heads agree with the definition at edges of their blocks") {
  for (const bool causal : {false, true}) {
    const FlashAttentionOptions o{.is_causal = causal};
    const std::int64_t least = causal ? 384 : 193;
    // The least; whole blocks of 128; one more, in blocks of 192; one less than a tile; whole
    // blocks of 192.
    using Lengths = std::vector<std::int64_t>;
    for (const std::int64_t n :
         causal ? Lengths{384, 512, 513, 447, 576} : Lengths{193, 256, 257, 319, 384})
      check_f32_definition({1, n, n, 1, 64}, o, n % 2 == 0, std::uint64_t(n));
    // The least width; one less than the narrower blocks', one more, and the same of the wider.
    for (const std::int64_t d : {33, 63, 65, 127, 128})
      check_f32_definition({1, least + 8, least + 8, 1, d}, o, d % 2 == 0, std::uint64_t(d));
    // More queries than keys, by more than a tile, and more keys than queries.
    check_f32_definition({1, least + 70, least, 1, 50}, o, false);
    check_f32_definition({1, least, least + 200, 1, 128}, o, false);
    // Several heads and sequences; a scale below 0, whose largest score is the least; all alike.
    check_f32_definition({2, 400, 400, 3, 64}, o, true, 5);
    check_f32_definition({1, 390, 450, 2, 128}, {.is_causal = causal, .scale = -0.1}, false, 6);
    check_f32_definition({1, 400, 400, 1, 64}, {.is_causal = causal, .scale = 0}, true, 7);
  }
}

// Class E of each sum, also where all products have one sign: neither the scores nor what a row
// sees of thousands of keys may drift.
TEST_CASE("flash_attention: long sums of positive numbers stay float32's") {
  for (const std::int64_t d : {64, 128}) {
    const Sizes s{1, 200, 3000, 1, d};
    Generator generator(55);
    Tensors in;
    for (const Shape& shape : {s.q(), s.k(), s.k()})
      in.push_back(uniform(shape, 0, 1, generator, {Dtype::f64}).to(Dtype::f32));
    const Tensor dy = uniform(s.q(), 0, 1, generator, {Dtype::f64}).to(Dtype::f32);
    const Reference expected(s, in, dy, {});
    // Σ|q k| · scale is √d / 4 here, and P has that error; the values are about 1.
    const double of_p = long_sum * (1 + std::sqrt(double(d)) / 4);
    const Tolerance close{1e-7 + of_p, 0}, of_sums{1e-7, 2 * of_p, true};
    for (const Device device : devices()) {
      Tensors there;
      for (const Tensor& x : in) there.push_back(leaf(x.to(device).detach().clone()));
      const Tensor y = f()(there);
      y.backward(dy.to(device));
      check_close(y, tensor(expected.y, s.q()), close, "y");
      check_close(there[2].grad(), tensor(expected.dv, s.k()), of_sums, "dv");
    }
  }
}

TEST_CASE("flash_attention: TF32, where it is allowed, is off by its rounding at most") {
  allow_tf32(true);
  for (const bool causal : {false, true})
    for (const Sizes& s : {Sizes{1, 390, 390, 2, 64}, Sizes{2, 400, 500, 1, 100}}) {
      const Tensors in = inputs(s, 61, Dtype::f32);
      const Tensor dy = randn(s.q(), 64, Dtype::f32);
      const FlashAttentionOptions o{.is_causal = causal};
      // 2⁻¹¹ of what is multiplied, scores of 3 and more among it.
      const Tolerance close{1.0 / 256, 1.0 / 512};
      const DefinitionCheck check{in, dy, o, {s, in, dy, o}, close, {1.0 / 128, 1.0 / 256, true}};
      for (const Device device : devices()) check(Dtype::f32, device, false);
    }
  allow_tf32(false);
}

TEST_CASE("flash_attention: as many queries as keys or not, causal at the top left") {
  // One query, of a few keys, more than a tile and more than a CPU's task; one key; then about as
  // many of both, and far more of one, in a tile, at its end, and in several.
  for (const bool causal : {false, true})
    for (const auto& [a, b] : Pairs{{1, 3},
                                    {1, 67},
                                    {1, 270},
                                    {5, 1},
                                    {130, 1},
                                    {8, 16},
                                    {61, 59},
                                    {64, 67},
                                    {65, 64},
                                    {61, 131},
                                    {130, 59},
                                    {130, 131},
                                    {64, 270},
                                    {260, 3},
                                    {260, 64},
                                    {260, 270}})
      check_definition({1, a, b, 1, 6}, {.is_causal = causal}, std::uint64_t(100 * a + b));
  check_definition({2, 40, 50, 3, 7}, {.scale = -0.7}, 3);
  check_definition({1, 20, 70, 1, 4}, {.is_causal = true, .scale = 0}, 4);
}

TEST_CASE("flash_attention: twins agree, into poisoned memory and twice") {
  for (const bool causal : {false, true})
    for (const Sizes& s : {Sizes{1, 1, 1, 1, 1}, Sizes{2, 37, 37, 3, 5}, Sizes{2, 64, 64, 4, 32},
                           Sizes{1, 129, 63, 2, 64}, Sizes{1, 65, 193, 1, 128},
                           Sizes{1, 400, 400, 2, 64}, Sizes{1, 390, 450, 1, 100}}) {
      const TwinTolerance tolerance{value_tolerance(s.head_dim), gradient_tolerance(s.head_dim)};
      check_twins(f({.is_causal = causal}), inputs(s, 21), tolerance);
      if (s.length_q == s.length_k)
        check_twins(f({.is_causal = causal}), {pack(inputs(s, 22))}, tolerance);
    }
}

TEST_CASE("flash_attention: nothing to see gives 0, and no gradient") {
  for (const bool causal : {false, true})
    for (const Sizes& s : {Sizes{2, 3, 0, 2, 4}, Sizes{2, 0, 3, 2, 4}, Sizes{0, 3, 3, 2, 4},
                           Sizes{2, 3, 3, 0, 4}, Sizes{2, 0, 0, 2, 4}, Sizes{1, 300, 0, 1, 20}}) {
      check_twins(f({.is_causal = causal}), inputs(s, 23), {exact, exact});
      for (const Device device : devices()) {
        Tensors in = inputs(s, 23, Dtype::f32);
        for (Tensor& x : in) x = leaf(x.to(device).detach().clone());
        const Tensor y = f({.is_causal = causal})(in);
        y.backward(ones(s.q(), {.device = device}));
        if (s.length_k == 0) check_close(y, zeros(s.q()), exact, "y");
        for (const Tensor& x : in)
          if (s.length_q == 0 || s.length_k == 0)
            check_close(x.grad(), zeros(x.shape()), exact, "gradient");
      }
      if (s.length_q == s.length_k)
        check_twins(f({.is_causal = causal}), {pack(inputs(s, 24))}, {exact, exact});
    }
}

TEST_CASE("flash_attention: memory grows with the length, not with its square") {
  const std::int64_t n = 1 << 14;  // all scores would be 1 GiB
  const auto resident = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return std::int64_t{usage.ru_maxrss} * 1024;
  };
  for (const Device device : devices()) {
    const Tensor qkv = leaf(randn({1, n, 3, 1, 1}, 31, Dtype::f32, device));
    const Tensor dy = randn({1, n, 1, 1}, 32, Dtype::f32, device);
    reset_peak(device);
    const std::int64_t before = memory_stats(device).live, host = resident();
    flash_attention(qkv, {.is_causal = true}).backward(dy);
    // y, lse, dqkv, and room for two more of the size of y.
    CHECK(memory_stats(device).peak - before <= 4 * n * (1 + 1 + 3 + 2));
    if (!device.is_cuda()) CHECK(resident() - host <= (std::int64_t{64} << 20));
  }
}

TEST_CASE("flash_attention: the same bits on any number of threads") {
  const int most = omp_get_max_threads();
  for (const FlashAttentionOptions& o :
       {FlashAttentionOptions{}, FlashAttentionOptions{.is_causal = true},
        FlashAttentionOptions{.is_causal = true, .dropout = 0.3, .stream = Stream{7, 5}}})
    for (const Sizes& s : {Sizes{3, 64, 64, 3, 16}, Sizes{1, 600, 600, 1, 20},
                           Sizes{1, 290, 700, 2, 8}, Sizes{1, 700, 290, 2, 8}}) {
      const auto run = [&](int threads) {
        omp_set_num_threads(threads);
        Tensors in = inputs(s, 33, Dtype::f32);
        for (Tensor& x : in) x = leaf(x);
        const Tensor y = f(o)(in);
        y.backward(randn(s.q(), 34, Dtype::f32));
        return std::tuple(values(y), values(in[0].grad()), values(in[1].grad()),
                          values(in[2].grad()));
      };
      const auto one = run(1);
      for (const int threads : {2, 3, 5}) CHECK(run(threads) == one);
    }
  omp_set_num_threads(most);
}

TEST_CASE("flash_attention: one tensor may be query, key and value") {
  for (const Device device : devices()) {
    const Tensor x = leaf(randn({2, 9, 2, 4}, 35, Dtype::f64, device));
    const Tensor dy = randn({2, 9, 2, 4}, 36, Dtype::f64, device);
    flash_attention(x, x, x).backward(dy);
    Tensors own;
    for (int i = 0; i < 3; ++i) own.push_back(leaf(x.detach().clone()));
    f()(own).backward(dy);
    std::vector<double> sum(size_t(x.numel()));
    for (const Tensor& part : own)
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += values(part.grad())[i];
    check_close(x.grad(), tensor(sum, x.shape()), {1e-14, 1e-14}, "dx");
  }
}

TEST_CASE("flash_attention: bf16 computes in f32 and rounds the results") {
  const Sizes s{2, 40, 40, 2, 16};
  for (const Device device : devices())
    for (const bool packed : {false, true}) {
      const auto run = [&](Dtype dtype) {
        Tensors in = inputs(s, 37, Dtype::bf16);
        if (packed) in = {pack(in)};
        for (Tensor& x : in) x = leaf(x.to(dtype).to(device).detach().clone());
        const Tensor y = f({.is_causal = true})(in);
        y.backward(randn(s.q(), 38, Dtype::bf16).to(dtype).to(device));
        Tensors out{y.detach()};
        for (const Tensor& x : in) out.push_back(x.grad());
        return out;
      };
      const Tensors wide = run(Dtype::f64), got = run(Dtype::bf16);
      // y is rounded, and D is made of the rounded one; on the GPU P and dS are rounded as well.
      const bool gpu = device.is_cuda();
      check_close(got[0], wide[0], {gpu ? 1.0 / 128 : 1e-6, 1.0 / 255}, "y");
      for (size_t i = 1; i < got.size(); ++i) {
        CHECK(got[i].dtype() == Dtype::bf16);
        check_close(got[i], wide[i], {gpu ? 1.0 / 32 : 1.0 / 128, 1.0 / 255}, "gradient");
      }
    }
}

// Blocks own 128 rows, or 192, and meet tiles of 32, 64 or 128.
TEST_CASE("flash_attention: bf16 agrees with the definition at every edge of its blocks") {
  for (const bool causal : {false, true}) {
    const FlashAttentionOptions o{.is_causal = causal};
    for (const std::int64_t n : {1, 17, 63, 64, 65, 127, 128, 129, 200})
      check_bf16_definition({1, n, n, 2, 16}, o, n % 2 == 0);
    // Rows that begin at 16 bytes, which Hopper's own kernels take up to 128, and others, of each
    // width that blocks have; the widest of both kinds belong to the kernels of every type.
    for (const std::int64_t d : {8, 24, 64, 72, 128, 136, 1, 33, 71, 97, 131})
      check_bf16_definition({2, 70, 70, 1, d}, o, d % 16 == 0);
    for (const auto& [a, b] :
         Pairs{{1, 1}, {1, 140}, {50, 1}, {50, 60}, {64, 64}, {64, 140}, {130, 60}, {130, 140}})
      check_bf16_definition({1, a, b, 1, 64}, o, false);
    // Several heads and sequences; many tiles of either side, in both widths; 192 rows a block.
    check_bf16_definition({2, 300, 300, 3, 64}, o, true);
    check_bf16_definition({1, 500, 400, 1, 64}, o, false);
    check_bf16_definition({1, 200, 600, 1, 128}, o, false);
    check_bf16_definition({1, 400, 400, 1, 88}, o, true);
    check_bf16_definition({1, 4100, 300, 1, 8}, o, false);
    check_bf16_definition({1, 33, 150, 2, 128}, {.is_causal = causal, .scale = -0.3}, false);
    check_bf16_definition({1, 40, 40, 1, 8}, {.is_causal = causal, .scale = 0}, false);
  }
}

// More heads than a GPU's blocks meet at once, and than stay in its cache; or one of them odd.
TEST_CASE("flash_attention: a sequence has the same bits however many others there are") {
  const auto check = [](const Sizes& s, Dtype dtype, bool odd) {
    for (const bool causal : {false, true})
      for (const Device device : devices()) {
        Tensors whole = inputs(s, 51, dtype);
        if (odd) whole[1].data<float>()[s.length_k * s.heads * s.head_dim] = NAN;  // sequence 1
        const auto run = [&](std::int64_t first, std::int64_t last) {
          Tensors in = whole;
          for (Tensor& x : in) x = leaf(slice(x, 0, first, last).to(device).detach().clone());
          const Tensor y = f({.is_causal = causal})(in);
          y.backward(slice(randn(s.q(), 54, dtype), 0, first, last).to(device));
          return Tensors{y.detach(), in[0].grad(), in[1].grad(), in[2].grad()};
        };
        const Tensors all = run(0, s.batch);
        for (const std::int64_t i : {std::int64_t{0}, s.batch / 3, s.batch - 1}) {
          const Tensors alone = run(i, i + 1);
          for (size_t k = 0; k < all.size(); ++k)
            CHECK(values(slice(all[k], 0, i, i + 1)) == values(alone[k]));
        }
      }
  };
  check({23, 200, 200, 12, 16}, Dtype::bf16, false);
  check({10, 40, 4096, 7, 16}, Dtype::bf16, false);
  check({10, 4096, 40, 7, 16}, Dtype::bf16, false);
  for (const bool odd : {false, true}) check({12, 390, 400, 12, 40}, Dtype::f32, odd);
}

TEST_CASE("flash_attention: what does not fit is refused") {
  const Tensor q = zeros({2, 3, 4, 5});
  const auto refused = [&](Kind kind, const std::vector<std::string>& parts, const Tensor& k,
                           const Tensor& v) {
    check_error(kind, parts, [&] { flash_attention(q, k, v); });
  };
  refused(Kind::shape, {"flash_attention: k has the wrong rank", "got [2,3,20]"}, zeros({2, 3, 20}),
          q);
  refused(Kind::shape, {"flash_attention: q [2,3,4,5] and k", "got [2,3,4,6]", "[2,length,4,5]"},
          zeros({2, 3, 4, 6}), q);
  refused(Kind::shape, {"flash_attention: q [2,3,4,5] and k", "got [2,3,2,5]"}, zeros({2, 3, 2, 5}),
          q);
  refused(Kind::shape, {"flash_attention: q [2,3,4,5] and v", "got [1,3,4,5]"}, q,
          zeros({1, 3, 4, 5}));
  refused(Kind::shape, {"flash_attention: k [2,3,4,5] and v differ in length", "got [2,7,4,5]"}, q,
          zeros({2, 7, 4, 5}));
  refused(Kind::dtype, {"flash_attention: q and v differ in dtype"}, q,
          zeros({2, 3, 4, 5}, {.dtype = Dtype::f64}));
  check_error(Kind::dtype, {"flash_attention: q must be floating; got i32"}, [&] {
    const Tensor i = zeros({2, 3, 4, 5}, {.dtype = Dtype::i32});
    flash_attention(i, i, i);
  });
  check_error(Kind::shape, {"flash_attention: q has the wrong rank; got [3]"},
              [&] { flash_attention(zeros({3}), q, q); });
  check_error(Kind::shape, {"flash_attention: qkv has the wrong shape", "[batch,length,3,"}, [&] {
    flash_attention(zeros({2, 3, 2, 4, 5}));
  });
  check_error(Kind::shape, {"flash_attention: qkv has the wrong shape"},
              [&] { flash_attention(q); });
  check_error(Kind::shape, {"flash_attention: heads without elements", "got [2,3,4,0]"}, [] {
    const Tensor none = zeros({2, 3, 4, 0});
    flash_attention(none, none, none);
  });
  for (const double scale : {double(NAN), inf})
    check_error(Kind::value, {"flash_attention: scale must be finite"},
                [&] { flash_attention(q, q, q, {.scale = scale}); });
  for (const Device device : devices())
    if (device.is_cuda())
      check_error(Kind::limit, {"flash_attention: head_dim is too large for the GPU; got 257"}, [] {
        const Tensor wide = zeros({1, 1, 1, 257}, {.device = cuda_device});
        flash_attention(wide, wide, wide);
      });
}
