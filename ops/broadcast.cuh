// Maps on the GPU whose operands repeat: y[i] = f(a[…], b[…]).
//
//   broadcast<T>("mul", Mul{}, Layout(y.shape(), a.shape(), b.shape()), n, y, a, b);
//
// A thread makes packs of y, of 16 bytes. What such a pack meets of an operand is mostly a pack
// too, or one element over and over; where rows are not whole packs, elements of a row and of the
// next one. Places are found without division, in words of 32 bits where those suffice.
#pragma once
#include "ebb/ops/divider.cuh"
#include "ebb/ops/elementwise/broadcast.h"
#include "ebb/ops/map.cuh"

namespace ebb::gpu {

// What a pack of y meets of an operand: the pack at the same place, another pack, one element, the
// end of a row and the start of the next, or elements of several rows.
enum class Meets { same, pack, element, rows, elements };

// Of rank `most` at most.
template <class T, class Word, int inputs, int most>
struct Operands {
  static constexpr int width = pack_size<T>;
  using P = Pack<T, width>;
  const T* x[inputs];
  Meets meets[inputs];
  int rank;
  WordDivider<Word> row;         // the last dimension of y
  WordDivider<Word> dims[most];  // of y
  Word steps[inputs][most];      // of operands along them
  Word step[inputs];             // along the last

  Operands(const Layout& l, const Pointers<const T, inputs>& from)
      : rank(l.rank), row(l.dims[l.rank - 1]) {
    const std::int64_t* const all[] = {l.a, l.b};
    const std::int64_t cols = l.dims[rank - 1];
    for (int d = 0; d < rank; ++d) dims[d] = WordDivider<Word>(l.dims[d]);
    for (int k = 0; k < inputs; ++k) {
      x[k] = from.p[k];
      for (int d = 0; d < rank; ++d) steps[k][d] = static_cast<Word>(all[k][d]);
      step[k] = static_cast<Word>(all[k][rank - 1]);
      meets[k] = l.lies_like_y(all[k]) ? Meets::same
                 : cols < width        ? Meets::elements
                 : cols % width != 0   ? Meets::rows
                 : step[k] == 0        ? Meets::element
                                       : Meets::pack;
    }
  }

  // Where element i of y finds its element of operand k.
  __device__ Word place(int k, Word i) const {
    Word at = 0;
#pragma unroll
    for (int d = most - 1; d > 0; --d) {
      if (d >= rank) continue;
      const Word q = dims[d].quotient(i);
      at += (i - q * dims[d].d) * steps[k][d];
      i = q;
    }
    return at + i * steps[k][0];
  }

  // What the pack of y at i meets of operand k; y ends at n.
  __device__ P load(int k, Word i, Word n) const {
    const bool whole = n - i >= width;
    if (meets[k] == Meets::same && whole) return *reinterpret_cast<const P*>(x[k] + i);
    const T* const from = x[k] + place(k, i);
    if (meets[k] == Meets::pack && whole) return *reinterpret_cast<const P*>(from);
    P pack{};
    if (meets[k] == Meets::element && whole) {
      const T element = *from;
#pragma unroll
      for (int j = 0; j < width; ++j) pack.v[j] = element;
    } else if (meets[k] == Meets::rows) {
      const Word left = row.d - row.remainder(i);
      const T* const next = left < width && left < n - i ? x[k] + place(k, i + left) : from;
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (j < n - i) pack.v[j] = j < left ? from[j * step[k]] : next[(j - left) * step[k]];
    } else {
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (j < n - i) pack.v[j] = x[k][place(k, i + j)];
    }
    return pack;
  }
};

// All is read before the first pack is written, or each would wait for its operands.
template <class T, int packs, class Word, int most, class F, int inputs>
__global__ void __launch_bounds__(map_threads)
    broadcast_kernel(F f, Word n, const __grid_constant__ Operands<T, Word, inputs, most> from,
                     T* y) {
  constexpr int width = pack_size<T>;
  using P = Pack<T, width>;
  const Word start = (Word{blockIdx.x} * (map_threads * packs) + threadIdx.x) * width;
  const auto at = [&](int p) { return start + static_cast<Word>(p * map_threads * width); };
  P in[packs][inputs];
#pragma unroll
  for (int p = 0; p < packs; ++p)
#pragma unroll
    for (int k = 0; k < inputs; ++k)
      if (at(p) < n) in[p][k] = from.load(k, at(p), n);
#pragma unroll
  for (int p = 0; p < packs; ++p) {
    if (at(p) >= n) return;
    P out;
#pragma unroll
    for (int j = 0; j < width; ++j) {
      Values<T, inputs> x;
#pragma unroll
      for (int k = 0; k < inputs; ++k) x.v[k] = in[p][k].v[j];
      out.v[j] = apply<T, 1>(f, x, std::make_index_sequence<inputs>()).v[0];
    }
    if (n - at(p) >= width) {
      store(reinterpret_cast<P*>(y + at(p)), out);
    } else {
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (j < n - at(p)) y[at(p) + j] = out.v[j];
    }
  }
}

// More packs a thread where there is little to read.
template <class T, class F, class... X>
void broadcast(std::string_view op, const F& f, const Layout& layout, std::int64_t n, T* y,
               const X*... x) {
  if (n == 0) return;
  if (layout.equal()) return map<T>(op, f, n, y, x...);
  constexpr int inputs = sizeof...(X);
  const auto go = [&]<int packs, class Word, int most>() {
    constexpr std::int64_t tile = std::int64_t{map_threads} * packs * pack_size<T>;
    launch(op, broadcast_kernel<T, packs, Word, most, F, inputs>,
           dim3(static_cast<unsigned>(divide_up(n, tile))), map_threads, 0, f, static_cast<Word>(n),
           Operands<T, Word, inputs, most>(layout, Pointers<const T, inputs>{{x...}}), y);
  };
  constexpr int few = 3;  // dimensions, as nearly all have
  if (n >= std::int64_t{1} << 31)
    return go.template operator()<1, std::uint64_t, Shape::max_rank>();
  if (layout.rank > few) return go.template operator()<1, std::uint32_t, Shape::max_rank>();
  if (layout.lies_like_y(layout.a) || layout.lies_like_y(layout.b))
    return go.template operator()<1, std::uint32_t, few>();
  go.template operator()<2, std::uint32_t, few>();
}

}  // namespace ebb::gpu
