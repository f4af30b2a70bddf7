#include "ebb/core/autograd.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "ebb/core/basic.h"
#include "ebb/core/error.h"
#include "ebb/core/run.h"

namespace ebb {
namespace {

thread_local bool recording = true;
thread_local const char* running_op = "backward";
thread_local bool releasing = false;  // this is the last time that the closure runs
std::atomic<std::uint64_t> next_node{1};
std::atomic<std::uint64_t> next_pass{1};

// Destroying a node destroys what it holds, which may hold the next node, and so on for a million
// links: what is to be destroyed is queued instead, and the outermost call works the queue off.
// The queue is a list through the nodes: it asks for no memory, and its head needs no destructor,
// which tensors of static lifetime could outlive.
thread_local Node* to_destroy = nullptr;
thread_local bool destroying = false;

void release(std::shared_ptr<Node> node) {
  if (!node || node.use_count() > 1) return;
  Node* const queued = node.get();
  queued->next = to_destroy;
  queued->self = std::move(node);
  to_destroy = queued;
  if (destroying) return;
  destroying = true;
  while (to_destroy) {
    Node* const first = to_destroy;
    to_destroy = first->next;
    const std::shared_ptr<Node> last = std::move(first->self);
  }
  destroying = false;
}

// Whose closure runs, for messages, and whether it will run again.
class Running {
 public:
  Running(const char* op, bool last)
      : op_before_(std::exchange(running_op, op)), last_before_(std::exchange(releasing, last)) {}
  ~Running() {
    running_op = op_before_;
    releasing = last_before_;
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  const char* op_before_;
  bool last_before_;
};

}  // namespace

TensorImpl::TensorImpl(std::shared_ptr<Storage> s, const Shape& sh, Dtype d)
    : storage(std::move(s)), shape(sh), dtype(d) {}
TensorImpl::~TensorImpl() { release(std::move(node)); }

Node::~Node() {
  for (Edge& edge : inputs) release(std::move(edge.node));
}

Saved::Saved(const Tensor& x) {
  if (!x.defined()) return;
  tensor_ = x.detach();
  version_ = x.version();
}

const Tensor& Saved::get() const {
  if (tensor_.defined()) {
    require(tensor_.version() == version_, Kind::state, running_op,
            text("a tensor saved for backward was changed in place: ", tensor_),
            text("version ", tensor_.version()), text("version ", version_));
  }
  return tensor_;
}

Tensor Saved::to_write_over() const {
  const Tensor& x = get();
  return releasing && x.storage().use_count() == 1 ? x.detach() : empty_like(x);
}

NoGrad::NoGrad() : before_(recording) { recording = false; }
NoGrad::~NoGrad() { recording = before_; }
WithGrad::WithGrad() : before_(recording) { recording = true; }
WithGrad::~WithGrad() { recording = before_; }
bool grad_enabled() { return recording; }

Tensor record(const char* op, Tensor y, std::initializer_list<Tensor> inputs, Backward backward) {
  return record(op, std::move(y), std::span(inputs.begin(), inputs.size()), std::move(backward));
}

Tensor record(const char* op, Tensor y, std::span<const Tensor> inputs, Backward backward) {
  if (!recording) return y;
  if (std::ranges::none_of(inputs, [](const Tensor& x) { return x.requires_grad(); })) return y;
  require(is_floating(y.dtype()), Kind::dtype, op, "integers have no gradient", y.dtype(),
          "f32, f64 or bf16");
  require(backward != nullptr, Kind::state, op, "no backward was given", "none", "a function");
  if (y.requires_grad()) y = y.detach();  // an input itself: history on it would be a circle
  auto node = std::make_shared<Node>();
  node->op = op;
  node->id = next_node++;
  node->backward = std::move(backward);
  node->shape = y.shape();
  node->options = y.options();
  node->inputs.reserve(inputs.size());
  for (const Tensor& x : inputs) {
    Edge edge;
    if (x.requires_grad()) edge = {x.node(), x.node() ? nullptr : x.impl()};
    node->inputs.push_back(std::move(edge));
  }
  y.set_node(std::move(node));
  return y;
}

namespace {

// Whether others hold these elements, by this handle's copies or by handles of their own.
bool shared(const Tensor& x) { return x.impl().use_count() > 1 || x.storage().use_count() > 1; }

// sum += g. The first gradient is taken over, not added to zeros; a sum is only added to in place
// when nobody else holds its elements.
void accumulate(Tensor& sum, Tensor g) {
  if (!sum.defined()) {
    sum = std::move(g);
    return;
  }
  if (shared(sum)) sum = sum.clone();
  run<cpu::accumulate, gpu::accumulate>(g.device(), g, sum);
}

// A leaf's gradient may be scaled or cleared in place, so it shares its elements with nobody. The
// sum of several in bf16 is kept in f32: the later ones would be too small for its 8 bits to
// notice.
void accumulate_leaf(TensorImpl& leaf, Tensor g) {
  if (!leaf.grad.defined() && shared(g)) g = g.clone();
  if (leaf.grad.defined() && leaf.grad.dtype() == Dtype::bf16) leaf.grad = leaf.grad.to(Dtype::f32);
  accumulate(leaf.grad, std::move(g));
}

void require_fits(const char* op, const Tensor& g, const Shape& shape, TensorOptions options) {
  require(g.shape() == shape, Kind::shape, op, "gradient of wrong shape", g.shape(), shape);
  require(g.dtype() == options.dtype, Kind::dtype, op, "gradient of wrong dtype", g.dtype(),
          options.dtype);
  require(g.device() == options.device, Kind::device, op, "gradient on wrong device", g.device(),
          options.device);
}

// Every node that y came from, newest first: each after all that use it.
std::vector<std::shared_ptr<Node>> sorted(const std::shared_ptr<Node>& root) {
  const std::uint64_t pass = next_pass++;
  std::vector<std::shared_ptr<Node>> nodes{root};
  root->visited = pass;
  for (size_t i = 0; i < nodes.size(); ++i) {
    require(!nodes[i]->freed, Kind::state, "backward",
            text("the graph through `", nodes[i]->op, "` was already freed"), "a second backward",
            "retain_graph in the first one");
    const size_t edges = nodes[i]->inputs.size();
    for (size_t e = 0; e < edges; ++e) {
      const std::shared_ptr<Node>& next = nodes[i]->inputs[e].node;
      if (!next || next->visited == pass) continue;
      next->visited = pass;
      nodes.push_back(next);
    }
  }
  std::ranges::sort(nodes, [](const auto& a, const auto& b) { return a->id > b->id; });
  return nodes;
}

// Gives dy to the node's closure and its answers to the node's inputs.
void step(Node& node, bool retain_graph) {
  Gradients gradients;
  {
    const Tensor dy = std::move(node.gradient);
    node.gradient = {};
    if (!dy.defined()) return;
    require(!node.freed, Kind::state, node.op, "the graph was freed while backward ran through it",
            "a backward within a closure", "retain_graph in it");
    const Running running(node.op, !retain_graph);
    gradients = node.backward(dy);
  }
  require(gradients.size() == node.inputs.size(), Kind::state, node.op,
          "closure returned a wrong number of gradients", gradients.size(), node.inputs.size());
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Edge& edge = node.inputs[i];
    Tensor g = std::move(gradients[i]);
    if (!g.defined() || (!edge.node && !(edge.leaf && edge.leaf->requires_grad))) continue;
    if (edge.node) {
      require_fits(node.op, g, edge.node->shape, edge.node->options);
      accumulate(edge.node->gradient, std::move(g));
    } else {
      TensorImpl& leaf = *edge.leaf;  // where it is now: it may have been moved since
      require_fits(node.op, g, leaf.shape, {leaf.dtype, leaf.storage->device()});
      accumulate_leaf(leaf, std::move(g));
    }
  }
  if (!retain_graph) {
    node.freed = true;
    node.backward = nullptr;
    node.inputs.clear();
  }
}

}  // namespace

void backward(const Tensor& y, const Tensor& dy, BackwardOptions options) {
  require(!options.create_graph, Kind::state, "backward",
          "second-order gradients are not supported", "create_graph", "create_graph = false");
  require(y.requires_grad(), Kind::state, "backward", "no input requires a gradient", y,
          "the result of ops on a tensor with set_requires_grad(true)");
  require(dy.defined() || y.numel() == 1, Kind::state, "backward",
          text("shape ", y.shape(), " needs a gradient to start from"), "none", "dy of that shape");
  Tensor start = dy.defined() ? dy.detach() : ones_like(y);
  require_fits("backward", start, y.shape(), y.options());
  const NoGrad guard;
  if (!y.node()) return accumulate_leaf(*y.impl(), std::move(start));

  std::vector<std::shared_ptr<Node>> nodes = sorted(y.node());
  accumulate(y.node()->gradient, std::move(start));  // to what is there when a closure asks
  try {
    for (std::shared_ptr<Node>& node : nodes) {
      step(*node, options.retain_graph);
      node.reset();
    }
  } catch (...) {
    for (const std::shared_ptr<Node>& node : nodes)
      if (node) node->gradient = {};
    throw;
  }
}

}  // namespace ebb
