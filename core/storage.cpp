#include "ebb/core/storage.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>
#include <sstream>
#include <utility>

#include "ebb/core/basic.h"
#include "ebb/core/error.h"
#include "ebb/core/run.h"

namespace ebb {
namespace {

bool asked_for(std::string_view memory) {
  const char* value = std::getenv("EBB_MEMORY");
  return value && value == memory;
}

std::atomic<bool> poison{asked_for("poison")};
thread_local MemoryPool* pool_in_use = nullptr;

// EBB_MEMORY=exact is for memory checkers: no size classes and no cache, so that a byte past a
// tensor is a byte past its allocation, and what is freed is gone.
bool exact_memory() {
  static const bool exact = asked_for("exact");
  return exact;
}

// Sizes are rounded up to one of eight steps between powers of two: at most an eighth is wasted,
// and a block fits every later request of its class.
std::int64_t size_class(std::int64_t bytes) {
  constexpr std::int64_t smallest = 512;
  constexpr std::int64_t largest = std::int64_t{1} << 60;  // beyond any machine: left as it is
  if (bytes > largest || exact_memory()) return bytes;
  if (bytes <= smallest) return smallest;
  const auto step =
      static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(bytes - 1)) / 8);
  return (bytes + step - 1) / step * step;
}

void* system_allocate(Device device, std::int64_t bytes, std::int64_t* free_bytes) {
  if (device.is_cuda()) {
    if constexpr (has_cuda) {
      gpu::use(device);
      return gpu::allocate(bytes, free_bytes);
    }
  }
  // Overcommitting systems grant what they do not have and kill the process later: ask first.
  const std::int64_t page = sysconf(_SC_PAGESIZE);
  *free_bytes = sysconf(_SC_AVPHYS_PAGES) * page;
  if (bytes > sysconf(_SC_PHYS_PAGES) * page) return nullptr;
  constexpr std::int64_t alignment = 64;
  return std::aligned_alloc(alignment,
                            static_cast<size_t>((bytes + alignment - 1) / alignment * alignment));
}

void system_release(Device device, void* block) {
  if (device.is_cuda()) {
    if constexpr (has_cuda) {
      gpu::use(device);
      gpu::release(block);
    }
    return;
  }
  std::free(block);
}

// The blocks of one device.
class Allocator {
 public:
  explicit Allocator(Device device) : device_(device) {}

  void* allocate(std::string_view op, std::int64_t block) {
    const std::lock_guard lock(mutex_);
    std::int64_t free_bytes = 0;
    void* data = take_cached(block);
    if (!data) data = fresh(block, &free_bytes);
    if (!data) {
      const std::int64_t cached = stats_.cached;
      release_cached();
      data = fresh(block, &free_bytes);
      if (!data) fail(op, block, free_bytes, cached);
    }
    stats_.live += block;
    stats_.peak = std::max(stats_.peak, stats_.live);
    return data;
  }

  void release(void* data, std::int64_t block) {
    const std::lock_guard lock(mutex_);
    stats_.live -= block;
    if (exact_memory()) return system_release(device_, data);
    try {
      free_[block].push_back(data);
      stats_.cached += block;
    } catch (const std::bad_alloc&) {  // no memory for the list: a destructor must not throw
      system_release(device_, data);
    }
  }

  MemoryStats stats() {
    const std::lock_guard lock(mutex_);
    return stats_;
  }
  void reset_peak() {
    const std::lock_guard lock(mutex_);
    stats_.peak = stats_.live;
  }
  void release_cache() {
    const std::lock_guard lock(mutex_);
    release_cached();
  }
  void limit(std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
    if (limit_ > 0 && stats_.live + stats_.cached > limit_) release_cached();
  }

 private:
  void* fresh(std::int64_t block, std::int64_t* free_bytes) {
    *free_bytes = limit_ - stats_.live - stats_.cached;
    if (limit_ > 0 && block > *free_bytes) return nullptr;
    return system_allocate(device_, block, free_bytes);
  }

  void* take_cached(std::int64_t block) {
    const auto found = free_.find(block);
    if (found == free_.end() || found->second.empty()) return nullptr;
    void* data = found->second.back();
    found->second.pop_back();
    stats_.cached -= block;
    return data;
  }

  void release_cached() {
    for (auto& [block, list] : free_)
      for (void* data : list) system_release(device_, data);
    free_.clear();
    stats_.cached = 0;
  }

  [[noreturn]] void fail(std::string_view op, std::int64_t block, std::int64_t free_bytes,
                         std::int64_t cached) {
    std::ostringstream got;
    got << block << " bytes wanted on " << device_ << ", " << std::max<std::int64_t>(free_bytes, 0)
        << " free, " << stats_.live << " in use, " << cached << " cached and released";
    raise(Kind::oom, op, "out of memory", got.str(), "a smaller batch or model");
  }

  Device device_;
  std::mutex mutex_;
  MemoryStats stats_;
  std::int64_t limit_ = 0;
  std::map<std::int64_t, std::vector<void*>> free_;
};

// Never destroyed: tensors with static lifetime may outlive every other static.
Allocator& allocator(Device device) {
  static std::mutex mutex;
  static auto* allocators = new std::map<std::pair<bool, int>, Allocator*>;
  const std::lock_guard lock(mutex);
  Allocator*& found = (*allocators)[{device.is_cuda(), device.index}];
  if (!found) {
    require_available("memory", device);
    found = new Allocator(device);
  }
  return *found;
}

}  // namespace

MemoryPool::Use::Use(MemoryPool& pool) : before_(std::exchange(pool_in_use, &pool)) {}
MemoryPool::Use::~Use() { pool_in_use = before_; }

void* MemoryPool::take(std::string_view op, std::int64_t block) {
  const std::lock_guard lock(mutex_);
  std::vector<void*>& list = free_[block];
  if (list.empty()) return allocator(device_).allocate(op, block);
  void* data = list.back();
  list.pop_back();
  return data;
}

void MemoryPool::give(void* data, std::int64_t block) {
  const std::lock_guard lock(mutex_);
  try {
    free_[block].push_back(data);
  } catch (const std::bad_alloc&) {  // lost until the process ends: a replay may still write it
  }
}

MemoryPool::~MemoryPool() {
  for (auto& [block, list] : free_)
    for (void* data : list) allocator(device_).release(data, block);
}

Storage::Storage(std::string_view op, std::int64_t bytes, Device device)
    : bytes_(bytes), device_(device) {
  if (bytes == 0) {
    require_available(op, device);
    return;
  }
  block_bytes_ = size_class(bytes);
  if (pool_in_use && pool_in_use->device() == device) pool_ = pool_in_use->shared_from_this();
  data_ = pool_ ? pool_->take(op, block_bytes_) : allocator(device).allocate(op, block_bytes_);
  if (!poison) return;
  if (!device.is_cuda()) {
    std::memset(data_, 0xFF, static_cast<size_t>(block_bytes_));
  } else if constexpr (has_cuda) {
    try {
      gpu::use(device);
      gpu::fill_bytes(data_, 0xFF, block_bytes_);
    } catch (...) {
      release();
      throw;
    }
  }
}

Storage::~Storage() {
  if (data_) release();
}

void Storage::release() {
  if (pool_) {
    pool_->give(data_, block_bytes_);
  } else {
    allocator(device_).release(data_, block_bytes_);
  }
}

MemoryStats memory_stats(Device device) { return allocator(device).stats(); }
void reset_peak(Device device) { allocator(device).reset_peak(); }
void release_cache(Device device) { allocator(device).release_cache(); }
void limit_memory(Device device, std::int64_t bytes) { allocator(device).limit(bytes); }
void poison_memory(bool on) { poison = on || asked_for("poison"); }

}  // namespace ebb
