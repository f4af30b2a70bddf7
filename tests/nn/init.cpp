#include "ebb/nn/init.h"

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

struct Moments {
  double mean = 0;
  double deviation = 0;
  double largest = 0;
};

Moments moments(const Tensor& w) {
  Moments m;
  const auto v = values(w);
  const auto n = static_cast<double>(v.size());
  for (const double x : v) m.mean += x / n;
  for (const double x : v) {
    m.deviation += (x - m.mean) * (x - m.mean) / n;
    m.largest = std::max(m.largest, std::abs(x));
  }
  m.deviation = std::sqrt(m.deviation);
  return m;
}

}  // namespace

TEST_CASE("init: each scheme has the deviation that its paper gives") {
  Tensor w = empty({200, 50, 3, 3});  // fan_in 450, fan_out 1800; 90,000 draws
  const auto expect = [&](const Moments& m, double deviation) {
    CHECK(std::abs(m.mean) <= 4 * deviation / 300);
    CHECK(std::abs(m.deviation / deviation - 1) <= 0.01);
  };
  expect(moments(nn::init::kaiming_uniform(w)), std::sqrt(2.0 / 450));
  CHECK(moments(w).largest <= std::sqrt(6.0 / 450));
  expect(moments(nn::init::kaiming_normal(w)), std::sqrt(2.0 / 450));
  expect(moments(nn::init::xavier_uniform(w)), std::sqrt(2.0 / 2250));
  expect(moments(nn::init::xavier_normal(w, 2)), 2 * std::sqrt(2.0 / 2250));
  expect(moments(nn::init::normal(w, 0, 0.02)), 0.02);
}

TEST_CASE("init: the same seed gives the same weights") {
  Tensor a = empty({10, 10});
  Tensor b = empty({10, 10});
  manual_seed(5);
  nn::init::kaiming_uniform(a);
  manual_seed(5);
  nn::init::kaiming_uniform(b);
  CHECK(values(a) == values(b));
}

TEST_CASE("init: a vector has no fans") {
  Tensor v = empty({3});
  check_error(Kind::shape, {"init: fans need 2 dimensions"}, [&] { nn::init::xavier_normal(v); });
}
