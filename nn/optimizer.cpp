#include "ebb/nn/optimizer.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "ebb/core/autograd.h"
#include "ebb/core/eigen.h"
#include "ebb/core/error.h"
#include "ebb/core/run.h"
#include "ebb/nn/multi_tensor.h"

namespace ebb::nn {

std::vector<Group> decay_groups(Module& module, double weight_decay) {
  std::vector<Group> groups = {{{}, weight_decay}, {{}, 0}};
  for (const Tensor& p : module.parameters()) groups[p.rank() >= 2 ? 0 : 1].parameters.push_back(p);
  return groups;
}

namespace {

// One kernel works on them all.
void require_together(const char* op, const Tensors& tensors) {
  for (const Tensor& t : tensors)
    require(t.device() == tensors.front().device(), Kind::device, op,
            "tensors on different devices", t.device(), tensors.front().device());
}

// What the error of a norm that is not finite shows.
std::string first_nonfinite(const Tensors& parameters) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor g = parameters[i].grad();
    if (!g.defined()) continue;
    const auto values = g.to(Dtype::f64).to_vector<double>();
    const auto bad = std::ranges::count_if(values, [](double v) { return !std::isfinite(v); });
    if (bad == 0) continue;
    std::ostringstream shown;
    shown << bad << " such elements for parameter " << i << ", " << parameters[i];
    return shown.str();
  }
  return "a norm that overflows";
}

}  // namespace

Optimizer::Optimizer(const char* name, const std::vector<Group>& groups,
                     std::vector<std::string> slots, Betas betas)
    : name_(name), betas_(betas), slot_names_(std::move(slots)), slots_(slot_names_.size()) {
  for (const Group& group : groups) {
    require(std::isfinite(group.weight_decay) && group.weight_decay >= 0, Kind::value, name,
            "bad weight_decay", group.weight_decay, "0 or more");
    for (const Tensor& parameter : group.parameters) {
      require(is_floating(parameter.dtype()), Kind::dtype, name, "a parameter must be floating",
              parameter.dtype(), "f32, f64 or bf16");
      require(!parameter.node(), Kind::state, name, "a parameter must be a leaf",
              text("the result of `", parameter.node() ? parameter.node()->op : "", "`"),
              "a tensor whose own gradient backward() adds to");
      const auto same = [&](const Tensor& p) { return p.same_as(parameter); };
      require(std::ranges::none_of(parameters_, same), Kind::value, name,
              "a parameter is given twice", parameter, "each of them once, in one group");
      parameters_.push_back(parameter);
      decay_.push_back(group.weight_decay);
    }
  }
  require(!parameters_.empty(), Kind::value, name, "nothing to train", "no parameters",
          "at least one");
  for (const Tensor& p : parameters_) {
    const bool coarse = p.dtype() == Dtype::bf16;
    const Dtype dtype = coarse ? Dtype::f32 : p.dtype();
    masters_.push_back(coarse ? p.detach().to(Dtype::f32) : Tensor());
    for (Tensors& slot : slots_) slot.push_back(zeros(p.shape(), {dtype, p.device()}));
  }
  const Device device = parameters_.front().device();
  require_together(name, parameters_);
  count_ = zeros({1}, {Dtype::i32, device});
  numbers_ = empty({3}, {Dtype::f64, device});
}

std::int64_t Optimizer::steps() const { return static_cast<std::int64_t>(count_.item()); }

void Optimizer::step(double rate) {
  require(std::isfinite(rate) && rate >= 0, Kind::value, name_, "bad learning rate", rate,
          "a finite number, 0 or more");
  take_step(rate, {});
}

void Optimizer::step(const Tensor& rates) {
  require(rates.dtype() == Dtype::f64, Kind::dtype, name_, "rates of another type", rates.dtype(),
          Dtype::f64);
  require(rates.rank() == 1 && rates.numel() >= 1, Kind::shape, name_, "bad table of rates",
          rates.shape(), "[n], 1 or more");
  require(rates.device() == count_.device(), Kind::device, name_, "rates on another device",
          rates.device(), count_.device());
  take_step(0, rates);
}

void cpu::begin_step(double rate, const Tensor& rates, double beta1, double beta2, Tensor& count,
                     Tensor& numbers) {
  const int t = ++*count.data<std::int32_t>();
  if (rates.defined()) rate = rates.data<double>()[std::min<std::int64_t>(t, rates.numel()) - 1];
  const double size = rate / (1 - std::pow(beta1, t));
  *static_cast<StepNumbers*>(numbers.raw()) = {rate, size, 1 / std::sqrt(1 - std::pow(beta2, t))};
}

void Optimizer::take_step(double rate, const Tensor& rates) {
  Batch batch;
  batch.slots.resize(slots_.size());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& p = parameters_[i];
    const Tensor g = p.grad();
    if (!g.defined()) continue;
    const Tensor& slot = slots_.front()[i];
    require(masters_[i].defined() ? p.dtype() == Dtype::bf16 : p.dtype() == slot.dtype(),
            Kind::state, name_, "a parameter was converted", p.dtype(),
            "a model that is converted before its optimizer is made");
    require(g.device() == p.device() && slot.device() == p.device(), Kind::state, name_,
            "parameter, gradient and state are on different devices",
            text(p.device(), ", ", g.device(), ", ", slot.device()),
            "a model that is moved before its optimizer is made");
    batch.parameters.push_back(p);
    batch.gradients.push_back(g);
    batch.masters.push_back(masters_[i]);
    for (size_t s = 0; s < slots_.size(); ++s) batch.slots[s].push_back(slots_[s][i]);
    batch.decay.push_back(decay_[i]);
  }
  run<cpu::begin_step, gpu::begin_step>(count_.device(), rate, rates, betas_.beta1, betas_.beta2,
                                        count_, numbers_);
  if (batch.parameters.empty()) return;
  update(batch, numbers_);
  for (Tensor& p : batch.parameters) p.bump_version();
}

void Optimizer::zero_grad() {
  for (Tensor& p : parameters_) p.zero_grad();
}

NamedTensors Optimizer::state() const {
  NamedTensors all;
  for (size_t s = 0; s < slots_.size(); ++s)
    for (size_t i = 0; i < parameters_.size(); ++i)
      all.emplace_back(std::to_string(i) + '.' + slot_names_[s], slots_[s][i]);
  for (size_t i = 0; i < masters_.size(); ++i)
    if (masters_[i].defined()) all.emplace_back(std::to_string(i) + ".master", masters_[i]);
  return all;
}

void Optimizer::load_state(const NamedTensors& state, std::int64_t steps) {
  const NamedTensors own = this->state();
  const auto fits = [](const auto& a, const auto& b) {
    return a.first == b.first && a.second.shape() == b.second.shape() &&
           a.second.dtype() == b.second.dtype();
  };
  require(std::ranges::equal(own, state, fits), Kind::format, name_,
          "the state is not this optimizer's", text(state.size(), " tensors"),
          text("the ", own.size(), " of this one, in order"));
  require(0 <= steps && steps <= INT32_MAX, Kind::format, name_, "bad number of steps", steps,
          "0 or more");
  for (size_t i = 0; i < own.size(); ++i) Tensor(own[i].second).copy_(state[i].second);
  count_.fill_(static_cast<double>(steps));
}

Tensor clip_grad_norm(const Tensors& parameters, double max_norm, ClipOptions options) {
  require(std::isfinite(max_norm) && max_norm > 0, Kind::value, "clip_grad_norm", "bad max_norm",
          max_norm, "a positive number");
  Tensors gradients;
  for (const Tensor& p : parameters)
    if (p.grad().defined()) gradients.push_back(p.grad());
  if (gradients.empty())
    return zeros({}, {Dtype::f32, parameters.empty() ? cpu_device : parameters.front().device()});
  require_together("clip_grad_norm", gradients);
  const Device device = gradients.front().device();
  const bool fine = gradients.front().dtype() == Dtype::f64;
  Tensor norm = empty({}, {fine ? Dtype::f64 : Dtype::f32, device});
  run<cpu::multi_norm, gpu::multi_norm>(device, gradients, norm);
  if (options.error_if_nonfinite && !std::isfinite(norm.item()))
    raise(Kind::state, "clip_grad_norm", "a gradient is NaN or infinite",
          first_nonfinite(parameters), "finite gradients");
  run<cpu::multi_clip, gpu::multi_clip>(device, gradients, norm, max_norm);
  return norm;
}

void cpu::multi_norm(const Tensors& tensors, Tensor& norm) {
  std::int64_t chunks = 0;
  for (const Tensor& t : tensors) chunks += chunks_of(t.numel());
  std::vector<double> partial(static_cast<size_t>(chunks));
  for_each_chunk(tensors, [&](size_t t, std::int64_t chunk, std::int64_t begin, std::int64_t end) {
    double& sum = partial[static_cast<size_t>(chunk)];
    visit<float, double, bf16>(tensors[t].dtype(), "clip_grad_norm", [&](auto zero) {
      const auto* g = tensors[t].data<decltype(zero)>();
      if constexpr (std::is_same_v<decltype(zero), bf16>) {
        for (std::int64_t i = begin; i < end; ++i) {
          const double x = static_cast<float>(g[i]);
          sum += x * x;
        }
      } else {
        sum = ebb::cpu::array(g + begin, end - begin).template cast<double>().square().sum();
      }
    });
  });
  double sum = 0;
  for (const double p : partial) sum += p;
  norm.fill_(std::sqrt(sum));
}

void cpu::multi_clip(const Tensors& tensors, const Tensor& norm, double max_norm) {
  const double scale = max_norm / norm.item();
  if (!(scale < 1)) return;
  for_each_chunk(tensors, [&](size_t t, std::int64_t, std::int64_t begin, std::int64_t end) {
    visit<float, double, bf16>(tensors[t].dtype(), "clip_grad_norm", [&](auto zero) {
      using T = decltype(zero);
      T* g = Tensor(tensors[t]).data<T>();
      if constexpr (std::is_same_v<T, bf16>) {
        const auto factor = static_cast<float>(scale);
        for (std::int64_t i = begin; i < end; ++i) g[i] = bf16(static_cast<float>(g[i]) * factor);
      } else {
        ebb::cpu::array(g + begin, end - begin) *= static_cast<T>(scale);
      }
    });
  });
}

}  // namespace ebb::nn
