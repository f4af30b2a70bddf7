// Random numbers: Philox 4x32-10, a function from (key, counter) to four 32-bit numbers, so that
// any element's number can be computed anywhere in any order: the same bits on CPU and GPU.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once
#include <array>
#include <cstdint>

#include "ebb/core/tensor.h"

namespace ebb {

// constexpr, so that kernels may call it too.
struct Philox {
  std::uint32_t v[4];
};

constexpr Philox philox(std::uint64_t key, std::uint64_t counter_low, std::uint64_t counter_high) {
  auto k0 = static_cast<std::uint32_t>(key);
  auto k1 = static_cast<std::uint32_t>(key >> 32);
  Philox c{{static_cast<std::uint32_t>(counter_low), static_cast<std::uint32_t>(counter_low >> 32),
            static_cast<std::uint32_t>(counter_high),
            static_cast<std::uint32_t>(counter_high >> 32)}};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c.v[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c.v[2];
    c = {{static_cast<std::uint32_t>(p1 >> 32) ^ c.v[1] ^ k0, static_cast<std::uint32_t>(p1),
          static_cast<std::uint32_t>(p0 >> 32) ^ c.v[3] ^ k1, static_cast<std::uint32_t>(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// [0, 1) in steps of 2⁻²⁴, exactly representable in f32.
constexpr float unit_float(std::uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

// One stream of numbers. While a step is captured (core/graph.h), `shift` points to device memory
// that holds how far the replays have moved on.
struct Stream {
  std::uint64_t seed;
  std::uint64_t index;
  const std::uint64_t* shift = nullptr;

  // The index to count from, where the numbers are drawn.
  constexpr std::uint64_t now() const { return shift ? index + *shift : index; }
};

// Hands out streams: each call to next() is a new one. Its state is two integers, which a
// checkpoint keeps: seed() and drawn(), which restore() takes back. A generator belongs to one
// thread at a time.
class Generator {
 public:
  explicit Generator(std::uint64_t seed = 0) : seed_(seed) {}
  Stream next();  // error `state` while a step is captured, but for the default generator
  std::uint64_t seed() const { return seed_; }
  std::uint64_t drawn() const { return drawn_; }
  void restore(std::uint64_t seed, std::uint64_t drawn) {
    seed_ = seed;
    drawn_ = drawn;
  }

 private:
  std::uint64_t seed_;
  std::uint64_t drawn_ = 0;
};

// The generator that layers draw from when they are given none; one for each thread.
Generator& default_generator();
void manual_seed(std::uint64_t seed);

// [low, high), drawn on the device; the same bits on every device (bf16 may round up to high).
// Error `dtype` unless floating, `value` unless low <= high and both and their distance are finite
// numbers of the element type.
Tensor uniform(const Shape& shape, double low, double high, Generator& generator,
               TensorOptions options = {});

// Mean and standard deviation as given; drawn on the CPU (log and cosine differ between devices),
// then copied. Errors as uniform().
Tensor normal(const Shape& shape, double mean, double deviation, Generator& generator,
              TensorOptions options = {});

// 0 … n−1 in random order, i32 [n].
Tensor permutation(std::int64_t n, Generator& generator, Device device = cpu_device);

// While one is alive on this thread, streams of the default generator carry this shift.
class ShiftedStreams {
 public:
  explicit ShiftedStreams(const std::uint64_t* shift);
  ~ShiftedStreams();
  ShiftedStreams(const ShiftedStreams&) = delete;
  ShiftedStreams& operator=(const ShiftedStreams&) = delete;
};

// Error `state` for a stream whose shift only the device can read.
void require_on_host(std::string_view op, const Stream& stream);

using Uniform = void(const Stream& stream, double low, double high, Tensor& y);
namespace cpu {
Uniform uniform;
}
namespace gpu {
Uniform uniform;
}

}  // namespace ebb
