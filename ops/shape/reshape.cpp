#include "ebb/ops/shape/reshape.h"

#include <array>

namespace ebb {
namespace {

// `asked` with its −1 filled in.
Shape resolve(std::span<const std::int64_t> asked, const Tensor& x) {
  require(asked.size() <= Shape::max_rank, Kind::shape, "reshape", "too many dimensions",
          text("rank ", asked.size()), text("at most ", Shape::max_rank));
  std::array<std::int64_t, Shape::max_rank> dims{};
  int inferred = -1;
  for (size_t d = 0; d < asked.size(); ++d) {
    require(asked[d] >= -1, Kind::shape, "reshape", text("negative dimension ", d), asked[d],
            "0 or more, or -1");
    if (asked[d] == -1) {
      require(inferred < 0, Kind::value, "reshape", "only one dimension can be inferred",
              text("-1 at ", inferred, " and ", d), "one -1");
      inferred = static_cast<int>(d);
    }
    dims[d] = asked[d] == -1 ? 1 : asked[d];
  }
  const std::span<const std::int64_t> filled(dims.data(), asked.size());
  const std::int64_t others = checked_bytes("reshape", Shape(filled, "reshape"), 1);
  if (inferred >= 0) {
    require(others > 0, Kind::value, "reshape", "-1 is ambiguous", text("0 elements"),
            "the extent itself");
    dims[static_cast<size_t>(inferred)] = x.numel() / others;
  }
  const Shape shape(filled, "reshape");
  require(shape.numel() == x.numel(), Kind::shape, "reshape",
          text(x.numel(), " elements do not fill the shape"), text(x.shape(), " into ", shape),
          text(x.numel(), " elements"));
  return shape;
}

Tensor view(const char* op, const Tensor& x, const Shape& shape) {
  return record(op, Tensor(x.storage(), shape, x.dtype()), {x},
                [before = x.shape()](const Tensor& dy) -> Gradients {
                  return {Tensor(dy.storage(), before, dy.dtype())};
                });
}

}  // namespace

Tensor reshape(const Tensor& x, std::span<const std::int64_t> shape) {
  require_defined("reshape", "x", x);
  return view("reshape", x, resolve(shape, x));
}

Tensor flatten(const Tensor& x, std::int64_t start_dim) {
  require_defined("flatten", "x", x);
  const int first = wrap_dim("flatten", start_dim, x.rank());
  std::array<std::int64_t, Shape::max_rank> dims{};
  std::copy_n(x.shape().begin(), first, dims.begin());
  dims[static_cast<size_t>(first)] = x.shape().product(first, x.rank());
  return view("flatten", x,
              Shape(std::span<const std::int64_t>(dims.data(), static_cast<size_t>(first) + 1)));
}

}  // namespace ebb
