// Bytes on one device, counted by reference, from a caching allocator.
//
// Freed blocks are kept by size class and handed out again, so that a steady training step asks
// neither the driver nor the operating system for memory. When an allocation fails, the cache of
// that device is released and the allocation tried once more before error `oom` is raised.
// Every block begins at a multiple of 64 bytes, on a GPU of 256: kernels may move 16 at a time.
// EBB_MEMORY=exact in the environment turns classes and cache off, for memory checkers;
// EBB_MEMORY=poison starts with poison_memory on.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "ebb/core/device.h"

namespace ebb {

// Memory that stays where it is, for what a captured graph writes at every replay: while a pool is
// in use on this thread, new storage on its device comes from it, and goes back to it when freed,
// never to others. The pool's blocks go to the cache when the last who holds the pool lets go.
class MemoryPool : public std::enable_shared_from_this<MemoryPool> {
 public:
  explicit MemoryPool(Device device) : device_(device) {}
  ~MemoryPool();
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  Device device() const { return device_; }
  void* take(std::string_view op, std::int64_t block);  // error `oom`
  void give(void* data, std::int64_t block);

  class Use {
   public:
    explicit Use(MemoryPool& pool);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    MemoryPool* before_;
  };

 private:
  Device device_;
  std::mutex mutex_;
  std::map<std::int64_t, std::vector<void*>> free_;
};

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
  void release();
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
  std::int64_t block_bytes_ = 0;  // of the size class
  Device device_;
  std::uint64_t version_ = 0;
  std::shared_ptr<MemoryPool> pool_;  // that the block came from, if it was one
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
