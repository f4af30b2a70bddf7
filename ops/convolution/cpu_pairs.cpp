#include "ebb/ops/convolution/cpu_pairs.h"

#include "ebb/core/parallel.h"

namespace ebb {
namespace {

using Bits = std::uint16_t;

int least_exponent_of(const Tensor& x) {
  constexpr std::int64_t block = 1 << 15;
  std::vector<int> least(static_cast<size_t>((x.numel() + block - 1) / block));
  parallel_for(std::ssize(least), 4, [&, all = x.numel()](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b)
      least[static_cast<size_t>(b)] =
          cpu::least_exponent(x.data<bf16>() + b * block, std::min(block, all - b * block));
  });
  return least.empty() ? 0 : *std::ranges::min_element(least);
}

// to[i] = (a[i], b[i])
void pair_up(const Bits* a, const Bits* b, std::int64_t n, std::uint32_t* to) {
#ifdef __AVX512BF16__
  for (std::int64_t i = 0; i < n; i += 16) {  // rows may be as short as kernels
    const auto some = static_cast<__mmask16>(n - i < 16 ? (1 << (n - i)) - 1 : 0xffff);
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, a + i));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, b + i));
    _mm512_mask_storeu_epi32(to + i, some, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
#else
  for (std::int64_t i = 0; i < n; ++i) to[i] = a[i] | std::uint32_t{b[i]} << 16;
#endif
}

}  // namespace

cpu::Pairs cpu::pairs_of(const Tensor& x, std::int64_t outer, std::int64_t channels,
                         std::int64_t inner) {
  const std::int64_t half = (channels + 1) / 2;
  Pairs pairs{empty({outer, half, inner}, {Dtype::f32, x.device()}), least_exponent_of(x)};
  const auto* from = reinterpret_cast<const Bits*>(x.data<bf16>());
  auto* to = reinterpret_cast<std::uint32_t*>(pairs.x.data<float>());
  const std::vector<Bits> zeros(static_cast<size_t>(channels % 2 ? inner : 0));
  const std::int64_t worth = (1 << 14) / (half * inner + 1);
  parallel_for(outer, worth, [&](std::int64_t begin, std::int64_t end) {
    if (inner == 1 && channels % 2 == 0)
      return void(std::copy_n(from + begin * channels, (end - begin) * channels,
                              reinterpret_cast<Bits*>(to + begin * half)));
    for (std::int64_t row = begin; row < end; ++row)
      for (std::int64_t c = 0; c < channels; c += 2) {
        const Bits* a = from + (row * channels + c) * inner;
        pair_up(a, c + 1 < channels ? a + inner : zeros.data(), inner,
                to + (row * half + c / 2) * inner);
      }
  });
  return pairs;
}

cpu::Pairs cpu::halves_of(const Tensor& x, const Half& half) {
  const std::int64_t channels = x.size(1), height = x.size(2), width = x.size(3);
  Pairs pairs{empty({channels, half.rows, width}, {Dtype::f32, x.device()}), least_exponent_of(x)};
  const auto* from = reinterpret_cast<const Bits*>(x.data<bf16>());
  auto* to = reinterpret_cast<std::uint32_t*>(pairs.x.data<float>());
  const std::vector<Bits> zeros(static_cast<size_t>(width));
  const std::int64_t worth = (1 << 14) / (half.rows * width + 1);
  parallel_for(channels, worth, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      const auto row = [&](std::int64_t i) {
        return 0 <= i && i < height ? from + (c * height + i) * width : zeros.data();
      };
      for (std::int64_t i = 0; i < half.rows; ++i)
        pair_up(row(i - half.above), row(i - half.above + half.shift), width,
                to + (c * half.rows + i) * width);
    }
  });
  return pairs;
}

}  // namespace ebb
