// The extent of each dimension, slowest first. Tensors are contiguous, so there are no strides.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>
#include <string_view>

namespace ebb {

class Shape {
 public:
  static constexpr int max_rank = 8;

  Shape() = default;  // rank 0: a scalar
  Shape(std::initializer_list<std::int64_t> dims, std::string_view op = "shape");
  // Error `shape` when an extent is negative or the rank above 8; `limit` when the extents other
  // than 0 multiply to more than int64 can count.
  explicit Shape(std::span<const std::int64_t> dims, std::string_view op = "shape");

  int rank() const { return rank_; }
  std::int64_t operator[](int dim) const {  // -1 is the last; error `index`
    return 0 <= dim && dim < rank_ ? dims_[static_cast<std::size_t>(dim)] : wrapped(dim);
  }
  const std::int64_t* begin() const { return dims_.data(); }
  const std::int64_t* end() const { return dims_.data() + rank_; }

  std::int64_t numel() const { return product(0, rank_); }  // 1 for a scalar
  std::int64_t product(int first, int last) const;          // of dimensions [first, last)
  Shape with(int dim, std::int64_t extent) const;           // one extent replaced
  Shape without(int dim) const;                             // one dimension removed
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::int64_t wrapped(int dim) const;
  std::array<std::int64_t, max_rank> dims_{};
  int rank_ = 0;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape);  // [2,3]

// -1 counts from the end; error `index` outside [-rank, rank).
int wrap_dim(std::string_view op, std::int64_t dim, int rank);

// NumPy's rule: aligned at the right, equal or one of them 1; error `shape` otherwise.
Shape broadcast(std::string_view op, const Shape& a, const Shape& b);

// numel() × element_size; error `limit` when it exceeds what int64 can count.
std::int64_t checked_bytes(std::string_view op, const Shape& shape, std::int64_t element_size);

}  // namespace ebb
