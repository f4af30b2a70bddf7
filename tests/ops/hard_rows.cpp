// Hard numbers of softmax and of norms: hard_numbers.h says what is promised.
#include <algorithm>

#include "hard_numbers.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Tensor softmax_of(const Tensor& x) { return softmax(x); }
Tensor log_softmax_of(const Tensor& x) { return log_softmax(x); }
Tensor layer_norm_of(const Tensor& x) { return layer_norm(x); }
Tensor rms_norm_of(const Tensor& x) { return rms_norm(x); }
Tensor l2_norm_of(const Tensor& x) { return l2_norm(x); }
Tensor l2_normalize_of(const Tensor& x) { return l2_normalize(x, {.dim = 0}); }

constexpr double third = 1. / 3, ln3 = 1.098612289, ln2 = .693147181;
constexpr float huge = 3.4e38f;
constexpr std::initializer_list<float> ninf3 = {-inff, -inff, -inff};

void check_softmax(const RowTable& table) { check_row_table("softmax", softmax_of, table); }
void check_log(const RowTable& table) { check_row_table("log_softmax", log_softmax_of, table); }

// One channel of values, as batch_norm sees it in training, with fresh running statistics.
Tensor channel_norm(const Tensor& x) {
  const Tensor mean = zeros({1}, x.options()), var = ones({1}, x.options());
  return batch_norm(reshape(x, {-1, 1}), mean, var, {}, {}, {.training = true});
}

void check_finite(const std::string& name, const std::function<Tensor(const Tensor&)>& f,
                  const std::vector<float>& row) {
  for (const Device device : devices()) {
    const Tensor x = leaf(row_of(row, device));
    const Tensor y = f(x);
    y.backward(full(y.shape(), .5, y.options()));
    for (const Tensor& t : {y, x.grad()}) {
      const auto v = values(t);
      const auto nans = std::count_if(v.begin(), v.end(), [](double e) { return std::isnan(e); });
      CHECK_MESSAGE(nans == 0, name, " of ", row.front());
    }
  }
}

}  // namespace

TEST_CASE("hard numbers: softmax") {
  for (const float c : {0.f, 1e4f, -1e4f})
    check_softmax({{c, c, c}, {third, third, third}, {-third, 0, third}});
  check_softmax({{1e4f, 0, -1e4f}, {1, 0, 0}, {0, 0, 0}});
  check_softmax({{88, 89, 90},
                 {.0900305732, .2447284711, .6652409558},
                 {-.141817094, -.140770357, .282587451}});
  check_softmax({{huge, huge, -huge}, {.5, .5, 0}, {-.25, .25, 0}});
  check_softmax({{-1e38f, 1e38f, 0}, {0, 1, 0}, {0, 0, 0}});
  check_softmax({{-inff, 0, 0}, {0, .5, .5}, {0, -.25, .25}});
  check_softmax({ninf3, {qnan, qnan, qnan}, {qnan, qnan, qnan}});
  check_softmax({{inff, 0, 0}, {qnan, qnan, qnan}, {qnan, qnan, qnan}});
}

TEST_CASE("hard numbers: log_softmax") {
  for (const float c : {0.f, 1e4f, -1e4f}) check_log({{c, c, c}, {-ln3, -ln3, -ln3}, {-1, 0, 1}});
  check_log({{1e4f, 0, -1e4f}, {0, -1e4, -2e4}, {-5, 2, 3}});
  check_log({{88, 89, 90},
             {-2.407605964, -1.407605964, -.407605964},
             {.459816561, .531629174, -.991445735}});
  check_log({{huge, huge, -huge}, {-ln2, -ln2, -inf}, {-2, -1, 3}});
  check_log({{-1e38f, 1e38f, 0}, {-2e38, 0, -1e38}, {1, -4, 3}});
  check_log({{-inff, 0, 0}, {-inf, -ln2, -ln2}, {1, -1, 0}});
  check_log({ninf3, {qnan, qnan, qnan}, {qnan, qnan, qnan}});
  check_log({{inff, 0, 0}, {qnan, qnan, qnan}, {qnan, qnan, qnan}});
}

TEST_CASE("hard numbers: a NaN, or a row of nothing but -inf, spoils its own row of softmax") {
  for (const Device device : devices())
    for (const bool log : {false, true}) {
      const Tensor x = leaf(tensor<float>(
          {0, 0, 0, 1, qnanf, 2, 0, 0, 0, -inff, -inff, -inff, 0, 0, 0}, {5, 3}, device));
      const Tensor y = log ? log_softmax(x) : softmax(x);
      y.backward(ones_like(y));
      const double v = log ? -ln3 : third;
      std::vector<Expected> expected(15, v), gradient(15, 0);
      for (const int row : {1, 3})
        for (int i = 0; i < 3; ++i)
          expected[size_t(3 * row + i)] = gradient[size_t(3 * row + i)] = qnan;
      check_expected(y, expected, "rows");
      check_expected(x.grad(), gradient, "gradient", {0, 1e-6});
    }
}

TEST_CASE("hard numbers: softmax and norms of nothing are nothing") {
  for (const Device device : devices())
    for (const Shape& shape : {Shape{0, 3}, Shape{3, 0}, Shape{0}}) {
      for (const auto& f : {softmax_of, log_softmax_of, layer_norm_of, rms_norm_of}) {
        const Tensor x = leaf(zeros(shape, {.device = device}));
        const Tensor y = f(x);
        CHECK(y.shape() == shape);
        y.backward(zeros_like(y));
        CHECK(x.grad().shape() == shape);
      }
    }
}

TEST_CASE("hard numbers: layer_norm") {
  const std::vector<Expected> of_eps = {-474.341649, -158.113883, 158.113883, 474.341649};
  const auto check = [](const RowTable& t) { check_row_table("layer_norm", layer_norm_of, t); };
  check({{0, 0, 0, 0}, {0, 0, 0, 0}, of_eps, {0, 0}});
  check({{5, 5, 5, 5}, {0, 0, 0, 0}, of_eps, {0, 0}});
  check({{1e-30f, 2e-30f, 3e-30f, 4e-30f},
         {-4.74341651e-28, -1.58113884e-28, 1.58113884e-28, 4.74341651e-28},
         of_eps});
  // Rows far from 0: what the distance costs f32 is 2e-6 · max |x| / σ at most, and here nothing.
  check({{10000, 10001, 10002, 10003},
         {-1.34163542, -.447211807, .447211807, 1.34163542},
         {-1.07329961e-5, -3.57766476e-6, 3.57766658e-6, 1.07329979e-5},
         {},
         {0, 2e-3}});
  check({{16777216, 16777216, 16777218, 16777220},
         {-.904532389, -.904532389, .301510796, 1.50755398},
         {-.328922962, .274098631, .109640988, -.0548166567}});
  check({{1e8f, 1e8f, 1e8f, 1e8f + 8},
         {-.577350029, -.577350029, -.577350029, 1.73205009},
         {-.288675134, 0, .288674894, 0}});
  check({{3}, {0}, {0}, {0, 0}, {0, 0}});
  for (const float size : {1e20f, 1e30f})  // f32 cannot hold the variance: ±1, or PyTorch's 0
    for (const Device device : devices()) {
      const Tensor x = leaf(row_of({size, -size, size, -size}, device));
      const Tensor y = layer_norm(x);
      for (const double v : values(y)) CHECK((std::abs(std::abs(v) - 1) <= 1e-6 || v == 0));
      y.backward(row_of({1, 2, 3, 4}, device));
      check_expected(x.grad(), {0, 0, 0, 0}, "layer_norm: gradient of a large row", {0, 1e-6});
    }
  check_row_table("layer_norm without eps",
                  [](const Tensor& x) { return layer_norm(x, {}, {}, {.eps = 0}); },
                  {{5, 5, 5}, {qnan, qnan, qnan}, {qnan, qnan, qnan}});
}

TEST_CASE("hard numbers: an infinity or a NaN spoils its own row of a norm") {
  for (const Device device : devices())
    for (const float bad : {inff, -inff, qnanf})
      for (const bool layer : {true, false}) {
        const Tensor x = leaf(tensor<float>({1, 2, 3, 4, bad, 6, 1, 2, 3}, {3, 3}, device));
        const Tensor y = layer ? layer_norm(x) : rms_norm(x);
        y.backward(ones_like(y));
        const auto a = values(y), d = values(x.grad());
        for (size_t i = 0; i < a.size(); ++i) {
          const bool spoilt = i / 3 == 1;
          if (layer) CHECK(std::isnan(a[i]) == spoilt);
          if (layer || std::isnan(bad)) CHECK(std::isnan(d[i]) == spoilt);
          if (!spoilt) CHECK((std::isfinite(a[i]) && std::isfinite(d[i])));
        }
      }
}

TEST_CASE("hard numbers: rms_norm") {
  const auto check = [](const RowTable& t) { check_row_table("rms_norm", rms_norm_of, t); };
  check({{0, 0, 0}, {0, 0, 0}, {1000, 2000, 3000}, {0, 0}});
  check({{1e-25f, 1e-25f, 1e-25f}, {1e-22, 1e-22, 1e-22}, {1000, 2000, 3000}});
  for (const Device device : devices()) {  // the square overflows f32: 1, or PyTorch's 0
    const Tensor x = leaf(row_of({1e20f, 1e20f, 1e20f}, device));
    const Tensor y = rms_norm(x);
    for (const double v : values(y)) CHECK((std::abs(v - 1) <= 1e-6 || v == 0));
    y.backward(row_of({1, 2, 3}, device));
    check_expected(x.grad(), {0, 0, 0}, "rms_norm: gradient of a large row", {0, 1e-6});
  }
}

TEST_CASE("hard numbers: batch_norm of one channel, in training") {
  const auto check = [](const RowTable& t) { check_row_table("batch_norm", channel_norm, t); };
  check({{5, 5, 5}, {0, 0, 0}, {-316.227766, 0, 316.227766}, {0, 1e-4}, {digits, 1e-3}});
  check({{1, 3}, {-.999995, .999995}, {-4.999925e-6, 4.999925e-6}, {}, {0, 1e-6}});
  check(
      {{10000, 10001, 10002}, {-1.22473569, 0, 1.22473569}, {0, 0, 0}, {digits, 1e-6}, {0, 2e-3}});
  check({{inff, 0, 1}, {qnan, qnan, qnan}, {qnan, qnan, qnan}});
  struct Moved {
    std::vector<float> x;
    double mean, var;
  };
  const std::vector<Moved> moves = {
      {{5, 5, 5}, .5, .9}, {{1, 3}, .2, 1.1}, {{10000, 10001, 10002}, 1000.1, 1}};
  for (const Device device : devices())
    for (const Moved& m : moves) {  // the running variance is the unbiased one
      const Tensor mean = zeros({1}, {.device = device}), var = ones({1}, {.device = device});
      const Tensor x = reshape(row_of(m.x, device), {-1, 1});
      batch_norm(x, mean, var, {}, {}, {.training = true});
      check_expected(mean, {m.mean}, "running mean", {1e-6, 0});
      check_expected(var, {m.var}, "running variance", {1e-6, 0});
    }
}

TEST_CASE("hard numbers: batch_norm with a running variance of 0") {
  check_row_table("batch_norm",
                  [](const Tensor& x) {
                    return batch_norm(reshape(x, {-1, 1}), zeros({1}, x.options()),
                                      zeros({1}, x.options()), {}, {});
                  },
                  {{5}, {1581.13883}, {316.227766}});
}

TEST_CASE("hard numbers: l2_norm and l2_normalize") {
  const auto norm = [](const RowTable& t) { check_row_table("l2_norm", l2_norm_of, t); };
  norm({{0, 0}, {0}, {0, 0}, {0, 0}, {0, 0}});
  norm({{3, 4}, {5}, {.6, .8}, {0, 0}});
  norm({{1e20f, 1e20f}, {1.41421356e20}, {.707106781, .707106781}});
  norm({{1e-30f, 1e-30f}, {1.41421356e-30}, {.707106781, .707106781}});
  norm({{inff, 1}, {inf}, {or_nan(1), 0}});
  norm({{qnanf, 1}, {qnan}, {qnan, qnan}});
  const auto unit = [](const RowTable& t) { check_row_table("l2_normalize", l2_normalize_of, t); };
  unit({{0, 0}, {0, 0}, {1e12, 2e12}, {0, 0}});
  unit({{3, 4}, {.6, .8}, {-.064, .048}});
  unit({{1e-13f, 0}, {.0999999982, 0}, {1e12, 2e12}});
  unit({{1e20f, 1e20f}, {.707106781, .707106781}, {0, 0}});
}

TEST_CASE("hard numbers: no finite row makes a softmax or a norm NaN, forward or backward") {
  const std::vector<std::pair<const char*, std::function<Tensor(const Tensor&)>>> ops = {
      {"softmax", softmax_of},       {"log_softmax", log_softmax_of},
      {"layer_norm", layer_norm_of}, {"rms_norm", rms_norm_of},
      {"l2_norm", l2_norm_of},       {"l2_normalize", l2_normalize_of},
      {"batch_norm", channel_norm}};
  for (const auto& [name, f] : ops)
    for (const float size : {1e-45f, 1e-38f, 1e-20f, 1.f, 1e10f, 1e19f, 1e30f, huge}) {
      check_finite(name, f, {size, -size});
      check_finite(name, f, {size, size, size, 0, -size});
      check_finite(name, f, {-size, -size, -size});
      check_finite(name, f, {size, 1, -1, size / 2, 0, 0, 1e-30f});
      std::vector<float> wide(20'011, size);  // beyond the registers of a block
      wide.front() = -size;
      check_finite(name, f, wide);
    }
}
