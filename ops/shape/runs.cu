#include "ebb/ops/shape/bytes.cuh"
#include "ebb/ops/shape/runs.h"

namespace ebb {
namespace {

// In words: word j of run i, for each of count · length. Index is 32 bits wide where that is
// enough, because its division is.
template <class Word, class Index>
__global__ void __launch_bounds__(256) copy_words(Runs r, const Word* x, Word* y) {
  const auto length = static_cast<Index>(r.length);
  const auto size = static_cast<Index>(r.count * r.length);
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i < size; i += stride) {
    const Index run = i / length;
    const Index at = i % length;
    y[r.y_start + run * r.y_step + at] = x[r.x_start + run * r.x_step + at];
  }
}

}  // namespace

void gpu::copy_runs(std::string_view op, const Runs& runs, const Tensor& x, Tensor& y) {
  const std::int64_t element = size_of(x.dtype());
  const int bytes =
      word_bytes(element * (runs.length | runs.x_start | runs.x_step | runs.y_start | runs.y_step));
  const auto words = [&](std::int64_t elements) { return elements * element / bytes; };
  const Runs r{runs.count,         words(runs.length),  words(runs.x_start),
               words(runs.x_step), words(runs.y_start), words(runs.y_step)};
  const std::int64_t size = r.count * r.length;
  constexpr int threads = 256;
  constexpr std::int64_t most = 1 << 16;
  const auto blocks = static_cast<unsigned>(std::min(divide_up<std::int64_t>(size, threads), most));
  visit_word(bytes, [&](auto zero) {
    using Word = decltype(zero);
    // The stride is added once past the end: it must not wrap.
    const bool small = size < (std::int64_t{1} << 31);
    const auto kernel = small ? copy_words<Word, std::uint32_t> : copy_words<Word, std::int64_t>;
    launch(op, kernel, dim3(blocks), threads, 0, r, static_cast<const Word*>(x.raw()),
           static_cast<Word*>(y.raw()));
  });
}

}  // namespace ebb
