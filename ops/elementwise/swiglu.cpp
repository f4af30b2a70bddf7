#include "ebb/ops/elementwise/swiglu.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  require_floating("swiglu", "gate", gate);
  require_alike("swiglu", "gate", gate, "up", up);
  require_shape("swiglu", "up", up, gate.shape());
  Tensor y = empty_like(gate);
  run_as_is<cpu::swiglu, gpu::swiglu>(gate.device(), gate, up, y);
  return record("swiglu", y, {gate, up},
                [gate = Saved(gate), up = Saved(up)](const Tensor& dy) -> Gradients {
                  Tensor dgate = empty_like(dy);
                  Tensor dup = empty_like(dy);
                  run_as_is<cpu::swiglu_backward, gpu::swiglu_backward>(dy.device(), gate.get(),
                                                                        up.get(), dy, dgate, dup);
                  return {dgate, dup};
                });
}

void cpu::swiglu(const Tensor& gate, const Tensor& up, Tensor& y) {
  map(y, gate, up, [](auto gate, auto up) { return gate / (1 + exp(-gate)) * up; });
}

void cpu::swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dy, Tensor& dgate,
                          Tensor& dup) {
  map(std::tie(dgate, dup), gate, up, dy, [](auto gate, auto up, auto dy) {
    const auto s = 1 / (1 + exp(-gate));  // σ
    return std::array{dy * (s * (1 + gate * (1 - s))) * up, dy * (gate * s)};
  });
}

}  // namespace ebb
