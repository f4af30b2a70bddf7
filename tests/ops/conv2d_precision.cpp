// How exact sums are, and what becomes of numbers that are not finite.
#include "conv2d.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// Long sums of positive numbers, whose worst of millions the rounding of each product alone may
// bring beyond class E. Sums that are cut instead of rounded are all too small.
void check_unbiased(const Tensor& got, const Tensor& reference, const std::string& what) {
  const auto a = values(got), b = values(reference);
  double bias = 0, noise = 0, power = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    bias += (a[i] - b[i]) / b[i] / static_cast<double>(a.size());
    noise += (a[i] - b[i]) * (a[i] - b[i]);
    power += b[i] * b[i];
  }
  INFO(what);
  CHECK(std::abs(bias) <= 6 * 0x1p-24);
  CHECK(noise <= 1e-12 * power);
}

// y, dx and dw of positive numbers, the same ones in every dtype.
Tensors of_positive(const Conv2dCase& c, Dtype dtype, Device where) {
  const auto positive = [&](const Shape& shape, std::uint64_t seed) {
    Generator g(seed);
    return uniform(shape, 0.5, 1, g).to(dtype).clone().to(where);
  };
  const Tensor x = leaf(positive(c.x, 15)), w = leaf(positive(c.w, 16));
  const Tensor y = conv2d(x, w, {}, c.options);
  y.backward(positive(y.shape(), 17));
  return {y.detach(), x.grad(), w.grad()};
}

void check_long_sums(const Tensors& got, const Tensors& reference) {
  for (size_t i = 0; i < got.size(); ++i)
    check_close(got[i], reference[i], {1e-7, long_sum}, "result " + std::to_string(i));
}

}  // namespace

// Over channels, a million sums in dx; and, in gradients of weights, over large images, and over
// many whose channels are by themselves.
TEST_CASE("conv2d: sums of thousands of positive terms keep class E") {
  const Conv2dCase all[] = {{{8, 400, 18, 18}, {20, 400, 3, 3}, {}},
                            {{1, 4, 700, 700}, {4, 4, 3, 3}, {}},
                            {{6000, 8, 4, 4}, {8, 1, 3, 3}, {.groups = 8}}};
  for (const Device device : devices())
    for (const Conv2dCase& c : all)
      check_long_sums(of_positive(c, Dtype::f32, device), of_positive(c, Dtype::f64, cpu_device));
}

// So many weights, of few filters, that there is enough to do for a GPU without slices of pixels.
TEST_CASE("conv2d: a gradient of many weights keeps class E") {
  if (gpu_missing()) return;
  const Conv2dCase c = {{8, 1024, 33, 33}, {16, 1024, 3, 3}, {}};
  check_long_sums(of_positive(c, Dtype::f32, cuda_device), of_positive(c, Dtype::f64, cuda_device));
}

TEST_CASE("conv2d: a NaN or infinity reaches exactly the outputs whose window sees it") {
  for (const Device device : devices()) {
    auto v = std::vector<float>(2 * 6 * 7, 1.f);
    v[2 * 7 + 3] = INFINITY;  // row 2, column 3 of the first channel
    const Tensor x = tensor<float>(v, {1, 2, 6, 7}, device);
    for (const std::int64_t filters : {1, 20}) {
      const auto y = values(conv2d(x, ones({filters, 2, 3, 3}, {.device = device})));
      for (std::int64_t k = 0; k < filters; ++k)
        for (int p = 0; p < 4; ++p)
          for (int q = 0; q < 5; ++q) {
            const bool sees = p <= 2 && q >= 1 && q <= 3;
            CHECK(y[static_cast<size_t>((k * 4 + p) * 5 + q)] == (sees ? INFINITY : 18.0));
          }
    }
  }
}

TEST_CASE("conv2d: large sums are those of the numbers given, on tensor cores or not") {
  if (gpu_missing()) return;
  const std::vector<Conv2dCase> large = {
      {{3, 64, 33, 30}, {72, 64, 3, 3}, {.padding = 1}},             // ragged tiles, whole slabs
      {{2, 37, 40, 41}, {83, 37, 3, 5}, {}},                         // ragged channels, odd planes
      {{8, 3, 64, 64}, {64, 3, 7, 7}, {.stride = 2, .padding = 3}},  // a stem: slabs of many taps
      // 1×1: images as matrices, rows of pixels, one image, ragged channels, few large images,
      // groups, and what skips pixels.
      {{9, 260, 14, 14}, {130, 260, 1, 1}, {}},
      {{48, 56, 24, 30}, {150, 56, 1, 1}, {}},
      {{9, 680, 7, 7}, {744, 680, 1, 1}, {}},
      {{80, 136, 4, 5}, {144, 136, 1, 1}, {}},
      {{1, 45, 60, 58}, {72, 45, 1, 1}, {}},
      {{30, 75, 15, 17}, {90, 75, 1, 1}, {}},
      {{3, 24, 128, 130}, {20, 24, 1, 1}, {}},
      {{9, 96, 28, 28}, {120, 48, 1, 1}, {.groups = 2}},
      {{9, 200, 28, 28}, {136, 200, 1, 1}, {.stride = {2, 3}}},
      {{2, 300, 9, 9}, {160, 300, 3, 3}, {.padding = 1}},  // sums in slices
      {{2, 40, 61, 50},
       {70, 20, 3, 3},
       {.stride = {2, 1}, .padding = 2, .dilation = {2, 3}, .groups = 2}},
      {{4, 24, 1, 1999}, {56, 24, 1, 9}, {.padding = {0, 4}}},  // one row
      {{3, 65, 40, 40}, {8, 65, 4, 4}, {.stride = 4}},          // few filters, stride = kernel
      // What Hopper shifts instead: ragged tiles of each kind, no padding, rows, gaps, groups.
      {{9, 18, 58, 60}, {24, 18, 3, 3}, {.padding = 1}},
      {{11, 20, 55, 53}, {70, 20, 2, 2}, {}},
      {{4, 72, 1, 7500}, {20, 72, 1, 5}, {.padding = {0, 2}}},
      {{10, 40, 50, 41}, {48, 20, 3, 2}, {.padding = {3, 1}, .dilation = {2, 3}, .groups = 2}},
      {{1, 24, 40, 1500}, {24, 24, 3, 3}, {.padding = 1}},              // a row of taps at a time
      {{20, 64, 30, 31}, {72, 64, 3, 3}, {.stride = 2, .padding = 1}},  // phases, in the gradient
      // What float32 without TF32 reads from lines, forward and backward.
      {{5, 48, 30, 29}, {116, 48, 3, 3}, {.padding = 1}},
      {{12, 460, 15, 16}, {24, 460, 3, 3}, {.stride = 2, .padding = 1}},
      {{8, 5, 40, 37}, {37, 5, 3, 3}, {.padding = 1}},  // what is packed nowhere
      // Windows that hardly overlap, as rows of a matrix.
      {{12, 3, 64, 80}, {136, 3, 16, 16}, {.stride = 16}},
      {{6, 24, 31, 40}, {40, 24, 2, 4}, {.stride = 2}},
      {{9, 8, 1, 4010}, {56, 8, 1, 40}, {.stride = {1, 16}, .padding = {0, 8}}},
      // Groups of one channel, by strips: whole packs and ragged ones of each kernel.
      {{12, 24, 62, 60}, {24, 1, 3, 3}, {.stride = 2, .padding = 1, .groups = 24}},
      {{30, 40, 29, 31}, {40, 1, 3, 3}, {.stride = 2, .padding = 1, .groups = 40}},
      {{9, 32, 29, 32}, {32, 1, 5, 5}, {.padding = 2, .groups = 32}},
      {{30, 48, 7, 7}, {48, 1, 7, 7}, {.padding = 3, .groups = 48}},
      {{8, 40, 1, 2000}, {40, 1, 1, 9}, {.padding = {0, 4}, .groups = 40}},
      {{9, 32, 29, 31}, {32, 1, 5, 5}, {.stride = 2, .padding = 2, .groups = 32}},
      {{10, 24, 36, 28}, {24, 1, 7, 7}, {.stride = 2, .padding = 3, .groups = 24}},
      {{8, 90, 1, 2001}, {90, 1, 1, 3}, {.padding = {0, 1}, .groups = 90}},
      // Groups of few channels, by planes: bands, ragged strips, several planes, wide taps, gaps.
      {{6, 24, 61, 58}, {24, 1, 3, 3}, {.padding = 2, .groups = 24}},
      {{40, 64, 14, 14}, {64, 1, 3, 3}, {.groups = 64}},
      {{5, 20, 70, 71}, {40, 1, 5, 5}, {.stride = 2, .padding = 2, .groups = 20}},
      {{4, 12, 33, 60}, {8, 3, 7, 7}, {.padding = 3, .groups = 4}},
      {{3, 16, 1, 6001}, {16, 1, 1, 31}, {.padding = {0, 15}, .groups = 16}},
      {{9, 16, 50, 52}, {16, 1, 3, 3}, {.padding = 2, .dilation = 2, .groups = 16}},
      {{35, 48, 30, 90}, {48, 1, 2, 3}, {.stride = {3, 4}, .groups = 48}},
  };
  struct Mode {
    Dtype dtype;
    bool tf32;
  };
  const Mode modes[] = {{Dtype::bf16, false}, {Dtype::f32, true}, {Dtype::f32, false}};
  for (const Conv2dCase& c : large) {
    // Numbers that bf16, and TF32, can say.
    const Tensor given[] = {randn(c.x, 23, Dtype::bf16), randn(c.w, 24, Dtype::bf16),
                            randn({c.w[0]}, 25, Dtype::bf16)};
    Tensor dy;
    const auto results = [&](Dtype as, Device device) {
      const auto made = [&](const Tensor& t) { return t.to(as).clone().to(device); };
      const Tensor x = leaf(made(given[0])), w = leaf(made(given[1])), b = leaf(made(given[2]));
      const Tensor y = conv2d(x, w, b, c.options);
      if (!dy.defined()) dy = randn(y.shape(), 26, Dtype::bf16);
      y.backward(made(dy));
      return Tensors{y.detach(), x.grad(), w.grad(), b.grad()};
    };
    const Tensors reference = results(Dtype::f64, cpu_device);
    const std::int64_t taps = c.w.product(2, 4), filters = c.w[0] / c.options.groups;
    const std::int64_t pixels = reference[0].numel() / c.w[0];
    const std::int64_t terms[] = {c.w[1] * taps, filters * taps, pixels, pixels};
    for (const auto& [dtype, tf32] : modes) {
      allow_tf32(tf32);
      poison_memory(true);
      const Tensors got = results(dtype, cuda_device), again = results(dtype, cuda_device);
      poison_memory(false);
      allow_tf32(false);
      for (size_t i = 0; i < got.size(); ++i) {
        std::ostringstream what;
        what << "result " << i << (tf32 ? " in TF32 of " : " of ") << got[0] << " from " << c.x
             << ' ' << c.w;
        Tolerance tolerance = sums(terms[i], 0).value;
        if (dtype == Dtype::bf16) tolerance.relative = 0x1p-8;  // half an ulp
        check_close(got[i], reference[i], tolerance, what.str());
        check_close(again[i], got[i], exact, what.str() + ", again");
      }
    }
  }
}

TEST_CASE("conv2d: float32 without TF32 keeps class E, and a long sum of positives its mean") {
  if (gpu_missing()) return;
  const std::vector<Conv2dCase> large = {
      {{32, 44, 30, 29}, {116, 44, 3, 3}, {.padding = 1}},  // what Hopper's tensor cores compute
      {{10, 36, 70, 66}, {40, 36, 3, 3}, {.padding = 1}},   // rows of taps at a time
      {{8, 40, 64, 65}, {40, 40, 5, 5}, {.padding = 2}},
      {{7, 48, 1, 7500}, {96, 24, 1, 3}, {.padding = {0, 2}, .dilation = 2, .groups = 2}},
      {{16, 400, 44, 44}, {40, 400, 3, 3}, {}},
  };
  for (const Conv2dCase& c : large)
    for (const double low : {-1.0, 0.5}) {
      const auto uniform_of = [&](const Shape& shape, std::uint64_t seed) {
        Generator g(seed);
        return uniform(shape, low, 1, g, {Dtype::f32, cpu_device});
      };
      const Tensor x = uniform_of(c.x, 29), w = uniform_of(c.w, 30);
      Tensor dy;
      // Numbers just below the largest, and small ones.
      constexpr double x_scale = 0x1p127, w_scale = 0x1p-100;
      const auto results = [&](Dtype as, bool scaled) {
        const auto made = [&](const Tensor& t, double scale) {
          return leaf((t.to(Dtype::f64) * (scaled ? scale : 1)).to(as).to(cuda_device));
        };
        const Tensor a = made(x, x_scale), b = made(w, w_scale);
        const Tensor y = conv2d(a, b, {}, c.options);
        if (!dy.defined()) dy = uniform_of(y.shape(), 31);
        y.backward(made(dy, 1).detach());
        return Tensors{y.detach(), a.grad(), b.grad()};
      };
      const Tensors reference = results(Dtype::f64, false);
      const std::int64_t taps = c.w.product(2, 4), filters = c.w[0] / c.options.groups;
      const std::int64_t terms[] = {c.w[1] * taps, filters * taps, dy.numel() / c.w[0]};
      for (const bool scaled : {false, true}) {
        const Tensors got = results(Dtype::f32, scaled);
        const double scales[] = {x_scale * w_scale, w_scale};  // dw would be too large
        for (size_t i = 0; i < (scaled ? 2 : 3); ++i) {
          std::ostringstream what;
          what << "result " << i << " of " << c.x << ' ' << c.w << " from " << low
               << (scaled ? ", scaled" : "");
          const Tensor unscaled = got[i].to(Dtype::f64) * (scaled ? 1 / scales[i] : 1);
          if (low > 0) {
            check_unbiased(unscaled, reference[i], what.str());
          } else {  // Σ|aᵢbᵢ| is about a quarter of the terms
            const double sum = 0.2 * static_cast<double>(terms[i]);
            check_close(unscaled, reference[i], {1e-7 + long_sum * sum, 0}, what.str());
          }
        }
      }
    }
}

TEST_CASE("conv2d: what is not finite reaches what sees it, on tensor cores or not") {
  if (gpu_missing()) return;
  constexpr std::int64_t images = 20, channels = 64, filters = 72, height = 40, width = 41;
  const Shape shape{images, channels, height, width};
  const Tensor w = randn({filters, channels, 3, 3}, 32, Dtype::f32),
               dy = randn({images, filters, height, width}, 33, Dtype::f32);
  struct Mode {
    Dtype dtype;
    bool tf32;
  };
  for (const auto& [dtype, tf32] :
       {Mode{Dtype::bf16, false}, Mode{Dtype::f32, true}, Mode{Dtype::f32, false}})
    for (const float bad : {INFINITY, -INFINITY, NAN}) {
      // In the corners of an image of one channel of x, and of another of dy.
      const auto spoiled = [&](const Tensor& t, std::int64_t plane) {
        auto v = std::vector<float>(t.data<float>(), t.data<float>() + t.numel());
        v[static_cast<size_t>(plane * height * width)] = bad;
        return tensor<float>(v, t.shape()).to(dtype).clone().to(cuda_device);
      };
      allow_tf32(tf32);
      const Tensor clean_x = randn(shape, 34, Dtype::f32);
      const Tensor weights = w.to(dtype).clone().to(cuda_device);
      const auto gradients = [&](std::int64_t x_plane, std::int64_t dy_plane) {
        const Tensor x = leaf(x_plane < 0 ? clean_x.to(dtype).clone().to(cuda_device)
                                          : spoiled(clean_x, x_plane));
        const Tensor k = leaf(weights.clone());
        const Tensor y = conv2d(x, k, {}, {.padding = 1});
        y.backward(dy_plane < 0 ? dy.to(dtype).clone().to(cuda_device) : spoiled(dy, dy_plane));
        return Tensors{y.detach(), x.grad(), k.grad()};
      };
      const Tensors by_x = gradients(7 * channels + 5, -1), by_dy = gradients(-1, 3 * filters + 2);
      allow_tf32(false);
      const auto weight = values(w), upstream = values(dy), pixels = values(clean_x);
      // value is bad · factor, or finite.
      const auto check = [&](double value, bool sees, double factor) {
        if (!sees) return std::isfinite(value);
        return std::isnan(bad) ? std::isnan(value) : value == bad * factor;
      };
      std::int64_t wrong[4] = {};
      const auto y = values(by_x[0]), dx = values(by_dy[1]);
      for (std::int64_t nc = 0, at = 0; nc < images * filters; ++nc)
        for (std::int64_t p = 0; p < height; ++p)
          for (std::int64_t q = 0; q < width; ++q, ++at) {
            const bool sees = nc / filters == 7 && p <= 1 && q <= 1;
            const auto tap = sees ? ((nc % filters * channels + 5) * 3 + 1 - p) * 3 + 1 - q : 0;
            wrong[0] += !check(y[at], sees, weight[tap]);
          }
      for (std::int64_t nc = 0, at = 0; nc < images * channels; ++nc)
        for (std::int64_t h = 0; h < height; ++h)
          for (std::int64_t v = 0; v < width; ++v, ++at) {
            const bool sees = nc / channels == 3 && h <= 1 && v <= 1;
            const auto tap = sees ? ((2 * channels + nc % channels) * 3 + h + 1) * 3 + v + 1 : 0;
            wrong[1] += !check(dx[at], sees, weight[tap]);
          }
      const auto dw_x = values(by_x[2]), dw_dy = values(by_dy[2]);
      for (std::int64_t k = 0, at = 0; k < filters; ++k)
        for (std::int64_t c = 0; c < channels; ++c)
          for (std::int64_t r = 0; r < 3; ++r)
            for (std::int64_t s = 0; s < 3; ++s, ++at) {
              const bool by_pixel = c == 5 && r <= 1 && s <= 1;
              const auto place =
                  by_pixel ? ((7 * filters + k) * height + 1 - r) * width + 1 - s : 0;
              wrong[2] += !check(dw_x[at], by_pixel, upstream[place]);
              const bool by_output = k == 2 && r >= 1 && s >= 1;
              const auto pixel =
                  by_output ? ((3 * channels + c) * height + r - 1) * width + s - 1 : 0;
              wrong[3] += !check(dw_dy[at], by_output, pixels[pixel]);
            }
      for (const std::int64_t n : wrong) CHECK(n == 0);
    }
}

TEST_CASE("conv2d: what is not finite reaches what sees it in groups of one channel") {
  if (gpu_missing()) return;
  const Shape shape{6, 24, 61, 58};
  const Tensor w = randn({24, 1, 3, 3}, 35, Dtype::f32), dy = randn(shape, 36, Dtype::f32),
               clean = randn(shape, 37, Dtype::f32);
  const auto spoiled = [&](const Tensor& t) {  // in a corner of the third channel
    auto v = std::vector<float>(t.data<float>(), t.data<float>() + t.numel());
    v[static_cast<size_t>(2 * 61 * 58)] = INFINITY;
    return tensor<float>(v, shape);
  };
  const auto gradients = [&](const Tensor& pixels, const Tensor& upstream) {
    const Tensor x = leaf(pixels.to(cuda_device)), k = leaf(w.to(cuda_device));
    const Tensor y = conv2d(x, k, {}, {.padding = 1, .groups = 24});
    y.backward(upstream.to(cuda_device));
    return Tensors{y.detach(), x.grad(), k.grad()};
  };
  const auto bad = [](const Tensor& t) {
    std::vector<size_t> places;
    const auto v = values(t);
    for (size_t i = 0; i < v.size(); ++i)
      if (!std::isfinite(v[i])) places.push_back(i);
    return places;
  };
  const size_t corner = 2 * 61 * 58;
  const std::vector<size_t> seen = {corner, corner + 1, corner + 58, corner + 59};
  const Tensors by_x = gradients(spoiled(clean), dy), by_dy = gradients(clean, spoiled(dy));
  CHECK(bad(by_x[0]) == seen);
  CHECK(bad(by_dy[1]) == seen);
  CHECK(bad(by_x[2]) == std::vector<size_t>{18, 19, 21, 22});
  CHECK(bad(by_dy[2]) == std::vector<size_t>{22, 23, 25, 26});
}

TEST_CASE("conv2d: TF32 is used where it is allowed, and only there") {
  if (gpu_missing()) return;
  const Tensor x = randn({8, 64, 20, 20}, 27, Dtype::f32),
               w = randn({64, 64, 3, 3}, 28, Dtype::f32);
  const Tensor reference = conv2d(x.to(Dtype::f64), w.to(Dtype::f64));
  const auto worst = [&](bool allowed) {
    allow_tf32(allowed);
    const auto y = values(conv2d(x.to(cuda_device), w.to(cuda_device)));
    allow_tf32(false);
    const auto expected = values(reference);
    double error = 0;
    for (size_t i = 0; i < y.size(); ++i) error = worse(error, std::abs(y[i] - expected[i]));
    return error;
  };
  const double terms = 64 * 9;
  CHECK(worst(false) <= sums(64 * 9, 0).value.absolute);
  const double rounded = worst(true);
  CHECK(rounded > 2 * sums(64 * 9, 0).value.absolute);
  CHECK(rounded <= 0x1p-10 * 0.64 * terms);  // both factors by half an ulp of 2⁻¹⁰
}
