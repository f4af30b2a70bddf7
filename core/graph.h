// Graph: a training step that is captured once and replayed.
//
//   Graph step(device, [&] {
//     optimizer.zero_grad();
//     loss = cross_entropy(net(batch(…)), labels, {.check_targets = false});
//     loss.backward();
//     optimizer.step(rates);                     // rates: a table on the device
//   });
//   while (…) step.run();
//
// On a GPU the first runs are ordinary ones, in which algorithms are chosen and memory is found;
// then the step's launches are captured in a CUDA graph, and each later run is one launch of it,
// without the host's work of a step. On the CPU every run is an ordinary one. The bytes are the
// same either way.
//
// A replay does what the captured run did, on the same memory. What changes from step to step has
// to live on the device: the default generator's numbers do (a replay moves on by as many streams
// as the step draws), and an optimizer's count and rate. Tensors made in the step and held outside,
// as `loss` above, are written again by each replay. A step must leave the graph of autograd and
// the gradients as it found them, and may not wait for the device: reading elements, or checking
// labels, in a captured step is an error.
#pragma once
#include <functional>
#include <memory>

#include "ebb/core/random.h"
#include "ebb/core/storage.h"
#include "ebb/core/tensor.h"

namespace ebb {

class Graph {
 public:
  // Error `value` unless warm_up >= 1.
  Graph(Device device, std::function<void()> step, int warm_up = 3);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // One step. What the step raises reaches the caller; nothing of it is then captured. Between
  // runs others may draw from the default generator; a new seed is error `state` once captured.
  void run();
  bool captured() const { return replay_ != nullptr; }

 private:
  void capture();
  Device device_;
  std::function<void()> step_;
  int ordinary_runs_left_;
  Generator generator_;      // as it stood when the step was captured
  std::uint64_t draws_ = 0;  // streams of it that a step takes
  std::uint64_t moved_ = 0;  // streams that have gone since, which is what shift_ holds
  Tensor shift_;             // 64 bits on the device
  std::shared_ptr<MemoryPool> pool_;
  void* replay_ = nullptr;  // cudaGraphExec_t
};

namespace gpu {
bool capturing();
void begin_capture();
void* end_capture(std::uint64_t* shift, std::uint64_t draws);  // shift += draws ends each replay
void set_shift(std::uint64_t* shift, std::uint64_t value);
void abandon_capture();
void replay(void* graph);
void destroy_replay(void* graph);
}  // namespace gpu

}  // namespace ebb
