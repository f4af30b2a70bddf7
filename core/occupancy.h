// How much of a GPU kernels can fill, by what they ask for: CUDA's occupancy calculation.
//
//   for (const KernelUse& k : kernels_of([&] { silu(x); })) …  k.warps of k.max_warps
#pragma once
#include <functional>
#include <string>
#include <vector>

namespace ebb {

struct KernelUse {
  std::string op;        // that launched it
  int threads = 0;       // of a block
  int registers = 0;     // of a thread
  int shared_bytes = 0;  // of a block
  int local_bytes = 0;   // of a thread: what did not fit into registers
  int blocks = 0;        // that a multiprocessor holds at a time
  int warps = 0;         // in those
  int max_warps = 0;     // that a multiprocessor could hold
};

// Calls f, and says what it launched from this thread, in order; nothing where no GPU is used.
std::vector<KernelUse> kernels_of(const std::function<void()>& f);

namespace gpu {
std::vector<KernelUse> kernels_of(const std::function<void()>& f);
}

}  // namespace ebb
