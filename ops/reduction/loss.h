// What the losses share: how the loss of many examples becomes the result.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

enum class Reduction { mean, sum, none };

// "mean", "sum" or "none"; error `value` otherwise.
inline Reduction parse_reduction(std::string_view op, std::string_view text) {
  require(text == "mean" || text == "sum" || text == "none", Kind::value, op, "unknown reduction",
          text, "mean, sum or none");
  return text == "mean" ? Reduction::mean : text == "sum" ? Reduction::sum : Reduction::none;
}

}  // namespace ebb
