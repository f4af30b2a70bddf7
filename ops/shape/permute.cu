#include "ebb/core/basic.h"
#include "ebb/ops/shape/bytes.cuh"
#include "ebb/ops/shape/permute.h"

namespace ebb {
namespace {

constexpr int tile = 32;
constexpr int tile_rows = 8;  // of a tile, moved at a time

// y[b] = x[b]ᵀ of rows × columns words, tile by tile: rows of x are read and rows of y written
// along their length, and the transposition happens in shared memory, padded against bank
// conflicts. Blocks take tiles in strides of the grid.
template <class Word>
__global__ void __launch_bounds__(tile* tile_rows)
    transpose_tiles(std::int64_t rows, std::int64_t columns, std::int64_t tiles_down,
                    std::int64_t tiles_across, std::int64_t tiles, const Word* x, Word* y) {
  __shared__ Word words[tile][tile + 1];
  for (std::int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const std::int64_t first_column = t % tiles_across * tile;
    const std::int64_t first_row = t / tiles_across % tiles_down * tile;
    const std::int64_t base = t / tiles_across / tiles_down * rows * columns;
    const std::int64_t column = first_column + threadIdx.x;
    for (int i = threadIdx.y; i < tile; i += tile_rows)
      if (column < columns && first_row + i < rows)
        words[i][threadIdx.x] = x[base + (first_row + i) * columns + column];
    __syncthreads();
    const std::int64_t row = first_row + threadIdx.x;
    for (int i = threadIdx.y; i < tile; i += tile_rows)
      if (row < rows && first_column + i < columns)
        y[base + (first_column + i) * rows + row] = words[threadIdx.x][i];
    __syncthreads();
  }
}

// One word of y a thread, from wherever it lies in x.
template <class Word, class Index>
__global__ void __launch_bounds__(256)
    gather_words(Gather g, std::int64_t words, const Word* x, Word* y) {
  const auto size = static_cast<Index>(words);
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i < size; i += stride) {
    std::int64_t from = 0;
    Index rest = i;
    for (int d = g.rank - 1; d > 0; --d) {
      const auto extent = static_cast<Index>(g.extents[d]);
      from += rest % extent * g.steps[d];
      rest /= extent;
    }
    y[i] = x[from + rest * g.steps[0]];
  }
}

// The last two dimensions exchanged, under at most one that stays.
bool is_transpose(const Gather& g) {
  if (g.rank != 2 && g.rank != 3) return false;
  const std::int64_t columns = g.extents[g.rank - 2];
  const std::int64_t rows = g.extents[g.rank - 1];
  return g.steps[g.rank - 2] == 1 && g.steps[g.rank - 1] == columns &&
         (g.rank == 2 || g.steps[0] == rows * columns);
}

unsigned blocks_for(std::int64_t blocks) {
  constexpr std::int64_t most = 1 << 20;
  return static_cast<unsigned>(std::min(blocks, most));
}

void transpose(std::string_view op, const Gather& g, const Tensor& x, Tensor& y) {
  const std::int64_t columns = g.extents[g.rank - 2];
  const std::int64_t rows = g.extents[g.rank - 1];
  const std::int64_t down = gpu::divide_up<std::int64_t>(rows, tile);
  const std::int64_t across = gpu::divide_up<std::int64_t>(columns, tile);
  const std::int64_t tiles = down * across * (g.rank == 3 ? g.extents[0] : 1);
  gpu::visit_word(static_cast<int>(size_of(x.dtype())), [&](auto zero) {
    using Word = decltype(zero);
    gpu::launch(op, transpose_tiles<Word>, dim3(blocks_for(tiles)), dim3(tile, tile_rows), 0, rows,
                columns, down, across, tiles, static_cast<const Word*>(x.raw()),
                static_cast<Word*>(y.raw()));
  });
}

void gather(std::string_view op, Gather g, const Tensor& x, Tensor& y) {
  const std::int64_t element = size_of(x.dtype());
  int bytes = static_cast<int>(element);
  if (g.steps[g.rank - 1] == 1) {  // runs stay whole: move them in wider words
    std::int64_t bits = g.extents[g.rank - 1];
    for (int d = 0; d < g.rank - 1; ++d) bits |= g.steps[d];
    bytes = gpu::word_bytes(bits * element);
    g.extents[g.rank - 1] = g.extents[g.rank - 1] * element / bytes;
    for (int d = 0; d < g.rank - 1; ++d) g.steps[d] = g.steps[d] * element / bytes;
  }
  const std::int64_t words = y.numel() * element / bytes;
  constexpr int threads = 256;
  const dim3 grid(blocks_for(gpu::divide_up<std::int64_t>(words, threads)));
  gpu::visit_word(bytes, [&](auto zero) {
    using Word = decltype(zero);
    const bool small = words < (std::int64_t{1} << 31);
    const auto kernel =
        small ? gather_words<Word, std::uint32_t> : gather_words<Word, std::int64_t>;
    gpu::launch(op, kernel, grid, threads, 0, g, words, static_cast<const Word*>(x.raw()),
                static_cast<Word*>(y.raw()));
  });
}

}  // namespace

void gpu::permute(std::string_view op, const Gather& g, const Tensor& x, Tensor& y) {
  if (g.rank == 0 || (g.rank == 1 && g.steps[0] == 1))
    copy_bytes(y.raw(), x.raw(), y.bytes(), false);
  else if (is_transpose(g))
    transpose(op, g, x, y);
  else
    gather(op, g, x, y);
}

}  // namespace ebb
