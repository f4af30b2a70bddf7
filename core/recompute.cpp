#include "ebb/core/recompute.h"

#include "ebb/core/autograd.h"
#include "ebb/core/random.h"

namespace ebb {
namespace {

// Sets default_generator() back, and on again to where it was.
class Replay {
 public:
  explicit Replay(const Generator& then) : now_(default_generator()) { default_generator() = then; }
  ~Replay() { default_generator() = now_; }
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

 private:
  Generator now_;
};

// x as the result of an op: its gradients are then added up as they are without recompute, and not
// as those of a leaf.
Tensor as_result(const Tensor& x) {
  return record("recompute", x.detach(), {x}, [](const Tensor& dy) -> Gradients { return {dy}; });
}

}  // namespace

// The first run is recorded, and its graph let go at once: only it tells whether f needs a gradient
// for what it holds, parameters, when x needs none. Then a stand-in for x carries the graph on.
Tensor recompute(const std::function<Tensor(const Tensor&)>& f, const Tensor& x) {
  if (!grad_enabled()) return f(x);
  const Generator then = default_generator();
  const bool needs_x = x.requires_grad();
  Tensor y = f(x.detach().set_requires_grad(needs_x));
  if (!y.requires_grad()) return y;
  const auto backward = [f, then, needs_x, x = Saved(x)](const Tensor& dy) -> Gradients {
    const WithGrad again;
    const Replay replay(then);
    const Tensor own = x->detach().set_requires_grad(needs_x);
    f(as_result(own)).backward(dy);
    return {own.grad()};
  };
  const Tensor input = needs_x ? x : x.detach().set_requires_grad(true);
  return record("recompute", y.detach(), {input}, backward);
}

}  // namespace ebb
