// Module: a function of one tensor with named parameters, buffers and children.
//
//   struct Net : nn::Module {
//     nn::Linear hidden{784, 128};
//     nn::Linear output{128, 10};
//     Tensor forward(const Tensor& x) override { return output(relu(hidden(x))); }
//     void parts(nn::Parts& p) override { p("hidden", hidden), p("output", output); }
//   };
//
// parts() names everything once; parameters(), state(), to(), train() all walk it. Names join with
// dots: "hidden.weight". Modules are values: a copy shares its tensors with the original, as copies
// of tensors do.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "ebb/core/tensor.h"

namespace ebb::nn {

class Module;

// What parts() reports to.
class Parts {
 public:
  virtual ~Parts() = default;
  virtual void operator()(const std::string& name, Tensor& parameter) = 0;
  virtual void operator()(const std::string& name, Module& child) = 0;
  virtual void buffer(const std::string& name, Tensor& state) = 0;  // saved, but not trained
};

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

class Module {
 public:
  virtual ~Module() = default;
  virtual Tensor forward(const Tensor& x) = 0;
  virtual void parts(Parts&) {}
  Tensor operator()(const Tensor& x) { return forward(x); }

  // In the order that parts() names them. A tensor reached by two names is listed once, under the
  // first (shared weights are saved once).
  NamedTensors named_parameters();
  NamedTensors named_buffers();
  Tensors parameters();

  // Parameters and buffers, by name: what a checkpoint holds of a model.
  NamedTensors state();
  // Copies values in. Error `format` that lists every missing, unknown, repeated, misshapen or
  // wrongly typed name; then nothing has been loaded.
  void load_state(const NamedTensors& state);

  void train(bool on = true);  // dropout drops, batch norm uses the batch's statistics
  void eval() { train(false); }
  bool training() const { return training_; }
  void to(Device device);  // all of it, in place, before an optimizer is made
  void to(Dtype dtype);    // parameters and floating buffers, in place, before an optimizer is made
  void zero_grad();

 private:
  bool training_ = true;
};

// Runs its modules one after another; they are named "0", "1", ….
//   Sequential net(Linear(784, 128), ReLU(), Linear(128, 10));
class Sequential : public Module {
 public:
  Sequential() = default;
  template <class First, class... Rest>
  requires(sizeof...(Rest) > 0 || !std::is_same_v<First, Sequential>)  // that is a copy
      explicit Sequential(First first, Rest... rest) {
    add(std::move(first));
    (add(std::move(rest)), ...);
  }
  template <class M>
  Sequential& add(M module) {
    modules_.push_back(std::make_shared<M>(std::move(module)));
    return *this;
  }
  Tensor forward(const Tensor& x) override;
  void parts(Parts& p) override;

 private:
  std::vector<std::shared_ptr<Module>> modules_;
};

}  // namespace ebb::nn
