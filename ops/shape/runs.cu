#include "ebb/ops/divider.cuh"
#include "ebb/ops/shape/bytes.cuh"
#include "ebb/ops/shape/runs.h"

namespace ebb {
namespace {

// 16 bytes from `at` on, wherever that is: of the two packs that hold them.
__device__ uint4 load_anywhere(const char* x, std::int64_t at) {
  const int shift = static_cast<int>(at % 16);
  const auto* const from = reinterpret_cast<const uint4*>(x + (at - shift));
  const uint4 low = from[0];
  if (shift == 0) return low;
  const uint4 high = from[1];
  unsigned w[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 6; ++i) w[i] = shift & 8 ? w[i + 2] : w[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) w[i] = shift & 4 ? w[i + 1] : w[i];
  const unsigned bits = 8 * (shift % 4);
  return {__funnelshift_r(w[0], w[1], bits), __funnelshift_r(w[1], w[2], bits),
          __funnelshift_r(w[2], w[3], bits), __funnelshift_r(w[3], w[4], bits)};
}

// In bytes. A thread writes a pack of y, as it lies in memory, of the `packs` that a run may touch;
// of the first and the last one only what is the run's, word by word. Or its pack is a word.
template <class Word, int pack, class Index>
__global__ void __launch_bounds__(256)
    copy_packs(Runs r, gpu::WordDivider<Index> packs, std::int64_t x_size, const char* x, char* y) {
  const Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
  const auto run = static_cast<std::int64_t>(packs.quotient(i));
  if (run >= r.count) return;
  const std::int64_t begin = r.y_start + run * r.y_step;
  const std::int64_t end = begin + r.length;
  const std::int64_t to =
      begin - begin % pack + static_cast<std::int64_t>(packs.remainder(i)) * pack;
  const std::int64_t from = r.x_start + run * r.x_step + (to - begin);
  if constexpr (pack == sizeof(Word)) {
    *reinterpret_cast<Word*>(y + to) = *reinterpret_cast<const Word*>(x + from);
  } else {
    constexpr int words = pack / sizeof(Word);
    const auto at = [&](int j) { return to + j * static_cast<int>(sizeof(Word)); };
    const auto has = [&](int j) { return begin <= at(j) && at(j) < end; };
    struct alignas(pack) Words {
      Word w[words];
    } all;
    if (from >= 0 && gpu::divide_up<std::int64_t>(from, pack) * pack + pack <= x_size)
      all = __builtin_bit_cast(Words, load_anywhere(x, from));
    else
      for (int j = 0; j < words; ++j)
        if (has(j)) all.w[j] = *reinterpret_cast<const Word*>(x + from + (at(j) - to));
    if (has(0) && has(words - 1))
      *reinterpret_cast<uint4*>(y + to) = __builtin_bit_cast(uint4, all);
    else
#pragma unroll
      for (int j = 0; j < words; ++j)
        if (has(j)) *reinterpret_cast<Word*>(y + at(j)) = all.w[j];
  }
}

}  // namespace

void gpu::copy_runs(std::string_view op, const Runs& runs, const Tensor& x, Tensor& y) {
  const std::int64_t size = size_of(x.dtype());
  const Runs r{runs.count,         size * runs.length,  size * runs.x_start,
               size * runs.x_step, size * runs.y_start, size * runs.y_step};
  if (r.count * r.length == 0) return;
  const auto go = [&]<class Word, int pack, class Index>(std::int64_t packs) {
    constexpr int threads = 256;
    const std::int64_t blocks = divide_up<std::int64_t>(r.count * packs, threads);
    launch(op, copy_packs<Word, pack, Index>, dim3(static_cast<unsigned>(blocks)), threads, 0, r,
           WordDivider<Index>(packs), size * x.numel(), static_cast<const char*>(x.raw()),
           static_cast<char*>(y.raw()));
  };
  visit_word(word_bytes(r.length | r.x_start | r.x_step | r.y_start | r.y_step), [&](auto zero) {
    using Word = decltype(zero);
    constexpr int word = sizeof(Word);
    const auto with = [&]<int pack>() {
      const std::int64_t packs = divide_up<std::int64_t>(r.length + pack - word, pack);
      const bool small = r.count * packs < (std::int64_t{1} << 30);
      small ? go.template operator()<Word, pack, std::uint32_t>(packs)
            : go.template operator()<Word, pack, std::uint64_t>(packs);
    };
    r.length <= 16 ? with.template operator()<word>() : with.template operator()<16>();
  });
}

}  // namespace ebb
