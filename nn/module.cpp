#include "ebb/nn/module.h"

#include <algorithm>
#include <map>
#include <sstream>

#include "ebb/core/autograd.h"
#include "ebb/core/error.h"

namespace ebb::nn {
namespace {

enum class Role { parameter, buffer };

// Walks the tree and tells each tensor's full name, and each module below the root.
class Walk : public Parts {
 public:
  using OnTensor = std::function<void(const std::string& path, Tensor&, Role)>;
  using OnModule = std::function<void(Module&)>;
  Walk(OnTensor on_tensor, OnModule on_module)
      : on_tensor_(std::move(on_tensor)), on_module_(std::move(on_module)) {}

  void operator()(const std::string& name, Tensor& parameter) override {
    if (parameter.defined()) on_tensor_(prefix_ + name, parameter, Role::parameter);
  }
  void buffer(const std::string& name, Tensor& state) override {
    if (state.defined()) on_tensor_(prefix_ + name, state, Role::buffer);
  }
  void operator()(const std::string& name, Module& child) override {
    const std::string before = prefix_;
    prefix_ += name + '.';
    on_module_(child);
    child.parts(*this);
    prefix_ = before;
  }

 private:
  OnTensor on_tensor_;
  OnModule on_module_;
  std::string prefix_;
};

void for_each_tensor(Module& root, const Walk::OnTensor& f) {
  Tensors seen;
  Walk walk(
      [&](const std::string& path, Tensor& t, Role role) {
        if (std::ranges::any_of(seen, [&](const Tensor& s) { return s.same_as(t); })) return;
        seen.push_back(t);
        f(path, t, role);
      },
      [](Module&) {});
  root.parts(walk);
}

NamedTensors named(Module& root, Role wanted) {
  NamedTensors all;
  for_each_tensor(root, [&](const std::string& path, Tensor& t, Role role) {
    if (role == wanted) all.emplace_back(path, t);
  });
  return all;
}

}  // namespace

NamedTensors Module::named_parameters() { return named(*this, Role::parameter); }
NamedTensors Module::named_buffers() { return named(*this, Role::buffer); }

Tensors Module::parameters() {
  Tensors all;
  for (const auto& [path, t] : named_parameters()) all.push_back(t);
  return all;
}

NamedTensors Module::state() {
  NamedTensors all;
  for_each_tensor(*this,
                  [&](const std::string& path, Tensor& t, Role) { all.emplace_back(path, t); });
  return all;
}

void Module::load_state(const NamedTensors& state) {
  std::ostringstream wrong;
  std::map<std::string, Tensor> given;
  for (const auto& [path, t] : state)
    if (!given.emplace(path, t).second) wrong << " repeated " << path << ',';
  const NamedTensors own = this->state();
  std::vector<std::pair<Tensor, Tensor>> copies;  // to, from
  for (const auto& [path, t] : own) {
    const auto found = given.find(path);
    if (found == given.end()) {
      wrong << " missing " << path << ',';
      continue;
    }
    const Tensor& other = found->second;
    if (other.shape() != t.shape() || other.dtype() != t.dtype())
      wrong << ' ' << path << " is " << other.dtype() << ' ' << other.shape() << " instead of "
            << t.dtype() << ' ' << t.shape() << ',';
    copies.emplace_back(t, other);
    given.erase(found);
  }
  for (const auto& [path, t] : given) wrong << " unknown " << path << ',';
  std::string list = wrong.str();
  if (!list.empty()) list = list.substr(1, list.size() - 2);
  require(list.empty(), Kind::format, "load_state", "the state is not this model's", list,
          text("the ", own.size(), " tensors of the model"));
  const NoGrad guard;
  for (auto& [to, from] : copies) to.copy_(from);
}

void Module::train(bool on) {
  training_ = on;
  Walk walk([](const std::string&, Tensor&, Role) {}, [&](Module& child) { child.training_ = on; });
  parts(walk);
}

void Module::to(Device device) {
  for_each_tensor(*this, [&](const std::string&, Tensor& t, Role) { t.move_to(device); });
}

void Module::to(Dtype dtype) {
  require(is_floating(dtype), Kind::dtype, "Module::to", "parameters are floating", dtype,
          "f32, f64 or bf16");
  for_each_tensor(*this, [&](const std::string&, Tensor& t, Role) {
    if (is_floating(t.dtype())) t.convert_to(dtype);
  });
}

void Module::zero_grad() {
  for (Tensor& parameter : parameters()) parameter.zero_grad();
}

Tensor Sequential::forward(const Tensor& x) {
  Tensor y = x;
  for (const auto& module : modules_) y = module->forward(y);
  return y;
}

void Sequential::parts(Parts& p) {
  for (size_t i = 0; i < modules_.size(); ++i) p(std::to_string(i), *modules_[i]);
}

}  // namespace ebb::nn
