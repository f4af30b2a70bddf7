// a + b, a − b, a · b, a / b, −x
// Shapes: broadcast as in NumPy → that of the broadcast.
//
// Gradients, summed over the dimensions along which an operand was broadcast:
// add: dy, dy    sub: dy, −dy    mul: dy · b, dy · a    div: dy / b, −(dy / b) · (a / b)
// Those of add and sub share dy's elements where nothing is to be summed.
//
// A number stands on either side: 2 * x, 1 - x. Journal days 1 and 7.
// Errors: `dtype` unless both are floating and alike, `device`, `shape`.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, const Tensor& b);
Tensor neg(const Tensor& x);

Tensor add(const Tensor& x, double s);
Tensor sub(const Tensor& x, double s);
Tensor sub(double s, const Tensor& x);
Tensor mul(const Tensor& x, double s);
Tensor div(const Tensor& x, double s);
Tensor div(double s, const Tensor& x);

inline Tensor operator+(const Tensor& a, const Tensor& b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, const Tensor& b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, const Tensor& b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, const Tensor& b) { return div(a, b); }
inline Tensor operator-(const Tensor& x) { return neg(x); }
inline Tensor operator+(const Tensor& x, double s) { return add(x, s); }
inline Tensor operator+(double s, const Tensor& x) { return add(x, s); }
inline Tensor operator-(const Tensor& x, double s) { return sub(x, s); }
inline Tensor operator-(double s, const Tensor& x) { return sub(s, x); }
inline Tensor operator*(const Tensor& x, double s) { return mul(x, s); }
inline Tensor operator*(double s, const Tensor& x) { return mul(x, s); }
inline Tensor operator/(const Tensor& x, double s) { return div(x, s); }
inline Tensor operator/(double s, const Tensor& x) { return div(s, x); }

enum class Sign : unsigned char { add, sub, mul, div };

using Arithmetic = void(Sign sign, const Tensor& a, const Tensor& b, Tensor& y);
using ArithmeticWithNumber = void(Sign sign, const Tensor& x, double s, bool s_first, Tensor& y);
using ArithmeticBackward = void(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da,
                                Tensor& db);
namespace cpu {
Arithmetic arithmetic;
ArithmeticWithNumber arithmetic_with_number;
ArithmeticBackward mul_backward;  // equal shapes only
ArithmeticBackward div_backward;  // equal shapes only; takes a / b for a
}  // namespace cpu
namespace gpu {
Arithmetic arithmetic;
ArithmeticWithNumber arithmetic_with_number;
ArithmeticBackward mul_backward;
ArithmeticBackward div_backward;
}  // namespace gpu

}  // namespace ebb
