#include "common/progress.h"

#include <cmath>

#include "twins.h"

using namespace ebb;
using namespace ebb::test;
using namespace example;

TEST_CASE("progress: the bar fits every width, and drops what matters least") {
  const Status status{"epoch 1/3", 0.625, 0.08312, 0.97518, 8412.3, 81.2};
  const Style plain{110, false, false};
  CHECK(bar_text(status, "images", plain) ==
        "epoch 1/3 ==================>----------- 62%  loss 0.08312  accuracy 97.52%  "
        "8,412 images/s  1:21 left");
  for (int columns = 0; columns < 130; ++columns) {
    const std::string text = bar_text(status, "images", {columns, false, false});
    CHECK(static_cast<int>(text.size()) <= columns);
  }
  CHECK(bar_text(status, "images", {40, false, false}) ==
        "epoch 1/3 =======>---- 62%  loss 0.08312");
  CHECK(bar_text(status, "images", {100, true, true}).find("\x1b[") != std::string::npos);
  CHECK(bar_text(status, "images", {100, true, false}).find('\x1b') == std::string::npos);
}

TEST_CASE("progress: numbers that are not there are not shown") {
  CHECK(plain_text({"step 10", 0.1, 2.5, NAN, 0, 0}, "tokens") == "step 10  10.0%  loss 2.500");
  CHECK(plain_text({"step 10", 0.1, NAN, NAN, 0, 0}, "tokens").find("loss nan") !=
        std::string::npos);
  CHECK(with_commas(1234567.8) == "1,234,568");
  CHECK(with_commas(999) == "999");
  CHECK(with_commas(1.25) == "1.2");
  CHECK(flops_text(999.4e9) == "999 GFLOP/s");
  CHECK(flops_text(999.6e9) == "1 TFLOP/s");
  CHECK(flops_text(1.234e9) == "1.23 GFLOP/s");
  CHECK(clock_text(59.6) == "1:00");
  CHECK(clock_text(3723) == "1:02:03");
  CHECK(clock_text(NAN) == "-:--");
  CHECK(clock_text(1e300) == "-:--");
}

TEST_CASE("progress: operations a second come last, with their share of what the device can do") {
  Status status{"step 10", 0.1, 2.5, NAN, 8412.3, 81.2};
  status.flops = 3e12;
  CHECK(plain_text(status, "tokens") ==
        "step 10  10.0%  loss 2.500  8,412 tokens/s  1:21 left  3 TFLOP/s");
  status.utilisation = 0.305;
  CHECK(plain_text(status, "tokens").ends_with("  3 TFLOP/s  MFU 30.5%"));
}

TEST_CASE("progress: what is not a terminal gets plain lines at intervals") {
  std::FILE* out = std::tmpfile();
  {
    Progress progress(out, "images", 100, 0, 25);
    for (int i = 1; i <= 100; ++i)
      if (progress.due()) progress.update("epoch 1/1", i, 1.0 / i, 0.5);
    progress.line("done");
  }
  const auto size = static_cast<size_t>(std::ftell(out));
  std::rewind(out);
  std::string shown(size, ' ');
  CHECK(std::fread(shown.data(), 1, size, out) == size);
  std::fclose(out);
  CHECK(std::count(shown.begin(), shown.end(), '\n') == 5);
  CHECK(shown.find('\r') == shown.npos);
  CHECK(shown.find('\x1b') == shown.npos);
  CHECK(shown.ends_with("done\n"));
}
