// Finite differences of every golden case: its op with its attributes, in f64 on each device. A
// failure is replayed by `opcase --gradcheck FILE`.
#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "tools/opcase/case.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

namespace fs = std::filesystem;

// Where differences say nothing about a derivative, and why.
const std::map<std::string, std::set<std::string>> without_differences = {
    {"bytes have no gradient", {"invert_colors-07", "invert_colors-08", "rgb_to_grayscale-08"}},
    {"a step reaches over a kink or a pole",
     {"l2_normalize-09", "l2_normalize-10", "log-08", "max-17", "relu-09", "sqrt-08"}},
    {"a step is much for how fast the slope changes",
     {"exp-08", "layer_norm-14", "layer_norm-16", "rms_norm-14", "rms_norm-15"}},
    {"numbers so large that their rounding is one of the slope",
     {"layer_norm-12", "mse_loss-09", "sum-19"}}};

bool has_differences(const std::string& name) {
  return std::ranges::none_of(without_differences,
                              [&](const auto& entry) { return entry.second.count(name) > 0; });
}

std::vector<fs::path> cases_with_differences() {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(GOLDEN_CASES))
    if (has_differences(entry.path().stem())) found.push_back(entry.path());
  std::ranges::sort(found);
  return found;
}

// Of an op's cases the largest of up to 512 numbers, its own numbers replaced by ones that are 1
// and more away from every kink and pole: a maximum's by ones 1 apart, the others' by 1.5 to 6.
// Attention has neither, and scores of such numbers would bend within a step.
opcase::Call smooth_call(const opcase::Op& op) {
  const std::string name = op.name;
  opcase::Call best{name, {{"x", zeros({300})}}, {name, op.attributes, opcase::Json::object()}};
  std::int64_t most = 0;
  for (const fs::path& path : cases_with_differences()) {
    if (path.stem().string().substr(0, path.stem().string().rfind('-')) != name) continue;
    const opcase::Call call = opcase::read_case(name, path).call;
    std::int64_t size = 0;
    for (const auto& [input, x] : call.inputs) size += x.numel();
    if (size <= most || size > 512) continue;
    most = size;
    best = call;
  }
  Generator generator(1);
  for (auto& [input, x] : best.inputs) {
    if (!is_floating(x.dtype())) continue;
    if (name == "flash_attention")
      x = uniform(x.shape(), -1, 1, generator);
    else
      x = name.rfind("max", 0) == 0 ? x * 16 : uniform(x.shape(), 1.5, 6, generator);
  }
  return best;
}

// Σ u · y along the directions v, by four points, against Σ v · dx.
void check_slope(const opcase::Op& op, Device device) {
  opcase::Call call = smooth_call(op);
  Generator generator(2);
  std::map<std::string, Tensor> start, v;
  for (auto& [name, x] : call.inputs) {
    x = x.to(device);
    if (!is_floating(x.dtype())) continue;
    start[name] = x = leaf(x);
    v[name] = uniform(x.shape(), -1, 1, generator).to(device);
  }
  const Tensor y = op.run(call);
  const Tensor u = randn(y.shape(), 3, Dtype::f32, device);
  y.backward(u);
  double slope = 0;
  for (const auto& [name, x] : start) {
    if (x.grad().defined())
      slope += sum(x.grad() * v[name]).item();
    else
      v.erase(name);  // of statistics and weights that have none
  }
  const auto at = [&](double t) {
    const NoGrad guard;
    for (const auto& [name, direction] : v) call.inputs[name] = start[name] + direction * t;
    const auto values_of_u = values(u), values_of_y = values(op.run(call));
    double dot = 0;
    for (size_t i = 0; i < values_of_u.size(); ++i) dot += values_of_u[i] * values_of_y[i];
    return dot;
  };
  constexpr double h = 0.1;
  const double numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
  CHECK_MESSAGE(std::abs(slope - numeric) <= 1e-3 * (1 + std::abs(numeric)), call.op, " on ",
                std::string(device.is_cuda() ? "cuda" : "cpu"), ": backward says ", slope,
                ", differences say ", numeric);
}

}  // namespace

TEST_CASE("gradcheck: the golden cases' gradients agree with finite differences") {
  int checked = 0;
  for (const fs::path& path : cases_with_differences()) {
    ++checked;
    for (const Device device : devices()) {
      std::string op;
      double worst = 1;
      const opcase::Outcome outcome = opcase::gradcheck_case(path, device, &op, &worst);
      CHECK_MESSAGE(outcome.exit == opcase::ran, path.string(), ": ", outcome.error);
      CHECK(worst <= 1e-8);
    }
  }
  CHECK(checked > 550);
}

TEST_CASE("gradcheck: in f32 each op's slope is its backward's, to three digits") {
  for (const opcase::Op& op : opcase::ops())
    for (const Device device : devices()) check_slope(op, device);
}
