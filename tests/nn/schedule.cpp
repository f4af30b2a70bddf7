#include "ebb/nn/schedule.h"

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("schedule: cosine goes from peak to last and stays there") {
  const nn::Schedule rate = nn::cosine({.peak = 2, .steps = 10, .last = 1});
  CHECK(rate(0) == 2);
  CHECK(std::abs(rate(5) - 1.5) <= 1e-12);
  CHECK(rate(10) == 1);
  CHECK(rate(1000) == 1);
}

TEST_CASE("schedule: one_cycle starts low, peaks, ends lower") {
  const nn::Schedule rate = nn::one_cycle({.peak = 1, .steps = 100});
  CHECK(std::abs(rate(0) - 0.04) <= 1e-12);
  CHECK(std::abs(rate(29) - 1) <= 1e-12);
  CHECK(std::abs(rate(99) - 0.04e-4) <= 1e-12);
  for (int t = 0; t < 29; ++t) CHECK(rate(t) < rate(t + 1));
  for (int t = 29; t < 99; ++t) CHECK(rate(t) > rate(t + 1));
}

TEST_CASE("schedule: warm_up rises in even steps to what follows") {
  const nn::Schedule rate = nn::warm_up(4, nn::constant(8));
  CHECK(rate(0) == 2);
  CHECK(rate(3) == 8);
  CHECK(rate(4) == 8);
}

TEST_CASE("schedule: bad rates and steps are refused") {
  check_error(Kind::value, {"constant: bad rate"}, [] { nn::constant(0); });
  check_error(Kind::value, {"cosine: bad number of steps"},
              [] { nn::cosine({.peak = 1, .steps = 0}); });
  check_error(Kind::value, {"one_cycle: bad peak", "nan"},
              [] { nn::one_cycle({.peak = std::nan(""), .steps = 5}); });
  check_error(Kind::value, {"one_cycle: bad rise"},
              [] { nn::one_cycle({.peak = 1, .steps = 5, .rise = 1}); });
}
