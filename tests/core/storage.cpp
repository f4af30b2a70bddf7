#include "ebb/core/storage.h"

#include <cmath>
#include <thread>

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {
constexpr std::int64_t mib = std::int64_t{1} << 20;
Tensor bytes(std::int64_t n, Device device) { return empty({n}, {Dtype::u8, device}); }
}  // namespace

TEST_CASE("storage: statistics follow tensors, and the cache gives blocks out again") {
  for (const Device device : devices()) {
    release_cache(device);
    reset_peak(device);
    const MemoryStats start = memory_stats(device);
    CHECK(start.cached == 0);
    CHECK(start.peak == start.live);
    const void* first = nullptr;
    {
      const Tensor x = bytes(mib, device);
      first = x.raw();
      CHECK(memory_stats(device).live == start.live + mib);
    }
    CHECK(memory_stats(device).live == start.live);
    CHECK(memory_stats(device).cached == mib);
    CHECK(memory_stats(device).peak == start.live + mib);
    {
      const Tensor x = bytes(mib - mib / 64, device);  // of the same class
      CHECK(x.raw() == first);
      CHECK(memory_stats(device).cached == 0);
    }
    release_cache(device);
    CHECK(memory_stats(device).cached == 0);
    CHECK(bytes(0, device).raw() == nullptr);
  }
}

TEST_CASE("storage: classes waste an eighth at most, and blocks are aligned") {
  for (const std::int64_t n : {1, 511, 512, 513, 1000, 4097, 100'000, 1 << 20, (1 << 20) + 1}) {
    const std::int64_t before = memory_stats(cpu_device).live;
    const Tensor x = bytes(n, cpu_device);
    const std::int64_t block = memory_stats(cpu_device).live - before;
    CHECK(block >= n);
    CHECK(block <= std::max<std::int64_t>(512, n + n / 8));
    CHECK(reinterpret_cast<std::uintptr_t>(x.raw()) % 64 == 0);
  }
}

TEST_CASE("storage: beyond the limit is error oom with figures; a smaller request then works") {
  for (const Device device : devices()) {
    release_cache(device);
    const MemoryStats start = memory_stats(device);
    limit_memory(device, start.live + 4 * mib);
    { const Tensor cached = bytes(mib, device); }
    for (int i = 0; i < 50; ++i) {
      check_error(Kind::oom,
                  {"empty: out of memory", std::to_string(8 * mib) + " bytes wanted on",
                   std::to_string(4 * mib) + " free", std::to_string(start.live) + " in use",
                   (i == 0 ? std::to_string(mib) : "0") + " cached and released"},
                  [&] { bytes(8 * mib, device); });
      CHECK(memory_stats(device).live == start.live);
    }
    CHECK(full({mib / 2}, 3, {Dtype::f32, device}).to_vector<float>().front() == 3);
    limit_memory(device, 0);
    CHECK(bytes(8 * mib, device).numel() == 8 * mib);
  }
}

TEST_CASE("storage: the cache is given back when that makes a request possible") {
  for (const Device device : devices()) {
    release_cache(device);
    limit_memory(device, memory_stats(device).live + 4 * mib);
    { const Tensor large = bytes(4 * mib, device); }
    CHECK(memory_stats(device).cached == 4 * mib);
    const Tensor x = bytes(3 * mib, device);
    CHECK(memory_stats(device).cached == 0);
    limit_memory(device, 0);
  }
}

TEST_CASE("storage: poisoned memory reads as NaN, fresh or reused") {
  for (const Device device : devices()) {
    poison_memory(true);
    for (int i = 0; i < 2; ++i)
      for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16})
        CHECK(std::isnan(values(empty({100}, {dtype, device})).back()));
    poison_memory(false);
  }
}

TEST_CASE("storage: many threads allocate and free at once") {
  const MemoryStats start = memory_stats(cpu_device);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([t, &wrong] {
      for (int i = 0; i < 500; ++i) {
        const Tensor x = full({1 + i % 37 * 100}, t);
        const Tensor y = x.clone();
        wrong += y.to_vector<float>().back() != static_cast<float>(t);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(memory_stats(cpu_device).live == start.live);
}
