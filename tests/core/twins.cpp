#include "twins.h"

using namespace ebb;
using namespace ebb::test;

// The judge of all op tests, judged.
TEST_CASE("twins: a NaN is no small error, wherever it stands") {
  const double nan = NAN;
  for (const std::vector<double>& got :
       {std::vector<double>{nan, 1, 2}, {0, nan, 2}, {0, 1, nan}, {nan, nan, nan}}) {
    const Excess worst = largest_excess(got, {0, 1, 2}, {10, 10});
    CHECK(!(worst.by <= 0));
    CHECK(std::isnan(got[worst.at]));
  }
  CHECK(largest_excess({nan, 1}, {nan, 1}, exact).by <= 0);
  CHECK(!(largest_excess({1, 1}, {nan, 1}, {10, 10}).by <= 0));
}

TEST_CASE("twins: the worst element counts, against its own size or the largest") {
  CHECK(largest_excess({1.5, 3, 2}, {1, 2, 2}, {0.6, 0}).at == 1);
  CHECK(largest_excess({1.5, 3, 2}, {1, 2, 2}, {1, 0}).by <= 0);
  CHECK(!(largest_excess({0.1, 100}, {0, 100}, {0, 0.01}).by <= 0));
  CHECK(largest_excess({0.1, 100}, {0, 100}, {0, 0.01, true}).by <= 0);
  CHECK(largest_excess({INFINITY}, {INFINITY}, exact).by <= 0);
  CHECK(!(largest_excess({INFINITY}, {-INFINITY}, {10, 10}).by <= 0));
  CHECK(!(largest_excess({1}, {INFINITY}, {1, 0}).by <= 0));
}

TEST_CASE("twins: a byte written past the end of a tensor is noticed") {
  if (memory_is_exact()) return;  // there it is the checker who notices
  for (const Device device : devices()) {
    poison_memory(true);
    Tensor x = zeros({3}, {.device = device});
    poison_memory(false);
    CHECK(ends_in_poison(x));
    const char byte = 7;
    copy_bytes(static_cast<char*>(x.raw()) + x.bytes(), device, &byte, cpu_device, 1);
    CHECK(!ends_in_poison(x));
  }
}
