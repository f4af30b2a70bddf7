// Division without dividing, for kernels that find their place in a tensor.
#pragma once
#include <cstdint>

namespace ebb::gpu {

// n / d for 0 <= n < 2⁶³ by a multiplication and a shift.
// Source: Granlund and Montgomery 1994, "Division by invariant integers using multiplication".
struct Divider {
  std::uint64_t d = 1;
  std::uint64_t factor = 1;
  int shift = 0;

  Divider() = default;
  explicit Divider(std::int64_t divisor) : d(static_cast<std::uint64_t>(divisor)) {
    while ((std::uint64_t{1} << shift) < d) ++shift;
    const auto excess = static_cast<unsigned __int128>((std::uint64_t{1} << shift) - d);
    factor = static_cast<std::uint64_t>((excess << 64) / d) + 1;
  }
  __device__ std::uint64_t quotient(std::uint64_t n) const {
    return (__umul64hi(n, factor) + n) >> shift;
  }
  __device__ std::uint64_t remainder(std::uint64_t n) const { return n - quotient(n) * d; }
};

}  // namespace ebb::gpu
