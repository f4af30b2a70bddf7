// The same on the GPU: up to `table_size` tensors travel in the kernel's arguments, and block b
// looks its tensor and chunk up there. More tensors take more launches, as do tensors of other
// types.
#pragma once
#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "ebb/core/cuda.cuh"
#include "ebb/nn/optimizer.h"

namespace ebb::nn::gpu {

using ebb::gpu::launch;
using ebb::gpu::narrow;
using ebb::gpu::Pack;
using ebb::gpu::widen;

inline constexpr int table_size = 48;  // 48 · (5 pointers + 2 numbers) + 49 starts < 4 KiB
inline constexpr int chunk_threads = 256;

// Lists of tensors of the same sizes, the elements of list k of type T[k]; and one number for each
// tensor.
template <class... T>
struct Table {
  void* data[sizeof...(T)][table_size];
  std::int64_t n[table_size];
  double number[table_size];
  int first_chunk[table_size + 1];
  int tensors;
};
template <class... T>
using Lists = std::array<Tensors, sizeof...(T)>;

struct Place {
  int tensor;
  std::int64_t begin;
  std::int64_t end;
};

// The chunk that a block works on.
template <class... T>
__device__ Place place_of(const Table<T...>& table, int block) {
  int low = 0;
  int high = table.tensors;  // first_chunk[low] <= block < first_chunk[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.first_chunk[middle] <= block ? low : high) = middle;
  }
  const std::int64_t begin = (block - table.first_chunk[low]) * chunk_size;
  const std::int64_t end = begin + chunk_size;
  return {low, begin, end < table.n[low] ? end : table.n[low]};
}

// Calls use(table, its chunks, chunks before it) for each table full of tensors.
template <class... T, class Use>
void for_each_table(const Lists<T...>& lists, const std::vector<double>& numbers, Use&& use) {
  constexpr std::array dtypes = {dtype_of<std::remove_const_t<T>>...};
  const size_t count = lists[0].size();
  std::int64_t before = 0;
  for (size_t first = 0; first < count; first += table_size) {
    Table<T...> table;
    table.tensors = static_cast<int>(std::min<size_t>(table_size, count - first));
    table.first_chunk[0] = 0;
    for (int t = 0; t < table.tensors; ++t) {
      for (size_t k = 0; k < lists.size(); ++k) {
        const Tensor& x = lists[k][first + t];
        require(x.dtype() == dtypes[k], Kind::dtype, "optimizer", "list of another type", x.dtype(),
                dtypes[k]);
        table.data[k][t] = Tensor(x).raw();
      }
      table.n[t] = lists[0][first + t].numel();
      table.number[t] = numbers.empty() ? 0 : numbers[first + t];
      table.first_chunk[t + 1] = table.first_chunk[t] + static_cast<int>(chunks_of(table.n[t]));
    }
    const int chunks = table.first_chunk[table.tensors];
    use(table, chunks, before);
    before += chunks;
  }
}

// f as it is applied: with what it has to read first, if anything, read once a thread.
template <class F>
__device__ auto loaded(const F& f) {
  if constexpr (requires { f.loaded(); }) {
    return f.loaded();
  } else {
    return f;
  }
}

// w neighbours of a list of T, from element i on.
template <class T, int w>
__device__ auto& pack_at(void* list, std::int64_t i) {
  using X = std::remove_const_t<T>;
  return *reinterpret_cast<Pack<X, w>*>(static_cast<X*>(list) + i);
}

// f(the tensor's number, element of list 0, element of list 1, …), elements by reference, for w
// neighbours; lists of const T are only read.
template <int w, class F, class... T, size_t... k>
__device__ void apply(const F& f, const Table<T...>& table, int tensor, std::int64_t i,
                      std::index_sequence<k...>) {
  std::tuple x{pack_at<T, w>(table.data[k][tensor], i)...};
#pragma unroll
  for (int j = 0; j < w; ++j) f(table.number[tensor], static_cast<T&>(std::get<k>(x).v[j])...);
  const auto store = [&]<class X>(void* list, const Pack<X, w>& pack) {
    ebb::gpu::store(&pack_at<X, w>(list, i), pack);
  };
  ((std::is_const_v<T> ? void() : store(table.data[k][tensor], std::get<k>(x))), ...);
}

// By 16 bytes of the widest type; the rest element by element.
template <class F, class... T>
__global__ void __launch_bounds__(chunk_threads)
    multi_map_kernel(F f, const __grid_constant__ Table<T...> table) {
  constexpr auto lists = std::index_sequence_for<T...>{};
  constexpr int w = 16 / std::max({sizeof(T)...});
  const Place at = place_of(table, blockIdx.x);
  const auto ready = loaded(f);
  if constexpr (requires { ready.changes_nothing(); })
    if (ready.changes_nothing()) return;
  const std::int64_t packed = at.begin + (at.end - at.begin) / w * w;
  for (std::int64_t i = at.begin + threadIdx.x * w; i < packed; i += chunk_threads * w)
    apply<w>(ready, table, at.tensor, i, lists);
  for (std::int64_t i = packed + threadIdx.x; i < at.end; i += chunk_threads)
    apply<1>(ready, table, at.tensor, i, lists);
}

template <class... T, class F>
void multi_map(std::string_view op, const F& f, const Lists<T...>& lists,
               const std::vector<double>& numbers = {}) {
  for_each_table<T...>(lists, numbers, [&](const Table<T...>& table, int chunks, std::int64_t) {
    launch(op, multi_map_kernel<F, T...>, dim3(static_cast<unsigned>(chunks)), chunk_threads, 0, f,
           table);
  });
}

}  // namespace ebb::nn::gpu
