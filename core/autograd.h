// Reverse-mode differentiation: record() is the whole interface.
//
//   Tensor square(const Tensor& x) {
//     Tensor y = …;                                                       // y = x²
//     return record("square", y, {x}, [x = Saved(x)](const Tensor& dy) -> Gradients {
//       return {…};                                                       // dx = 2 x dy
//     });
//   }
//
// A closure gets dy, of y's shape, dtype and device, and returns one gradient for each input, fresh
// or sharing dy's elements, never written to afterwards. An undefined gradient means none. Inside a
// closure nothing is recorded, so there is no double backward: asking for it is error `state`.
//
// Threads may build and differentiate graphs of their own at the same time, and read the same
// tensors; a leaf's gradient and a graph belong to one thread at a time.
#pragma once
#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "ebb/core/tensor.h"

namespace ebb {

using Gradients = Tensors;
using Backward = std::function<Gradients(const Tensor& dy)>;

// What a closure keeps of a forward tensor: its elements without its history (so that an op may
// keep its own output), and their version. Reading it after a change in place is error `state`.
class Saved {
 public:
  Saved() = default;
  explicit Saved(const Tensor& x);
  const Tensor& get() const;
  operator const Tensor&() const { return get(); }  // NOLINT: a Saved is read like a Tensor
  const Tensor* operator->() const { return &get(); }

  // Memory for a gradient that may be written over the saved elements, each after it was read:
  // their own when backward releases the graph and nobody else holds them, else new. Large ones
  // profit.
  Tensor to_write_over() const;

 private:
  Tensor tensor_;
  std::uint64_t version_ = 0;
};

// Where a gradient goes: the operation that made the input, or the leaf itself; neither when the
// input needs none.
struct Edge {
  std::shared_ptr<Node> node;
  std::shared_ptr<TensorImpl> leaf;
};

struct Node {
  const char* op;
  std::uint64_t id;  // grows with time: a node's inputs have smaller ones
  Backward backward;
  std::vector<Edge> inputs;
  Shape shape;  // of the output
  TensorOptions options;
  Tensor gradient;            // sum of what has arrived during one backward pass
  std::uint64_t visited = 0;  // the last backward pass that reached it
  bool freed = false;
  Node* next = nullptr;        // of those waiting to be destroyed,
  std::shared_ptr<Node> self;  // who keep themselves alive until then

  ~Node();
};

// Notes that `y` came from `inputs`; does nothing when no input requires a gradient or NoGrad is
// active. `op` must outlive the graph: a literal.
Tensor record(const char* op, Tensor y, std::span<const Tensor> inputs, Backward backward);
Tensor record(const char* op, Tensor y, std::initializer_list<Tensor> inputs, Backward backward);

// The same as y.backward(dy, retain_graph). Adds dL/dx to x.grad() of every leaf x of y that
// requires one. `dy` may be left out when y has one element. The graph is released on the way
// unless it is to be retained. Errors `state`, `shape`, `dtype`, `device`; after one that comes
// from a closure some leaves may have their gradients, and a part of the graph be released:
// zero_grad(), and begin with the forward pass.
struct BackwardOptions {
  bool retain_graph = false;
  bool create_graph = false;  // error `state`: there is no double backward
};
void backward(const Tensor& y, const Tensor& dy = {}, BackwardOptions options = {});

// While one is alive on this thread, nothing is recorded.
class NoGrad {
 public:
  [[nodiscard]] NoGrad();  // not `NoGrad();`, which would end at its semicolon
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};
bool grad_enabled();

// The reverse, within NoGrad or a closure: for graphs that a closure builds and differentiates
// itself.
class WithGrad {
 public:
  [[nodiscard]] WithGrad();
  ~WithGrad();
  WithGrad(const WithGrad&) = delete;
  WithGrad& operator=(const WithGrad&) = delete;

 private:
  bool before_;
};

}  // namespace ebb
