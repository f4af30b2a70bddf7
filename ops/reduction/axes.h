// Which dimensions a reduction runs over, and the tensor seen as [outer, n, inner] with n reduced.
#pragma once
#include <vector>

#include "ebb/ops/ops.h"

namespace ebb {

// sum(x, {.dim = {0, -1}, .keepdim = true}); no dimensions means all of them.
struct ReduceOptions {
  std::vector<std::int64_t> dim = {};
  bool keepdim = false;
};

struct View {
  std::int64_t outer = 1;
  std::int64_t n = 1;  // reduced
  std::int64_t inner = 1;

  std::int64_t kept() const { return outer * inner; }
};

// A reduction over several dimensions is one pass for each run of adjacent ones, last run first;
// dimensions of extent 1 join any run. Each pass makes [outer, n, inner] into [outer, inner].
struct Axes {
  std::vector<View> passes;  // never empty
  Shape result;              // with or without the reduced dimensions
  std::int64_t count = 1;    // elements that go into one result

  // Errors `index` (out of range) and `value` (given twice).
  Axes(std::string_view op, const Shape& shape, const ReduceOptions& options);
};

// The one dimension `dim` of x.
View view_along(std::string_view op, const Shape& shape, std::int64_t dim);

}  // namespace ebb
