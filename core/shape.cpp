#include "ebb/core/shape.h"

#include <algorithm>

#include "ebb/core/error.h"

namespace ebb {

Shape::Shape(std::initializer_list<std::int64_t> dims, std::string_view op)
    : Shape(std::span<const std::int64_t>(dims.begin(), dims.size()), op) {}

Shape::Shape(std::span<const std::int64_t> dims, std::string_view op) {
  require(dims.size() <= max_rank, Kind::shape, op, "too many dimensions",
          text("rank ", dims.size()), text("at most ", max_rank));
  for (const std::int64_t extent : dims) {
    require(extent >= 0, Kind::shape, op, text("negative dimension ", rank_), extent, "0 or more");
    dims_[rank_++] = extent;
  }
  // Zeros are left out, so that products over some of the dimensions are safe too.
  std::int64_t count = 1;
  bool overflow = false;
  for (const std::int64_t extent : dims)
    if (extent > 0) overflow |= __builtin_mul_overflow(count, extent, &count);
  require(!overflow, Kind::limit, op, "element count overflows 64 bits", *this,
          "at most 2^63 - 1 elements");
}

std::int64_t Shape::wrapped(int dim) const {
  require(-rank_ <= dim && dim < rank_, Kind::index, "shape", text("no dimension ", dim), *this,
          text("[", -rank_, ", ", rank_ - 1, "]"));
  return dims_[static_cast<size_t>(dim + rank_)];
}

std::int64_t Shape::product(int first, int last) const {
  std::int64_t count = 1;
  for (int d = first; d < last; ++d) count *= dims_[d];
  return count;
}

Shape Shape::with(int dim, std::int64_t extent) const {
  std::array<std::int64_t, max_rank> dims = dims_;
  dims[static_cast<size_t>(dim)] = extent;
  return Shape(std::span<const std::int64_t>(dims.data(), static_cast<size_t>(rank_)));
}

Shape Shape::without(int dim) const {
  Shape other = *this;
  std::copy(dims_.begin() + dim + 1, dims_.end(), other.dims_.begin() + dim);
  other.dims_[--other.rank_] = 0;
  return other;
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int d = 0; d < shape.rank(); ++d) out << (d ? "," : "") << shape[d];
  return out << ']';
}

int wrap_dim(std::string_view op, std::int64_t dim, int rank) {
  const std::int64_t limit = std::max(rank, 1);  // a scalar answers to 0 and -1, as in NumPy
  require(-limit <= dim && dim < limit, Kind::index, op, "dimension out of range", dim,
          text("[", -limit, ", ", limit - 1, "]"));
  return static_cast<int>(dim < 0 ? dim + limit : dim);
}

Shape broadcast(std::string_view op, const Shape& a, const Shape& b) {
  std::array<std::int64_t, Shape::max_rank> dims{};
  const int rank = std::max(a.rank(), b.rank());
  for (int i = 1; i <= rank; ++i) {
    const std::int64_t m = i <= a.rank() ? a[a.rank() - i] : 1;
    const std::int64_t n = i <= b.rank() ? b[b.rank() - i] : 1;
    require(m == n || m == 1 || n == 1, Kind::shape, op, text("shapes differ at axis ", -i),
            text(a, " and ", b), "equal extents, or 1");
    dims[rank - i] = m == 1 ? n : m;
  }
  return Shape(std::span<const std::int64_t>(dims.data(), rank));
}

std::int64_t checked_bytes(std::string_view op, const Shape& shape, std::int64_t element_size) {
  std::int64_t bytes = element_size;
  bool overflow = false;
  for (const std::int64_t extent : shape) {
    if (extent == 0) return 0;
    overflow |= __builtin_mul_overflow(bytes, extent, &bytes);
  }
  require(!overflow, Kind::limit, op, "size overflows 64 bits",
          text(shape, " of ", element_size, "-byte elements"), "at most 2^63 - 1 bytes");
  return bytes;
}

}  // namespace ebb
