// What the tests of maps of one tensor share.
#pragma once
#include "twins.h"

namespace ebb::test {

// f32 values and gradients (of cotangent 1) at chosen points; NaN and infinities are classes.
struct Table {
  std::vector<float> x;
  std::vector<double> y;
  std::vector<double> dx;
};

inline void check_table(const std::function<Tensor(const Tensor&)>& f, const Table& table,
                        TwinTolerance tolerance = {}) {
  const auto n = static_cast<std::int64_t>(table.x.size());
  for (const Device device : devices()) {
    const Tensor x = leaf(tensor<float>(table.x, {n}, device));
    const Tensor y = f(x);
    check_close(y, tensor<double>(table.y, {n}), tolerance.value, "value");
    y.backward(ones_like(y));
    check_close(x.grad(), tensor<double>(table.dx, {n}), tolerance.gradient, "gradient");
  }
}

// bf16 in, bf16 out, arithmetic in f32: half a bf16 ulp and a little.
inline constexpr Tolerance bf16_rounding{1e-30, 0.0042};

inline void check_bf16(const Function& f, const Tensors& inputs) {
  for (const Device device : devices()) {
    Tensors rounded;
    Tensors wide;
    for (const Tensor& x : inputs) {
      rounded.push_back(leaf(x.to(Dtype::bf16).to(device)));
      wide.push_back(leaf(rounded.back().detach().to(cpu_device).to(Dtype::f64)));
    }
    const Tensor y = f(rounded);
    CHECK(y.dtype() == Dtype::bf16);
    check_close(y, f(wide), bf16_rounding, "bf16 value");
  }
}

inline void check_sizes(const Function& f, double scale = 5, TwinTolerance tolerance = {}) {
  for (const std::int64_t n : {0, 1, 7, 255, 4097, 40001})
    check_twins(f, {randn({n}, 2, Dtype::f64, cpu_device, scale)}, tolerance);
}

// One element at a time gives the bits that the whole tensor gives.
inline void check_position_free(const std::function<Tensor(const Tensor&)>& f) {
  const Tensor x = randn({37}, 5, Dtype::f32, cpu_device, 3);
  const auto whole = f(x).to_vector<float>();
  const auto v = x.to_vector<float>();
  for (size_t i = 0; i < v.size(); ++i)
    check_close(f(tensor<float>({v[i]}, {1})), tensor<float>({whole[i]}, {1}), exact, "alone");
}

inline constexpr double inf = std::numeric_limits<double>::infinity();
inline constexpr double qnan = std::numeric_limits<double>::quiet_NaN();
inline constexpr float inff = std::numeric_limits<float>::infinity();
inline constexpr float qnanf = std::numeric_limits<float>::quiet_NaN();

}  // namespace ebb::test
