// What the kernels of tf32.cuh leave: they take 0 for a number that is odd, NaN, infinite or very
// large, and name its row. What such a row has an effect on is made again by the kernels of
// core_*.cu: a query that is odd or sees an odd key, and every key that such a query sees.
// All others have the bits that they have without odd numbers.
#pragma once
#include <limits>

#include "ebb/ops/attention/cores.cuh"

namespace ebb::gpu::attention {

// The odd rows of q, dy, k and v, a bit each in tiles of 64.
struct OddRows {
  const std::uint64_t* tiles =
      nullptr;  // [heads]: of q and dy, or of q, then of k and of v; or null
  std::int64_t of_queries = 0, of_keys = 0;  // tiles of a head

  OddRows() = default;
  OddRows(const FlashAttentionSize& s, const Tensor& odd) {
    if (!odd.defined()) return;
    tiles = reinterpret_cast<const std::uint64_t*>(odd.data<std::int32_t>());
    of_keys = 2 * divide_up<std::int64_t>(s.length_k, 64);
    of_queries = odd.size(1) - of_keys;
  }
};

// Everything, where no other kernel ran.
struct AllRows {
  template <bool of_keys>
  __device__ constexpr bool row(std::int64_t) const {
    return true;
  }
};

// What odd rows reach in a head.
class Reached {
 public:
  // A whole warp asks.
  __device__ Reached(const OddRows& odd, const FlashAttentionSize& s, std::int64_t head) {
    queries_ = odd.tiles + head * (odd.of_queries + odd.of_keys);
    across_ = divide_up<std::int64_t>(s.length_q, 64);
    twice_ = odd.of_queries > across_;
    first_ = never;
    for (std::int64_t i = lane(); i < odd.of_keys; i += warp_size)
      if (const long long rows = bits(odd.of_queries + i); rows != 0)
        first_ = min(first_, i % (odd.of_keys / 2) * 64 + __ffsll(rows) - 1);
    first_ = warp_reduce<warp_size>(first_, [](auto a, auto b) { return min(a, b); });
    if (!s.is_causal && first_ < never) first_ = 0;
    last_ = first_ < s.length_q ? s.length_q - 1 : -1;
    for (std::int64_t i = lane(); i < odd.of_queries; i += warp_size)
      if (const long long rows = bits(i); rows != 0)
        last_ = max(last_, i % across_ * 64 + 63 - __clzll(rows));
    last_ = warp_reduce<warp_size>(last_, [](auto a, auto b) { return max(a, b); });
    last_key_ = s.is_causal || last_ < 0 ? last_ : never;
  }

  template <bool of_keys>
  __device__ bool row(std::int64_t i) const {
    if (of_keys || i >= first_) return i <= last_key_;
    return (bits(i / 64) | (twice_ ? bits(across_ + i / 64) : 0)) >> i % 64 & 1;
  }
  // Whether there is one, or might be.
  template <bool of_keys>
  __device__ bool any_from(std::int64_t i) const {
    return i <= (of_keys ? last_key_ : last_);
  }

 private:
  static constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();
  const std::uint64_t* queries_;
  std::int64_t across_;           // tiles of queries
  bool twice_;                    // those of q are followed by those of dy
  std::int64_t first_;            // from here on all queries
  std::int64_t last_, last_key_;  // up to here some queries; all keys

  __device__ long long bits(std::int64_t tile) const {
    return static_cast<long long>(queries_[tile]);
  }
};

}  // namespace ebb::gpu::attention
