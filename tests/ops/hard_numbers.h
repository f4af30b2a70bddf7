// Hard numbers: inputs at which formulas overflow, cancel or meet infinities, and what must come
// out. The truth is the f64 result on the f32 inputs, or, at infinities, PyTorch's f32.
//
// (a) No finite input to an activation, softmax or norm gives NaN unless a table says so.
// (b) Infinities and NaN follow the tables. Where PyTorch's answer is an accident of its formula,
//     `or_nan` stands beside the limit: either passes, but the devices agree.
// (c) Denormals are not flushed.
// (d) NaN is a class; the sign of zero counts for neg and relu alone.
#pragma once
#include "pointwise.h"

namespace ebb::test {

struct Expected {
  double value;
  bool nan_too = false;
  Expected(double v) : value(v) {}  // NOLINT: a table is written in numbers
};

inline Expected or_nan(double limit) {
  Expected expected = limit;
  expected.nan_too = true;
  return expected;
}

// |got − expected| <= absolute + relative · |expected|, of infinities and NaN the class.
inline bool meets(double got, const Expected& expected, double absolute, double relative) {
  if (std::isnan(got)) return expected.nan_too || std::isnan(expected.value);
  if (std::isnan(expected.value)) return false;
  return got == expected.value ||
         std::abs(got - expected.value) <= absolute + relative * std::abs(expected.value);
}

// Relative digits that even far tails keep, and what a last denormal may be off by.
inline constexpr double digits = 4e-6;
inline constexpr double last_denormals = 3e-45;

struct Closeness {
  double relative = digits;
  double absolute = last_denormals;
};

inline void check_expected(const Tensor& got, const std::vector<Expected>& expected,
                           const std::string& what, Closeness close = {}) {
  const auto a = values(got);
  REQUIRE(a.size() == expected.size());
  for (size_t i = 0; i < a.size(); ++i)
    CHECK_MESSAGE(meets(a[i], expected[i], close.absolute, close.relative), what, ": element ", i,
                  " is ", a[i], ", expected ", expected[i].value);
}

// The devices answer NaN at the same places.
inline void check_same_nans(const std::vector<Tensor>& of_each_device, const std::string& what) {
  const auto first = values(of_each_device.front());
  for (const Tensor& x : of_each_device) {
    const auto other = values(x);
    for (size_t i = 0; i < first.size(); ++i)
      CHECK_MESSAGE(std::isnan(first[i]) == std::isnan(other[i]), what, ": devices differ at ", i);
  }
}

inline Tensor row_of(const std::vector<float>& x, Device device) {
  return tensor<float>(x, {static_cast<std::int64_t>(x.size())}, device);
}

// f of one row, and its gradient for the cotangent 1, 2, 3, …, on each device, in poisoned memory.
struct RowTable {
  std::vector<float> x;
  std::vector<Expected> y;
  std::vector<Expected> dx;
  Closeness of_y = {};
  Closeness of_dx = {digits, 1e-6};
};

inline void check_row_table(const std::string& name, const std::function<Tensor(const Tensor&)>& f,
                            const RowTable& table) {
  std::vector<Tensor> ys, dxs;
  poison_memory(true);
  for (const Device device : devices()) {
    const Tensor x = leaf(row_of(table.x, device));
    const Tensor y = f(x);
    std::vector<float> dy;
    for (std::int64_t i = 1; i <= y.numel(); ++i) dy.push_back(static_cast<float>(i));
    y.backward(tensor<float>(dy, y.shape(), device));
    std::ostringstream at;
    at << name << " on " << device << " of " << (table.x.empty() ? 0 : table.x.front()) << ", …";
    check_expected(y, table.y, at.str(), table.of_y);
    check_expected(x.grad(), table.dx, at.str() + ": gradient", table.of_dx);
    ys.push_back(y), dxs.push_back(x.grad());
  }
  poison_memory(false);
  check_same_nans(ys, name);
  check_same_nans(dxs, name + ": gradient");
}

}  // namespace ebb::test
