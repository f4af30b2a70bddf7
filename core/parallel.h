// Internal: not in <ebb/ebb.h>, not installed.
// The one threading scheme: a static split of [0, n) over OpenMP threads.
//
// Results never depend on the number of threads: each index is computed the same way wherever it
// lands, and sums are made of fixed blocks (block_sum) added up in order.
#pragma once
#include <algorithm>
#include <cstdint>
#include <exception>
#include <vector>

#include <omp.h>

namespace ebb {

// Calls f(begin, end) on disjoint parts of [0, n), each of at least `grain` indices.
// An exception in one part reaches the caller after all have ended.
template <class F>
void parallel_for(std::int64_t n, std::int64_t grain, F&& f) {
  if (n <= 0) return;
  const std::int64_t most = omp_in_parallel() ? 1 : omp_get_max_threads();
  const std::int64_t parts =
      std::clamp<std::int64_t>(n / std::max<std::int64_t>(grain, 1), 1, most);
  if (parts == 1) return f(std::int64_t{0}, n);
  std::exception_ptr failure;
#pragma omp parallel for schedule(static) num_threads(static_cast <int>(parts))
  for (std::int64_t p = 0; p < parts; ++p) {
    try {
      f(n * p / parts, n * (p + 1) / parts);
    } catch (...) {
#pragma omp critical(ebb_parallel_for)
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// Σ f(begin, end) over blocks of `block` indices, added in order in Sum's precision.
template <class Sum, class F>
Sum block_sum(std::int64_t n, std::int64_t block, F&& f) {
  const std::int64_t blocks = (n + block - 1) / block;
  std::vector<Sum> partial(static_cast<size_t>(blocks));
  parallel_for(blocks, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t b = first; b < last; ++b)
      partial[static_cast<size_t>(b)] = f(b * block, std::min(n, (b + 1) * block));
  });
  Sum sum{};
  for (const Sum& part : partial) sum += part;
  return sum;
}

}  // namespace ebb
