// Gradients against central differences: for any function of tensors, on any device.
//
//   const GradcheckResult r = gradcheck([](const Tensors& in) { return silu(in[0]); }, {x});
//   CHECK_MESSAGE(r.ok, r.report);
//
// Inputs are f64 (error `dtype` otherwise); those that require a gradient are checked (error
// `state` when none does). For each:
//  - the Jacobian by central differences, step · max(1, |x|), restored bit for bit afterwards;
//    in full up to `full_limit` entries, above by signed random projections, of four points;
//  - |analytic − numeric| <= atol + rtol · |numeric|, so that NaN fails; a gradient that is absent
//    is right only where the numeric one is exactly 0;
//  - backward twice with the same cotangent gives the same bits;
//  - a second backward adds to the gradient that is there;
//  - zero cotangents give zero gradients;
//  - each input alone, the others not requiring a gradient, gets the same gradient;
//  - one tensor given for two inputs of a shape gets the sum of their gradients.
//
// A failure can leave its case behind, for tests/tools/opcase to run again:
//
//   gradcheck(f, {x, w}, {.file = "case.safetensors", .op = "linear", .names = {"x", "weight"}});
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "ebb/core/tensor.h"

namespace ebb {

struct GradcheckOptions {
  double step = 1e-5;
  double atol = 1e-8;
  double rtol = 1e-8;
  std::int64_t full_limit = 4096;
  int projections = 4;
  std::uint64_t seed = 0;

  std::string file = {};                // where a failure writes inputs and cotangent, if anywhere
  std::string op = {};                  // what f is; else the last operation that it records
  std::string attributes = "{}";        // of the operation, a JSON object
  std::vector<std::string> names = {};  // of the inputs; else 0, 1, …
};

struct GradcheckResult {
  bool ok = true;
  double worst = 0;    // largest |analytic − numeric| / (1 + |numeric|) seen
  std::string report;  // the first failure: op, input, element, both values; empty when ok
  explicit operator bool() const { return ok; }
};

GradcheckResult gradcheck(const std::function<Tensor(const Tensors&)>& f, const Tensors& inputs,
                          GradcheckOptions options = {});

}  // namespace ebb
