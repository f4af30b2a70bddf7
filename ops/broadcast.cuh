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
#include "ebb/ops/packs.cuh"

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
    Compute<T> value[width];
#pragma unroll
    for (int j = 0; j < width; ++j)
      value[j] = of_packs(f, in[p], j, std::make_index_sequence<inputs>());
    const P out = narrow<T>(value);
    if (n - at(p) >= width) {
      store_words(y + at(p), out);
    } else {
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (j < n - at(p)) y[at(p) + j] = out.v[j];
    }
  }
}

// The same where one operand is a row, as a bias is, and the other lies as y does: a thread has a
// pack of columns, of two rows.
template <class T, bool row_first, class F>
__global__ void __launch_bounds__(map_threads)
    row_kernel(F f, std::int64_t rows, unsigned packs, const T* row, const T* x, T* y) {
  constexpr int width = pack_size<T>;
  using P = Pack<T, width>;
  const unsigned tiles = divide_up<unsigned>(packs, map_threads);
  const unsigned pair = blockIdx.x / tiles;
  const unsigned column = (blockIdx.x - pair * tiles) * map_threads + threadIdx.x;
  if (column >= packs) return;
  const std::int64_t at = std::int64_t{pair} * 2 * packs + column;
  const bool both = pair * std::int64_t{2} + 1 < rows;
  P in[2][2];  // of a row: operands in their order
  in[0][row_first] = load_if<width>(true, x + at * width);
  in[1][row_first] = load_if<width>(both, x + (at + packs) * width);
  in[0][!row_first] = in[1][!row_first] = load_if<width>(true, row + column * std::int64_t{width});
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    if (u == 1 && !both) return;
    Compute<T> value[width];
#pragma unroll
    for (int j = 0; j < width; ++j) value[j] = of_packs(f, in[u], j, std::make_index_sequence<2>());
    store_words(y + (at + u * packs) * width, narrow<T>(value));
  }
}

// False where none is a row, or not one that is worth a kernel of its own.
template <class T, class F>
bool broadcast_row(std::string_view op, const F& f, const Layout& layout, std::int64_t n, T* y,
                   const T* a, const T* b) {
  constexpr std::int64_t worth = 32 << 20;  // bytes
  const Periodic p(layout);
  const std::int64_t packs = p.period / pack_size<T>, rows = n / p.period;
  const std::int64_t blocks =
      divide_up<std::int64_t>(packs, map_threads) * divide_up<std::int64_t>(rows, 2);
  if (!p.found || p.inner != 1 || p.period % pack_size<T> != 0 || packs < map_threads / 2 ||
      n * std::int64_t{sizeof(T)} <= worth || blocks >= std::int64_t{1} << 31)
    return false;
  const auto kernel = p.first ? row_kernel<T, true, F> : row_kernel<T, false, F>;
  launch(op, kernel, dim3(static_cast<unsigned>(blocks)), map_threads, 0, f, rows,
         static_cast<unsigned>(packs), p.first ? a : b, p.first ? b : a, y);
  return true;
}

// More packs a thread where there is little to read.
template <class T, class F, class... X>
void broadcast(std::string_view op, const F& f, const Layout& layout, std::int64_t n, T* y,
               const X*... x) {
  if (n == 0) return;
  if (layout.equal()) return map<T>(op, f, n, y, x...);
  constexpr int inputs = sizeof...(X);
  if constexpr (inputs == 2)
    if (broadcast_row<T>(op, f, layout, n, y, x...)) return;
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
