// What op tests are made of. An op's test says: literal values; gradients in f64 on each device;
// twins at ragged, 1 and 0 sizes in f32 against the f64 CPU result; error texts; one property.
#pragma once
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "ebb/core/basic.h"
#include "ebb/ebb.h"

namespace ebb::test {

// Seconds of processor time since it was made: what limits of time are held against, as it does
// not count what other programs do meanwhile. With the sanitizers a tenth of it.
class Stopwatch {
 public:
  double seconds() const {
    const double passed = static_cast<double>(std::clock() - start_) / CLOCKS_PER_SEC;
#ifdef __SANITIZE_ADDRESS__
    return passed / 10;
#else
    return passed;
#endif
  }

 private:
  std::clock_t start_ = std::clock();
};

inline int gpu_checks_run = 0;
inline int gpu_checks_skipped = 0;

// The CPU, and the GPU where there is one; where there is none, that is counted.
inline std::vector<Device> devices() {
  if (cuda_device_count() > 0) {
    ++gpu_checks_run;
    return {cpu_device, cuda_device};
  }
  ++gpu_checks_skipped;
  return {cpu_device};
}

// Whether a test of the GPU alone has none to run on; that is counted.
inline bool gpu_missing() { return devices().size() == 1; }

// Standard normal numbers × scale; different seeds, different numbers.
inline Tensor randn(const Shape& shape, std::uint64_t seed, Dtype dtype = Dtype::f64,
                    Device device = cpu_device, double scale = 1) {
  Generator generator(seed);
  return normal(shape, 0, scale, generator, {Dtype::f64, device}).to(dtype);
}

inline Tensor leaf(const Tensor& x) {
  Tensor own = x.detach();
  own.set_requires_grad(true);
  return own;
}

// The values of any floating tensor.
inline std::vector<double> values(const Tensor& x) { return x.to(Dtype::f64).to_vector<double>(); }

using Function = std::function<Tensor(const Tensors&)>;

// f64 inputs; each floating one is differentiated, on every device. A failure leaves a case for
// opcase behind, of the op that the test's name begins with; its attributes are not known here.
inline void check_gradients(const Function& f, const Tensors& inputs,
                            GradcheckOptions options = {}) {
  const std::string test = doctest::getContextOptions()->currentTest->m_name;
  options.op = test.substr(0, test.find(':'));
  for (const Device device : devices()) {
    const char* where = device.is_cuda() ? "-cuda.safetensors" : "-cpu.safetensors";
    options.file = std::filesystem::temp_directory_path() / ("gradcheck-" + options.op + where);
    Tensors there;
    for (const Tensor& x : inputs) {
      Tensor own = x.defined() ? x.detach().clone().to(device) : x;
      if (own.defined() && is_floating(own.dtype())) own.set_requires_grad(true);
      there.push_back(own);
    }
    const GradcheckResult result = gradcheck(f, there, options);
    INFO("device ", static_cast<std::ostringstream&&>(std::ostringstream() << device).str());
    CHECK_MESSAGE(result.ok, result.report);
  }
}

// |value − reference| <= absolute + relative · scale, where scale is |reference|, or the largest
// |reference| of the tensor for ops whose elements share one rounding error (sums, rows).
struct Tolerance {
  double absolute;
  double relative;
  bool of_largest = false;
};
inline constexpr double long_sum = 16 * 0x1p-24;  // of Σ|terms|, for a sum in float32
inline constexpr Tolerance exact{0, 0};
inline constexpr Tolerance one_rounding{0, 1.2e-7};
inline constexpr Tolerance pointwise{2e-6, 2e-6};
inline constexpr Tolerance pointwise_gradient{8e-6, 4e-6};
inline constexpr Tolerance row{0, 2e-6, true};
inline constexpr Tolerance row_gradient{0, 4e-6, true};
inline constexpr Tolerance rounded_to_bf16{2e-5, 1.0 / 255};  // once: by 2^-8, and f32's error

// The larger error of two, and NaN once there is one: std::max would drop it.
inline double worse(double a, double b) { return a != a || b <= a ? a : b; }

// By how much the worst element is beyond the tolerance, NaN if one is by mistake, and which.
struct Excess {
  double by = -1;
  size_t at = 0;
};

inline Excess largest_excess(const std::vector<double>& got, const std::vector<double>& reference,
                             Tolerance tolerance) {
  double largest = 0;
  for (const double v : reference)
    if (std::isfinite(v)) largest = std::max(largest, std::abs(v));
  Excess worst;
  for (size_t i = 0; i < got.size(); ++i) {
    const double a = got[i], b = reference[i];
    if (std::isnan(b) ? std::isnan(a) : a == b) continue;  // also equal infinities
    const double scale = tolerance.of_largest ? largest : std::abs(b);
    const double by = std::abs(a - b) - (tolerance.absolute + tolerance.relative * scale);
    if (worse(worst.by, by) != worst.by) worst = {worse(worst.by, by), i};
    if (std::isnan(worst.by)) break;
  }
  return worst;
}

inline void check_close(const Tensor& got, const Tensor& reference, Tolerance tolerance,
                        const std::string& what) {
  REQUIRE(got.shape() == reference.shape());
  const std::vector<double> a = values(got);
  const std::vector<double> b = values(reference);
  const Excess worst = largest_excess(a, b, tolerance);
  std::ostringstream message;
  message.precision(9);
  message << what << ": element " << worst.at;
  if (!a.empty()) message << " is " << a[worst.at] << ", the f64 reference says " << b[worst.at];
  CHECK_MESSAGE(worst.by <= 0, message.str());
}

// Blocks for memory checkers, that end where their tensor does: storage.h.
inline bool memory_is_exact() {
  const char* memory = std::getenv("EBB_MEMORY");
  return memory && std::string(memory) == "exact";
}

// Whether the bytes behind x in its block, up to the next 64, are still the poison that they were
// made of: if not, someone wrote past the end.
inline bool ends_in_poison(const Tensor& x) {
  if (memory_is_exact()) return true;
  std::vector<unsigned char> behind(static_cast<size_t>(-x.storage()->bytes() & 63));
  if (behind.empty()) return true;
  const char* end = static_cast<const char*>(x.storage()->data()) + x.storage()->bytes();
  copy_bytes(behind.data(), cpu_device, end, x.device(), static_cast<std::int64_t>(behind.size()));
  return std::ranges::all_of(behind, [](unsigned char byte) { return byte == 0xFF; });
}

inline bool same_bytes(const Tensor& a, const Tensor& b) {
  const Tensor x = a.to(cpu_device), y = b.to(cpu_device);
  return x.shape() == y.shape() && x.dtype() == y.dtype() &&
         (x.bytes() == 0 || std::memcmp(x.raw(), y.raw(), static_cast<size_t>(x.bytes())) == 0);
}

struct TwinTolerance {
  Tolerance value = pointwise;
  Tolerance gradient = pointwise_gradient;
};
inline constexpr TwinTolerance two_products{{4e-6, 4e-6}, {0, 8e-6, true}};  // of matrices, in turn

// Runs f on the inputs in f32 on each device, forward and backward with a random dy, into poisoned
// memory that stays so behind each result, and compares with the CPU in f64 on the same
// (f32-rounded) inputs. Twice: same bits.
inline void check_twins(const Function& f, const Tensors& inputs, TwinTolerance tolerance = {}) {
  struct Result {
    Tensor y;
    Tensors gradients;
  };
  const auto run = [&](Dtype dtype, Device device) {
    poison_memory(true);
    Tensors there;
    for (const Tensor& x : inputs) {
      Tensor own = x;
      if (x.defined() && is_floating(x.dtype()))
        own = leaf(x.to(Dtype::f32).to(dtype).clone().to(device));
      else if (x.defined())
        own = x.to(device);
      there.push_back(own);
    }
    Result result{f(there), {}};
    if (result.y.requires_grad()) {
      const Tensor dy = randn(result.y.shape(), 99, Dtype::f32).to(dtype).to(device);
      result.y.backward(dy);
    }
    for (const Tensor& x : there)
      result.gradients.push_back(x.defined() && x.requires_grad() ? x.grad() : Tensor());
    result.y = result.y.detach();
    poison_memory(false);
    return result;
  };
  const Result reference = run(Dtype::f64, cpu_device);
  for (const Device device : devices()) {
    const Result result = run(Dtype::f32, device);
    const Result again = run(Dtype::f32, device);
    std::ostringstream where;
    where << device;
    for (const Tensor& x : inputs) where << ' ' << x;
    check_close(result.y, reference.y, tolerance.value, "y on " + where.str());
    CHECK_MESSAGE(same_bytes(again.y, result.y), "y again on ", where.str());
    CHECK_MESSAGE(ends_in_poison(result.y), "past the end of y on ", where.str());
    for (size_t i = 0; i < inputs.size(); ++i) {
      REQUIRE(result.gradients[i].defined() == reference.gradients[i].defined());
      if (!result.gradients[i].defined()) continue;
      const std::string name = "gradient " + std::to_string(i) + " on " + where.str();
      check_close(result.gradients[i], reference.gradients[i], tolerance.gradient, name);
      CHECK_MESSAGE(same_bytes(again.gradients[i], result.gradients[i]), name, ", again");
      CHECK_MESSAGE(ends_in_poison(result.gradients[i]), "past the end of ", name);
    }
  }
}

// f() must raise an error of this kind whose text contains each of these parts.
inline void check_error(Kind kind, const std::vector<std::string>& parts,
                        const std::function<void()>& f) {
  try {
    f();
    FAIL_CHECK("nothing was raised; expected " << parts.front());
  } catch (const Error& error) {
    CHECK(name(error.kind()) == name(kind));
    for (const std::string& part : parts)
      CHECK_MESSAGE(std::string(error.what()).find(part) != std::string::npos,
                    std::string(error.what()), " lacks ", part);
  }
}

}  // namespace ebb::test
