// Packs of elements between memory and arithmetic on the GPU. bf16 goes by pairs in one word, as
// taking a word apart and putting it together would cost as much as the arithmetic.
#pragma once
#include <utility>

#include "ebb/core/cuda.cuh"

namespace ebb::gpu {

// Whether no cache keeps so many T until they are read again.
template <class T>
bool passes(std::int64_t elements) {
  return elements >= (std::int64_t{1} << 26) / std::int64_t{sizeof(T)};
}

// *from. What is `passing` leaves the caches first: so a sum of a large tensor need not wait until
// what was written before it has gone to memory.
template <bool passing, class P>
__device__ P load(const P* from) {
  if constexpr (passing && sizeof(P) == 16)
    return __builtin_bit_cast(P, __ldcs(reinterpret_cast<const uint4*>(from)));
  else
    return *from;
}

// Chosen when it runs: between such loads the compiler puts no arithmetic, so more are under way.
template <class P>
__device__ P load(const P* from, bool passing) {
  if (passing) return load<true>(from);
  return *from;
}

// The pack at `from`, or zeros unless it is there.
template <int N, class T>
__device__ Pack<T, N> load_if(bool there, const T* from, bool passing = false) {
  if constexpr (std::is_same_v<T, bf16> && N % 2 == 0) {
    Pack<unsigned, N / 2> words{};
    if (there) words = load(reinterpret_cast<const Pack<unsigned, N / 2>*>(from), passing);
    return __builtin_bit_cast(Pack<T, N>, words);
  } else {
    Pack<T, N> pack{};
    if (there) pack = load(reinterpret_cast<const Pack<T, N>*>(from), passing);
    return pack;
  }
}

// Element j of a pack.
template <class T, int N>
__device__ Compute<T> widen(const Pack<T, N>& pack, int j) {
  if constexpr (std::is_same_v<T, bf16> && N % 2 == 0) {
    const unsigned word = __builtin_bit_cast(Pack<unsigned, N / 2>, pack).v[j / 2];
    return __uint_as_float(j % 2 == 0 ? word << 16 : word & 0xffff0000u);
  } else {
    return widen(pack.v[j]);
  }
}
// f of element j of every input's pack
template <class F, class T, int inputs, int width, size_t... I>
__device__ Compute<T> of_packs(const F& f, const Pack<T, width> (&in)[inputs], int j,
                               std::index_sequence<I...>) {
  return f(widen(in[I], j)...);
}

// The pack of the elements v.
template <class T, int N>
__device__ Pack<T, N> narrow(const Compute<T> (&v)[N]) {
  if constexpr (std::is_same_v<T, bf16> && N % 2 == 0) {
    Pack<unsigned, N / 2> words;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const __nv_bfloat162 both = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
      words.v[i] = reinterpret_cast<const unsigned&>(both);
    }
    return __builtin_bit_cast(Pack<T, N>, words);
  } else {
    Pack<T, N> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.v[j] = narrow<T>(v[j]);
    return pack;
  }
}
// *to = pack, as the words that narrow() made.
template <class T, int N>
__device__ void store_words(T* to, const Pack<T, N>& pack, bool passing = false) {
  if constexpr (sizeof(pack) == 16)
    if (passing) return __stcs(reinterpret_cast<uint4*>(to), __builtin_bit_cast(uint4, pack));
  if constexpr (std::is_same_v<T, bf16> && N % 2 == 0) {
    using Words = Pack<unsigned, N / 2>;
    store(reinterpret_cast<Words*>(to), __builtin_bit_cast(Words, pack));
  } else {
    store(reinterpret_cast<Pack<T, N>*>(to), pack);
  }
}

}  // namespace ebb::gpu
