// Bytes on one device, counted by reference, from a caching allocator.
//
// Freed blocks are kept by size class and handed out again, so that a steady training step asks
// neither the driver nor the operating system for memory. When an allocation fails, the cache of
// that device is released and the allocation tried once more before error `oom` is raised.
// EBB_MEMORY=exact in the environment turns classes and cache off, for memory checkers.
#pragma once
#include <cstdint>
#include <string_view>

#include "ebb/core/device.h"

namespace ebb {

class Storage {
 public:
  Storage(std::string_view op, std::int64_t bytes, Device device);  // error `oom`
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }

  // Counts the changes made in place, so that backward can tell when a saved tensor is not what it
  // was. Only operations on tensors that someone may have saved count.
  std::uint64_t version() const { return version_; }
  void bump_version() { ++version_; }

 private:
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
  std::int64_t block_bytes_ = 0;  // of the size class
  Device device_;
  std::uint64_t version_ = 0;
};

struct MemoryStats {
  std::int64_t live = 0;    // bytes in tensors
  std::int64_t peak = 0;    // highest `live` since the start or reset_peak()
  std::int64_t cached = 0;  // bytes kept for reuse
};

MemoryStats memory_stats(Device device);
void reset_peak(Device device);
void release_cache(Device device);

// The device behaves as if it had `bytes` in all, live and cached; 0 lifts the limit.
void limit_memory(Device device, std::int64_t bytes);

// For tests: fresh memory is filled with 0xFF (NaN in every floating type), to show reads of what
// no one wrote.
void poison_memory(bool on);

}  // namespace ebb
