// Optimizer: parameters and what is remembered of each between steps.
//
//   AdamW optimizer(net.parameters(), {.weight_decay = 0.01});
//   loss.backward(); optimizer.step(rate(step)); optimizer.zero_grad();
//
// step(rate) changes every parameter that has a gradient, all in one kernel. It looks at no
// number, which would wait for the device: a gradient that is not finite makes its parameter so,
// unless clip_grad_norm(parameters, max_norm, {.error_if_nonfinite = true}) was called before.
// Parameters that should not decay form a group of their own: AdamW(decay_groups(net, 0.1), {}).
// Errors: `value` for no parameters and bad options, `state` for a parameter that is the result
// of an op, as w.to(device) is, `device` for parameters on several devices, `state` when a
// gradient is on another device than its parameter.
//
// A bf16 parameter is too coarse to take small steps: its optimizer keeps an f32 master weight,
// steps on that in f32 and rounds it to the parameter. Where a parameter is not what its master
// rounds to, weights were loaded for instance, the parameter counts.
#pragma once
#include "ebb/nn/module.h"

namespace ebb::nn {

struct Group {
  Tensors parameters;
  double weight_decay;
};

// Matrices and tables decay by weight_decay; vectors (biases, norms' weights) do not. As GPT-2's.
std::vector<Group> decay_groups(Module& module, double weight_decay);

// What an update works on: parameters that have a gradient, with their slots and decay.
struct Batch {
  Tensors parameters;
  Tensors gradients;
  Tensors masters;             // undefined where the parameter is not bf16
  std::vector<Tensors> slots;  // slots[s][parameter]
  std::vector<double> decay;
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  void step(double rate);  // error `value` unless finite and >= 0
  // By an entry of a table, rates[steps()], or its last one after that. The table is f64 [n >= 1]
  // on the parameters' device, as nn::tabulate() makes it; nothing of the step is then the host's,
  // as a captured one needs it (core/graph.h). Errors `shape`, `dtype`, `device`.
  void step(const Tensor& rates);
  void zero_grad();
  std::int64_t steps() const;                     // counted on the device, for which this waits
  const Tensor& count() const { return count_; }  // the same as i32 [1] there

  // Slots by name ("0.momentum" is the first parameter's) for checkpoints, and back. Every
  // parameter has its slots from the start, zero, and a bf16 one its "master". Error `format` when
  // they are not this one's.
  NamedTensors state() const;
  void load_state(const NamedTensors& state, std::int64_t steps);

 protected:
  struct Betas {
    double beta1 = 0;
    double beta2 = 0;
  };
  Optimizer(const char* name, const std::vector<Group>& groups, std::vector<std::string> slots,
            Betas betas);

  // `numbers` are the step's StepNumbers, on the parameters' device.
  virtual void update(const Batch& batch, const Tensor& numbers) = 0;

 private:
  void take_step(double rate, const Tensor& rates);
  const char* name_;
  Betas betas_;
  Tensors parameters_;
  std::vector<double> decay_;
  std::vector<std::string> slot_names_;
  std::vector<Tensors> slots_;
  Tensors masters_;
  Tensor count_;    // steps, i32 [1]
  Tensor numbers_;  // f64 [3]
};

// What a step works with: the learning rate; and with bias corrections of Adam's moments at step t,
// rate / (1 − β₁ᵗ) and 1 / √(1 − β₂ᵗ).
struct StepNumbers {
  double rate;
  double size;
  double root;
};

// count ← count + 1, and the numbers of that step; `rates` may be undefined: then `rate` counts.
using BeginStep = void(double rate, const Tensor& rates, double beta1, double beta2, Tensor& count,
                       Tensor& numbers);
namespace cpu {
BeginStep begin_step;
}
namespace gpu {
BeginStep begin_step;
}

// Scales all gradients by max_norm / norm when their joint Euclidean norm is above max_norm.
// Returns the norm before, a one-element tensor on the parameters' device: nothing waits for it.
// A norm that is NaN leaves the gradients as they are. Errors: `value` unless max_norm > 0,
// `device` for gradients on several devices.
struct ClipOptions {
  // Error `state`, naming the first of the parameters whose gradient is not finite, before anything
  // is changed. This waits for the device, which a captured step cannot.
  bool error_if_nonfinite = false;
};
Tensor clip_grad_norm(const Tensors& parameters, double max_norm, ClipOptions options = {});

// Many tensors are worked on as one run of chunks: what one GPU block, or one turn of a CPU thread,
// takes at a time.
inline constexpr std::int64_t chunk_size = 4096;
inline std::int64_t chunks_of(std::int64_t n) { return (n + chunk_size - 1) / chunk_size; }

using MultiNorm = void(const Tensors& tensors, Tensor& norm);
using MultiClip = void(const Tensors& tensors, const Tensor& norm, double max_norm);
namespace cpu {
MultiNorm multi_norm;
MultiClip multi_clip;
}  // namespace cpu
namespace gpu {
MultiNorm multi_norm;
MultiClip multi_clip;
}  // namespace gpu

}  // namespace ebb::nn
