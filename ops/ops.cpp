#include "ebb/ops/ops.h"

namespace ebb {

void require_defined(std::string_view op, std::string_view argument, const Tensor& x) {
  require(x.defined(), Kind::state, op, text(argument, " is undefined"), "no tensor",
          "one made by empty(), tensor() or an op");
}

void require_floating(std::string_view op, std::string_view argument, const Tensor& x) {
  require_defined(op, argument, x);
  require(is_floating(x.dtype()), Kind::dtype, op, text(argument, " must be floating"), x.dtype(),
          "f32, f64 or bf16");
}

void require_alike(std::string_view op, std::string_view a_name, const Tensor& a,
                   std::string_view b_name, const Tensor& b) {
  require_defined(op, a_name, a);
  require_defined(op, b_name, b);
  require(a.device() == b.device(), Kind::device, op,
          text(a_name, " and ", b_name, " are on different devices"),
          text(a.device(), " and ", b.device()), "one device");
  require(a.dtype() == b.dtype(), Kind::dtype, op,
          text(a_name, " and ", b_name, " differ in dtype"), text(a.dtype(), " and ", b.dtype()),
          "one dtype");
}

void require_shape(std::string_view op, std::string_view argument, const Tensor& x,
                   const Shape& shape) {
  require_defined(op, argument, x);
  require(x.shape() == shape, Kind::shape, op, text(argument, " has the wrong shape"), x.shape(),
          shape);
}

}  // namespace ebb
