// Hard numbers of element-wise ops: hard_numbers.h says what is promised.
#include "hard_numbers.h"

using namespace ebb;
using namespace ebb::test;

namespace {

using F = std::function<Tensor(const Tensor&)>;

// f(x), and f'(x) for the cotangent 1.
struct Point {
  float x;
  Expected y, dx;
};

void check_points(const std::string& name, const F& f, const std::vector<Point>& points,
                  Closeness of_y = {}, Closeness of_dx = {digits, 1e-41}) {
  std::vector<float> x;
  std::vector<Expected> y, dx;
  for (const Point& p : points) x.push_back(p.x), y.push_back(p.y), dx.push_back(p.dx);
  std::vector<Tensor> ys, dxs;
  poison_memory(true);
  for (const Device device : devices()) {
    const Tensor in = leaf(row_of(x, device));
    const Tensor out = f(in);
    out.backward(ones_like(out));
    check_expected(out, y, name, of_y);
    check_expected(in.grad(), dx, name + ": gradient", of_dx);
    ys.push_back(out), dxs.push_back(in.grad());
  }
  poison_memory(false);
  check_same_nans(ys, name);
  check_same_nans(dxs, name + ": gradient");
}

Tensor exact_gelu(const Tensor& x) { return gelu(x, {.approximate = "none"}); }
Tensor tanh_gelu(const Tensor& x) { return gelu(x); }

constexpr float huge = 3.4e38f;

// Both gradients of f(a, b) for the cotangent 1.
struct Pair2 {
  float a, b;
  Expected y, da, db;
};

void check_pairs(const std::string& name, const Function& f, const std::vector<Pair2>& pairs) {
  std::vector<float> a, b;
  std::vector<Expected> y, da, db;
  for (const Pair2& p : pairs) {
    a.push_back(p.a), b.push_back(p.b);
    y.push_back(p.y), da.push_back(p.da), db.push_back(p.db);
  }
  poison_memory(true);
  for (const Device device : devices()) {
    const Tensor in_a = leaf(row_of(a, device)), in_b = leaf(row_of(b, device));
    const Tensor out = f({in_a, in_b});
    out.backward(ones_like(out));
    check_expected(out, y, name);
    check_expected(in_a.grad(), da, name + ": first gradient");
    check_expected(in_b.grad(), db, name + ": second gradient");
  }
  poison_memory(false);
}

}  // namespace

TEST_CASE("hard numbers: relu, its zeros without a sign") {
  const std::vector<Point> points = {{0, 0, 0},
                                     {-0.0f, 0, 0},
                                     {-inff, 0, 0},
                                     {inff, inf, 1},
                                     {qnanf, qnan, or_nan(1)},
                                     {1e-40f, 1e-40f, 1},
                                     {-1e-40f, 0, 0},
                                     {huge, huge, 1},
                                     {-huge, 0, 0}};
  check_points("relu", relu, points, {0, 0}, {0, 0});
  for (const Device device : devices())
    for (const float v : relu(row_of({0, -0.0f, -inff, -1e-40f, -3}, device)).to_vector<float>())
      CHECK(!std::signbit(v));
}

TEST_CASE("hard numbers: sigmoid and tanh") {
  check_points("sigmoid", sigmoid,
               {{1000, 1, 0},
                {-1000, 0, 0},
                {-88, 6.054601895e-39, 6.054601895e-39},
                {-87.5f, 9.982350931e-39, 9.982350931e-39},
                {inff, 1, 0},
                {-inff, 0, 0},
                {qnanf, qnan, qnan}});
  check_points("tanh", ebb::tanh,
               {{1000, 1, 0},
                {-1000, -1, 0},
                {1e-40f, 1e-40f, 1},
                {-1e-40f, -1e-40f, 1},
                {inff, 1, 0},
                {-inff, -1, 0},
                {qnanf, qnan, qnan}});
}

TEST_CASE("hard numbers: gelu, in both forms") {
  check_points(
      "gelu exact", exact_gelu,
      {{huge, huge, 1}, {-huge, 0, 0}, {inff, inf, 1}, {-inff, 0, 0}, {qnanf, qnan, qnan}});
  check_points("gelu exact at -10", exact_gelu, {{-10, 0, 0}}, {0, 1e-21}, {0, 1e-21});
  check_points("gelu tanh", tanh_gelu,
               {{1000, 1000, 1},
                {-1000, 0, 0},
                {huge, huge, 1},
                {-huge, 0, 0},
                {inff, inf, or_nan(1)},
                {-inff, or_nan(0), or_nan(0)}});
}

// At −100 both are denormal, and the slope has a few bits only.
TEST_CASE("hard numbers: silu and mish") {
  check_points("silu", silu,
               {{-88, -5.328049668e-37, -5.267503649e-37},
                {-1000, 0, 0},
                {huge, huge, 1},
                {-huge, 0, 0},
                {inff, inf, or_nan(1)},
                {-inff, or_nan(0), or_nan(0)}});
  check_points("mish", mish,
               {{-88, -5.328049668e-37, -5.267503649e-37},
                {-100, -3.720075976e-42, -3.682875216e-42},
                {-1000, 0, 0},
                {10, 9.999999959, 1.000000078},
                {20, 20, 1},
                {huge, huge, 1},
                {-huge, 0, 0},
                {inff, inf, or_nan(1)},
                {-inff, or_nan(0), or_nan(0)}},
               {digits, 1e-41});
}

TEST_CASE("hard numbers: exp, log and sqrt") {
  check_points("exp", ebb::exp,
               {{88, 1.651636255e38, 1.651636255e38},
                {89, inf, inf},
                {-104, 0, 0},
                {-100, 3.720075976e-44, 3.720075976e-44},
                {-inff, 0, 0},
                {inff, inf, inf},
                {qnanf, qnan, qnan}});
  check_points("log", ebb::log,
               {{0, -inf, inf},
                {-0.0f, -inf, -inf},
                {-1, qnan, -1},
                {1e-40f, -92.1034037, inf},
                {inff, inf, 0},
                {qnanf, qnan, qnan}});
  check_points("sqrt", ebb::sqrt,
               {{0, 0, inf},
                {-0.0f, 0, -inf},
                {-1, qnan, qnan},
                {1e-40f, 1e-20, 5e19},
                {inff, inf, 0},
                {qnanf, qnan, qnan}},
               {1.5e-5, 0}, {1.5e-5, 0});  // 1e-40f has 5 digits
}

TEST_CASE("hard numbers: div, and zeros that neg turns over") {
  check_pairs("div", [](const Tensors& in) { return in[0] / in[1]; },
              {{0, 0, qnan, inf, qnan},
               {1, 0, inf, inf, -inf},
               {1, -0.0f, -inf, -inf, -inf},
               {inff, inff, qnan, 0, qnan},
               {1, 1e-40f, inf, inf, -inf},
               {1e-40f, 2, double(1e-40f) / 2, .5, -double(1e-40f) / 4}});
  for (const Device device : devices()) {
    const auto y = neg(row_of({0, -0.0f, inff}, device)).to_vector<float>();
    CHECK(y == std::vector<float>{-0.0f, 0, -inff});
    CHECK(std::signbit(y[0]));
    CHECK(!std::signbit(y[1]));
  }
}

TEST_CASE("hard numbers: swiglu") {
  check_pairs("swiglu", [](const Tensors& in) { return swiglu(in[0], in[1]); },
              {{1000, 2, 2000, 2, 1000},
               {-1000, 2, 0, 0, 0},
               {-88, 1, -5.328049668e-37, -5.267503649e-37, -5.328049668e-37},
               {3e38f, 2, inf, 2, double(3e38f)},
               {0, inff, qnan, inf, 0}});
}

TEST_CASE("hard numbers: images, exactly rounded, a NaN in its own pixel") {
  check_points("invert_colors", [](const Tensor& x) { return invert_colors(x); },
               {{0.1f, 1 - 0.1f, -1}, {1, 0, -1}, {qnanf, qnan, -1}, {0.3f, 1 - 0.3f, -1}}, {0, 0},
               {0, 0});
  for (const Device device : devices()) {
    const Tensor bytes = tensor<std::uint8_t>({0, 1, 128, 255}, {4}, device);
    CHECK(invert_colors(bytes).to_vector<std::uint8_t>() ==
          std::vector<std::uint8_t>{255, 254, 127, 0});
    const Tensor x =
        leaf(tensor<float>({1, qnanf, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1}, {3, 2, 2}, device));
    const Tensor y = rgb_to_grayscale(x);  // white, a NaN, red, blue
    check_expected(y, {1, qnan, .299, .114}, "rgb_to_grayscale", {1.2e-7, 0});
    y.backward(tensor<float>({1, 2, 3, 4}, {1, 2, 2}, device));
    check_expected(x.grad(),
                   {.299, .598, .897, 1.196, .587, 1.174, 1.761, 2.348, .114, .228, .342, .456},
                   "rgb_to_grayscale: gradient", {1.2e-7, 0});
  }
}

// Of every size, both signs, to the last denormal and the largest float.
TEST_CASE("hard numbers: no finite number makes an activation NaN, forward or backward") {
  std::vector<float> x = {0, -0.0f};
  for (int e = -149; e < 128; ++e)
    for (const float v : {std::ldexp(1.0f, e), std::ldexp(1.7f, e)})
      x.push_back(v), x.push_back(-v);
  const std::vector<std::pair<const char*, F>> activations = {
      {"relu", relu},
      {"sigmoid", sigmoid},
      {"tanh", ebb::tanh},
      {"silu", silu},
      {"mish", mish},
      {"gelu", tanh_gelu},
      {"exact gelu", exact_gelu},
      {"swiglu of a gate", [](const Tensor& t) { return swiglu(t, ones_like(t)); }},
      {"swiglu of a gate, up huge",
       [](const Tensor& t) { return swiglu(t, full(t.shape(), huge, t.options())); }},
      {"swiglu of an up",
       [](const Tensor& t) { return swiglu(full(t.shape(), -1000, t.options()), t); }}};
  for (const Device device : devices())
    for (const auto& [name, f] : activations) {
      const Tensor in = leaf(row_of(x, device));
      const Tensor y = f(in);
      y.backward(full(y.shape(), -3, y.options()));
      const auto a = values(y), d = values(in.grad());
      for (size_t i = 0; i < x.size(); ++i)
        CHECK_MESSAGE((!std::isnan(a[i]) && !std::isnan(d[i])), name, " of ", x[i]);
    }
}

// Exact gelu is a product of five factors, each with a rounding or two; the others keep 2.5 ulp.
TEST_CASE("hard numbers: f64 keeps its digits from the last denormal to the largest number") {
  std::vector<double> all, positive;
  for (int e = -1074; e < 1024; ++e)
    for (const double m : {1.0, 1.3, 1.49, 1.51, 1.9}) positive.push_back(std::ldexp(m, e));
  for (double v = -750; v < 750; v += 0.37) all.push_back(v);
  for (const double v : positive) all.push_back(v), all.push_back(-v);
  const auto check = [](const char* name, const F& f, const std::vector<double>& x, auto truth,
                        double relative) {
    std::vector<double> y(x.size());
    std::ranges::transform(x, y.begin(), truth);
    const auto n = static_cast<std::int64_t>(x.size());
    for (const Device device : devices())
      check_close(f(tensor<double>(x, {n}, device)), tensor<double>(y, {n}), {1e-323, relative},
                  name);
  };
  check(
      "exp", ebb::exp, all, [](double v) { return std::exp(v); }, 6e-16);
  check(
      "log", ebb::log, positive, [](double v) { return std::log(v); }, 6e-16);
  check(
      "tanh", ebb::tanh, all, [](double v) { return std::tanh(v); }, 6e-16);
  std::erase_if(all, [](double v) { return std::abs(v) > 37; });  // Φ is normal up to there
  const auto gelu_truth = [](double v) {
    constexpr long double half = 0.5L, root = 0.70710678118654752440L;
    return static_cast<double>(v * half * std::erfc(v * -root));
  };
  check("exact gelu", exact_gelu, all, gelu_truth, 1.2e-15);
}
