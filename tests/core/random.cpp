#include "ebb/core/random.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numeric>

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

bool is(const Philox& p, std::array<std::uint32_t, 4> expected) {
  return std::equal(expected.begin(), expected.end(), p.v);
}

struct Moments {
  double mean, variance, skewness, kurtosis;
};
Moments moments(const std::vector<double>& x) {
  const auto n = static_cast<double>(x.size());
  const double mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
  std::array<double, 5> m{};
  for (const double v : x)
    for (int k = 2; k < 5; ++k) m[static_cast<size_t>(k)] += std::pow(v - mean, k) / n;
  return {mean, m[2], m[3] / std::pow(m[2], 1.5), m[4] / (m[2] * m[2])};
}

}  // namespace

// kat_vectors of the Random123 package.
TEST_CASE("random: Philox 4x32-10 gives the published answers") {
  constexpr std::uint64_t ones = ~std::uint64_t{0};
  CHECK(is(philox(0, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK(is(philox(ones, ones, ones), {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK(is(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e),
           {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST_CASE("random: uniform numbers have the moments of a uniform law and keep to their range") {
  for (const Device device : devices()) {
    Generator generator(1);
    const auto x = values(uniform({1'000'000}, -1, 3, generator, {Dtype::f32, device}));
    const Moments m = moments(x);
    CHECK(std::abs(m.mean - 1) <= 4 * std::sqrt(16.0 / 12 / 1e6));
    CHECK(std::abs(m.variance - 16.0 / 12) <= 6e-3);
    CHECK(std::abs(m.skewness) <= 0.01);
    CHECK(std::abs(m.kurtosis - 1.8) <= 0.02);
    CHECK(std::ranges::min(x) >= -1);
    CHECK(std::ranges::max(x) < 3);
  }
}

TEST_CASE("random: the upper bound is never reached, though rounding would") {
  for (const Device device : devices()) {
    Generator generator(2);
    const float high = std::nextafter(1.0f, 2.0f);
    const auto x = uniform({1000}, 1, high, generator, {Dtype::f32, device}).to_vector<float>();
    CHECK(std::ranges::max(x) == 1.0f);
    CHECK(values(uniform({2}, 5, 5, generator, {Dtype::f32, device})) == std::vector<double>{5, 5});
  }
}

TEST_CASE("random: normal numbers have the moments of a normal law") {
  Generator generator(3);
  const Moments m = moments(values(normal({1'000'000}, 2, 3, generator, {Dtype::f64})));
  CHECK(std::abs(m.mean - 2) <= 4 * 3e-3);
  CHECK(std::abs(m.variance - 9) <= 4 * 9 * std::sqrt(2e-6));
  CHECK(std::abs(m.skewness) <= 4 * std::sqrt(6e-6));
  CHECK(std::abs(m.kurtosis - 3) <= 4 * std::sqrt(24e-6));
}

TEST_CASE("random: the same seed gives the same bits for any number of threads and device") {
  const int most = omp_get_max_threads();
  const auto draw = [](Dtype dtype, Device device) {
    Generator generator(4);
    auto all = values(uniform({100'003}, 0, 1, generator, {dtype, device}));
    const auto more = values(normal({100'003}, 0, 1, generator, {dtype, device}));
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16}) {
    omp_set_num_threads(1);
    const auto once = draw(dtype, cpu_device);
    for (const int threads : {2, 3, 8}) {
      omp_set_num_threads(threads);
      CHECK(draw(dtype, cpu_device) == once);
    }
    for (const Device device : devices()) CHECK(draw(dtype, device) == once);
  }
  omp_set_num_threads(most);
}

TEST_CASE("random: a generator goes on from where it was restored") {
  Generator a(5);
  uniform({3}, 0, 1, a);
  Generator b;
  b.restore(a.seed(), a.drawn());
  CHECK(values(uniform({9}, 0, 1, a)) == values(uniform({9}, 0, 1, b)));
  CHECK(values(uniform({9}, 0, 1, a)) != values(uniform({9}, 0, 1, a)));
}

TEST_CASE("random: a permutation holds every number once, and small ones are equally likely") {
  Generator generator(7);
  auto p = permutation(10'007, generator).to_vector<std::int32_t>();
  CHECK(!std::ranges::is_sorted(p));
  std::ranges::sort(p);
  bool each_once = true;
  for (size_t i = 0; i < p.size(); ++i) each_once &= p[i] == static_cast<std::int32_t>(i);
  CHECK(each_once);
  CHECK(permutation(0, generator).numel() == 0);
  CHECK(permutation(1, generator).to_vector<std::int32_t>() == std::vector<std::int32_t>{0});
  std::map<std::vector<std::int32_t>, int> seen;
  constexpr int draws = 60'000;
  for (int i = 0; i < draws; ++i) ++seen[permutation(3, generator).to_vector<std::int32_t>()];
  CHECK(seen.size() == 6);
  for (const auto& [order, count] : seen) CHECK(std::abs(count - draws / 6) <= 4 * 92);
}

TEST_CASE("random: bad ranges and types are refused") {
  Generator g;
  check_error(Kind::value, {"uniform: bad range", "2, 1"}, [&] { uniform({1}, 2, 1, g); });
  check_error(Kind::value, {"uniform"}, [&] { uniform({1}, NAN, 1, g); });
  check_error(Kind::value, {"uniform"}, [&] { uniform({1}, 0, 1e39, g); });
  check_error(Kind::value, {"uniform"}, [&] { uniform({1}, -3e38, 3e38, g); });
  check_error(Kind::value, {"normal"}, [&] { normal({1}, 0, -1, g); });
  check_error(Kind::dtype, {"uniform", "i32"}, [&] { uniform({1}, 0, 1, g, {Dtype::i32}); });
  check_error(Kind::value, {"permutation", "-1"}, [&] { permutation(-1, g); });
}
