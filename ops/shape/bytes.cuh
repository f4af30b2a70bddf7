// Elements as plain words, so that one kernel serves every dtype of a size, and short ones travel
// in words of up to 16 bytes where extents allow it.
#pragma once
#include "ebb/core/cuda.cuh"

namespace ebb::gpu {

// The most, up to 16, that divide all numbers of bytes whose bits are in `bits`.
inline int word_bytes(std::int64_t bits) {
  const std::int64_t largest = bits & -bits;
  return largest == 0 || largest > 16 ? 16 : static_cast<int>(largest);
}

// Calls f(Word{}) with a word of 1, 2, 4, 8 or 16 bytes.
template <class F>
void visit_word(int bytes, F&& f) {
  switch (bytes) {
    case 1:
      return f(std::uint8_t{});
    case 2:
      return f(std::uint16_t{});
    case 4:
      return f(std::uint32_t{});
    case 8:
      return f(std::uint64_t{});
    default:
      return f(uint4{});
  }
}

}  // namespace ebb::gpu
