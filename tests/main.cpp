// Runs the tests of one layer. Tests that need a GPU skip themselves where there is none; how many
// did is printed at the end, so that a green run says what it did not show.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "twins.h"

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int status = context.run();
  if (context.shouldExit()) return status;
  std::printf("GPU checks run: %d, skipped (no GPU): %d\n", ebb::test::gpu_checks_run,
              ebb::test::gpu_checks_skipped);
  return status;
}
