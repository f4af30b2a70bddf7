// What happens when a tensor that an op has seen is changed before backward. The table of opcase
// knows every op, the golden cases how each is called.
#include "tools/opcase/case.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// An op's inputs, those leaves that have a gradient, and what came of them.
struct Forward {
  opcase::Call call;
  Tensor y;

  Forward(const opcase::Op& op, opcase::Call c, Device device) : call(std::move(c)) {
    for (auto& [name, x] : call.inputs) x = x.clone().to(device);
    for (const std::string& text : op.inputs) {
      const opcase::Input input(text);
      for (auto& [name, x] : call.inputs)
        if (name == input.name || input.list)
          x.set_requires_grad(input.differentiable && is_floating(x.dtype()));
    }
    y = op.run(call);
  }

  Tensor& victim(const std::string& name) { return name == "y" ? y : call.inputs.at(name); }

  std::vector<std::vector<double>> gradients() {
    y.backward(randn(y.shape(), 1, y.dtype(), y.device()));
    std::vector<std::vector<double>> all;
    for (const auto& [name, x] : call.inputs)
      if (x.grad().defined()) all.push_back(values(x.grad()));
    return all;
  }
};

opcase::Call first_case(const opcase::Op& op) {
  const std::string name = op.name;
  if (name == "dropout")  // has no golden cases
    return {name, {{"x", ones({9})}}, {name, op.attributes, opcase::Json::object()}};
  return opcase::read_case(name, GOLDEN_CASES "/" + name + "-05.safetensors").call;
}

// Whether backward noticed; if not, the change has changed no gradient.
bool noticed(const opcase::Op& op, const std::string& name, bool by_view, Device device) {
  INFO(std::string(op.name), ", ", name);
  const opcase::Call call = first_case(op);
  const auto expected = Forward(op, call, device).gradients();
  Forward forward(op, call, device);
  Tensor& x = forward.victim(name);
  {
    const NoGrad guard;
    (by_view ? reshape(x, {-1}) : x).fill_(1);
  }
  try {
    const auto gradients = forward.gradients();
    CHECK(gradients == expected);
    return false;
  } catch (const Error& error) {
    CHECK(error.kind() == Kind::state);
    const std::string what = error.what();
    CHECK_MESSAGE(what.rfind(op.name + std::string(": a tensor saved for backward was"), 0) == 0,
                  what);
    return true;
  }
}

}  // namespace

TEST_CASE(
    "changed: a changed input or result is noticed by the op's name, or changes no gradient") {
  int seen = 0;
  for (const Device device : devices())
    for (const opcase::Op& op : opcase::ops())
      for (const bool by_view : {false, true}) {
        for (const auto& [name, x] : first_case(op).inputs)
          seen += noticed(op, name, by_view, device);
        seen += noticed(op, "y", by_view, device);
      }
  CHECK(seen >= 80);
}
