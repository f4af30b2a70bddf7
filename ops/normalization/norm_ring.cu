#include "ebb/ops/normalization/norm_ring.cuh"

#include <algorithm>
#include <numeric>

namespace ebb {
namespace gpu {
namespace {

// go.operator()<Ring>() with the fewest threads that hold a row of so many packs.
template <class T, bool packed, class Go>
void with_ring(std::int64_t packs, const Go& go) {
  if (packs <= 64) return go.template operator()<Ring<64, 1, 2, 4, packed>>();
  if (packs <= 96) return go.template operator()<Ring<96, 1, 2, 4, packed>>();
  if (packs <= 128) return go.template operator()<Ring<128, 1, 2, 4, packed>>();
  if (packs <= 192) return go.template operator()<Ring<192, 1, 2, 4, packed>>();
  if (packs <= 256) return go.template operator()<Ring<256, 1, 2, 4, packed>>();
  if (packs <= 384) return go.template operator()<Ring<192, 2, 1, 4, packed>>();
  if (packs <= 512) return go.template operator()<Ring<256, 2, 1, 4, packed>>();
  if (packs <= 1024) return go.template operator()<Ring<512, 2, 1, 4, packed>>();
  if constexpr (sizeof(T) == 4) go.template operator()<Ring<512, 4, 1, 3, packed>>();
}

// Blocks that share a row of so many packs, `most` each, or as many as there can be.
int ring_blocks(std::int64_t packs, std::int64_t most) {
  int blocks = 2;
  while (blocks < largest_cluster && packs > blocks * most) blocks *= 2;
  return blocks;
}

template <class T, bool centred, class R>
bool launch_ring(const NormalizeBackward& n, int blocks) {
  constexpr int count = centred ? 2 : 1;
  constexpr int width = pack_size<T>;
  constexpr auto kernel = ring_backward_kernel<T, R, centred>;
  const int period = row_period<T>(n.s.cols);
  const std::int64_t packs = divide_up<std::int64_t>(n.s.cols, width);
  const int slice = static_cast<int>(divide_up<std::int64_t>(packs, blocks)) * width;
  if (packs_of<T>(blocks == 1 ? n.s.cols : slice, period) > R::place) return false;
  Together together{static_cast<unsigned>(blocks), R::threads * R::groups, R::bytes,
                    static_cast<unsigned>(blocks)};
  int at_a_time = multiprocessors_used / blocks;
  if constexpr (R::sliced)
    at_a_time = std::min(at_a_time, clusters_at_a_time<kernel>(n.op, together));
  // As many groups for each place where rows begin.
  const std::int64_t unit = period / std::gcd(period, R::groups);
  const std::int64_t wanted = divide_up<std::int64_t>(n.s.rows, R::rows * R::groups * unit);
  const std::int64_t clusters = std::min(wanted, at_a_time / unit) * unit;
  if (clusters == 0) return false;
  const std::int64_t groups = clusters * R::groups;
  together.grid.x *= static_cast<unsigned>(clusters);
  ParameterSums<T, count> sums(n, clusters);
  Tensor windows;
  if (sums.data() && n.s.rows > groups * ring_window)
    windows = empty({count, groups * blocks, R::place * width}, n.rstd.options());
  const auto go = [&](const auto&... arguments) {
    if constexpr (R::sliced)
      launch_together(n.op, kernel, together, arguments...);
    else
      launch(n.op, kernel, together.grid, together.threads, together.shared, arguments...);
  };
  go(n.x.data<T>(), n.dy.data<T>(), data_or_null<T>(n.weight), data_or_null<double>(n.mean),
     n.rstd.data<float>(), RingRows{n.s.rows, n.s.cols, period, blocks, slice}, n.dx.data<T>(),
     data_or_null<float>(windows), sums.data());
  sums.add_up();
  return true;
}

template <class T, bool centred, bool packed>
bool backward_as(const NormalizeBackward& n) {
  constexpr std::int64_t most = sizeof(T) == 4 ? 2048 : 1024;  // packs of a block
  const std::int64_t packs = packs_of<T>(n.s.cols, row_period<T>(n.s.cols));
  if (packs <= most) {
    bool done = false;
    if (!few(n.s))
      with_ring<T, packed>(packs, [&]<class R>() { done = launch_ring<T, centred, R>(n, 1); });
    return done;
  }
  // Two rows in a block hide what the other one waits for, if a cluster of 8 is enough for that.
  if (packs <= 8 * 512)
    if (launch_ring<T, centred, Ring<256, 2, 1, 6, packed, true>>(n, ring_blocks(packs, 512)))
      return true;
  if (packs <= largest_cluster * 1024)
    if (launch_ring<T, centred, Ring<512, 2, 1, 6, packed, true>>(n, ring_blocks(packs, 1024)))
      return true;
  if constexpr (sizeof(T) == 4)
    return launch_ring<T, centred, Ring<512, 4, 1, 3, packed, true>>(n, ring_blocks(packs, 2048));
  return false;
}

template <class T, bool centred>
bool backward(const NormalizeBackward& n) {
  if (compute_capability() < 90 ||
      !hopper::has_barriers<ring_backward_kernel<float, Ring<64, 1, 2, 4>, true>>(n.op))
    return false;
  if (n.s.cols % pack_size<T> == 0) return backward_as<T, centred, true>(n);
  return backward_as<T, centred, false>(n);
}

}  // namespace

bool normalize_ring_backward(const NormalizeBackward& n) {
  return try_norm(n, [&]<class T, bool centred>() { return backward<T, centred>(n); });
}

}  // namespace gpu
}  // namespace ebb
