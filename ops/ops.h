// What every op is written with: tensors, record(), run(), and checks of arguments.
#pragma once
#include <cmath>

#include "ebb/core/autograd.h"
#include "ebb/core/error.h"
#include "ebb/core/run.h"
#include "ebb/core/tensor.h"

namespace ebb {

// Twins of one shape: maps of one, two, three tensors into the last.
using Map1 = void(const Tensor& x, Tensor& y);
using Map2 = void(const Tensor& a, const Tensor& b, Tensor& y);
using Map3 = void(const Tensor& a, const Tensor& b, const Tensor& c, Tensor& y);

// An option for height and width: one number for both, or {height, width}.
struct Pair {
  std::int64_t h = 0;
  std::int64_t w = 0;
  Pair(std::int64_t both) : h(both), w(both) {}  // NOLINT: {.stride = 2} is how it is written
  Pair(std::int64_t height, std::int64_t width) : h(height), w(width) {}
  friend std::ostream& operator<<(std::ostream& out, const Pair& p) {
    return out << '[' << p.h << ',' << p.w << ']';
  }
};

// Each of these is error `state`, with the op's name, for an undefined tensor: an op that begins
// with one of them for each of its arguments looks at no tensor that is not there.
void require_defined(std::string_view op, std::string_view argument, const Tensor& x);

// Error `dtype` unless x is f32, f64 or bf16.
void require_floating(std::string_view op, std::string_view argument, const Tensor& x);

// Errors `device`, `dtype` unless b is where a is and of its dtype.
void require_alike(std::string_view op, std::string_view a_name, const Tensor& a,
                   std::string_view b_name, const Tensor& b);

// Error `shape` unless x has this shape.
void require_shape(std::string_view op, std::string_view argument, const Tensor& x,
                   const Shape& shape);

}  // namespace ebb
