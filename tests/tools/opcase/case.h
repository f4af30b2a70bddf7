// One case: read from a file, run, answered.
#pragma once
#include <string>

#include "ops.h"

namespace opcase {

struct Settings {
  ebb::Device device;
  ebb::Dtype dtype = ebb::Dtype::f32;
  bool backward = false;
  int repeat = 1;
  bool poison = false;
};

// What a file asks for; inputs and the upstream gradient are on the CPU, as in the file.
struct Case {
  const Op* op;
  Call call;
  ebb::Tensor gout;
};

// Errors: ebb::Error, Unsupported. `op` is what messages begin with; without `gradient`, gout.0 is
// passed over.
Case read_case(const std::string& op, const std::string& path, bool gradient = true);

// out.0, and with settings.backward grad.NAME, on the CPU. Errors likewise.
ebb::Checkpoint answer(const Case& c, const Settings& settings);

enum Exit { ran = 0, usage = 2, refused = 3, no_device = 4, unsupported = 5 };

// How a case ended; `error` is one line, empty after exit 0.
struct Outcome {
  Exit exit = ran;
  std::string error;
};

// Never throws. The answer is written whole, or not at all: an older one is gone then too.
Outcome run_case(const std::string& path, const std::string& answer, const Settings& settings);

// The library's gradient check on the case in f64; `worst` is its largest error.
Outcome gradcheck_case(const std::string& path, ebb::Device device, std::string* op, double* worst);

}  // namespace opcase
