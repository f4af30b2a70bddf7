// Where a tensor lives: the CPU, or one CUDA device.
#pragma once
#include <ostream>
#include <string>
#include <string_view>

namespace ebb {

struct Device {
  enum class Type : unsigned char { cpu, cuda };
  Type type = Type::cpu;
  int index = 0;

  bool is_cuda() const { return type == Type::cuda; }
  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr Device cpu_device{};
inline constexpr Device cuda_device{Device::Type::cuda, 0};

// "cpu", "cuda", "cuda:1"; error `device` for anything else, for a device that is not there, and
// for cuda in a build without it.
Device parse_device(std::string_view text);

// How many CUDA devices answer; 0 in a build without CUDA and on a machine without a driver.
int cuda_device_count();

// Whether this library was built with its CUDA kernels. This line and run() (core/run.h) are all
// that knows.
inline constexpr bool has_cuda = EBB_WITH_CUDA;

// Raises error `device` unless tensors can be made there.
void require_available(std::string_view op, Device device);

// Waits until everything queued on the device has run, and reports what failed there.
void synchronize(Device device);

// float32 products, convolutions and attention are exact float32 unless TF32 is allowed here.
// CUDA only; off by default.
void allow_tf32(bool on);
bool tf32_allowed();

inline std::ostream& operator<<(std::ostream& out, Device device) {
  if (!device.is_cuda()) return out << "cpu";
  return out << "cuda:" << device.index;
}

}  // namespace ebb
