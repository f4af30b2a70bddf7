#include "ebb/nn/sgd.h"

#include "ebb/core/eigen.h"
#include "ebb/core/error.h"
#include "ebb/core/run.h"
#include "ebb/nn/multi_tensor.h"

namespace ebb::nn {

SGD::SGD(const Tensors& parameters, SGDOptions options)
    : SGD(std::vector<Group>{{parameters, options.weight_decay}}, options) {}

SGD::SGD(const std::vector<Group>& groups, SGDOptions options)
    : Optimizer("sgd", groups, {"momentum"}, {}), options_(options) {
  require(0 <= options.momentum && options.momentum < 1, Kind::value, "sgd", "bad momentum",
          options.momentum, "[0, 1)");
  require(!options.nesterov || options.momentum > 0, Kind::value, "sgd",
          "nesterov looks ahead by the momentum", "momentum 0", "momentum above 0");
}

void SGD::update(const Batch& batch, const Tensor& numbers) {
  run<cpu::sgd, gpu::sgd>(numbers.device(), options_, numbers, batch);
}

void cpu::sgd(const SGDOptions& o, const Tensor& numbers, const Batch& batch) {
  const double step = static_cast<const StepNumbers*>(numbers.raw())->rate;
  for_each_update(
      "sgd", batch, [&]<class T>(T* w, const T* dw, std::int64_t n, size_t t, std::int64_t begin) {
        const auto rate = static_cast<T>(step);
        const auto momentum = static_cast<T>(o.momentum);
        auto weights = ebb::cpu::array(w, n);
        auto velocity = ebb::cpu::array(Tensor(batch.slots[0][t]).data<T>() + begin, n);
        const auto gradient = ebb::cpu::array(dw, n) + static_cast<T>(batch.decay[t]) * weights;
        velocity = momentum * velocity + gradient;
        if (o.nesterov) {
          weights -= rate * (gradient + momentum * velocity);
        } else {
          weights -= rate * velocity;
        }
      });
}

}  // namespace ebb::nn
