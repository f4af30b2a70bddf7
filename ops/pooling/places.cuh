// Pooling on the GPU: which thread has which place of the planes, and how narrow a type may count
// them. What a thread does there is in known.cuh and any.cuh, by the kind of window.
#pragma once
#include <algorithm>

#include "ebb/core/cuda.cuh"
#include "ebb/ops/divider.cuh"
#include "ebb/ops/pooling/window.h"

namespace ebb::gpu {

inline constexpr int pool_threads = 256;  // of a block, at most; half for lines

template <class Index>
struct Place {
  bool there;
  Index plane, row, column;
};

// planes × rows × columns, counted in words of 32 bits where that suffices.
template <class Word>
struct Places {
  Word size;
  WordDivider<Word> rows, columns;

  Places(std::int64_t planes, std::int64_t rows, std::int64_t columns)
      : size(static_cast<Word>(planes * rows * columns)),
        rows(std::max<std::int64_t>(1, rows)),
        columns(std::max<std::int64_t>(1, columns)) {}
  // The fewer there are, the more multiprocessors they should be spread over.
  int threads() const {
    return size <= 1 << 16 ? 64 : rows.d == 1 ? pool_threads / 2 : pool_threads;
  }
  dim3 blocks(int threads) const {
    return dim3(static_cast<unsigned>(divide_up(size, static_cast<Word>(threads))));
  }
  dim3 blocks() const { return blocks(threads()); }
  __device__ auto operator[](Word i) const {
    using Index = std::make_signed_t<Word>;
    const Word line = columns.quotient(i);
    const Word plane = rows.quotient(line);
    return Place<Index>{i < size, static_cast<Index>(plane),
                        static_cast<Index>(line - plane * rows.d),
                        static_cast<Index>(i - line * columns.d)};
  }
};
using FewPlaces = Places<std::uint32_t>;  // less than 2³¹
template <class Index>
using PlacesOf = Places<std::make_unsigned_t<Index>>;

// f(the thread's place), if it has one.
template <class Word, class F>
__device__ void at_place(const Places<Word>& places, const F& f) {
  const auto at = places[blockIdx.x * Word{blockDim.x} + threadIdx.x];
  if (at.there) f(at);
}

// Whether an int can count the places of a plane, with room for a window.
inline bool is_small(const PoolSize& s) {
  constexpr std::int64_t most = std::int64_t{1} << 30;
  return s.h * s.w < most && s.p * s.q < most &&
         std::max(s.kernel_h * s.dilation_h, s.stride_h) < most &&
         std::max(s.kernel_w * s.dilation_w, s.stride_w) < most;
}

// Whether an int can count the places of all planes as well.
inline bool is_few(const PoolSize& s) {
  constexpr std::int64_t most = std::int64_t{1} << 31;
  return is_small(s) && s.planes * std::max(s.h * s.w, s.p * s.q) < most;
}

}  // namespace ebb::gpu
