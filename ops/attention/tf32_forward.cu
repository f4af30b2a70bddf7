// Forward in float32: S = q kᵀ of a tile, its softmax, then P v, which is added to totals. While
// one warpgroup does its softmax, the other one multiplies.
#include "ebb/ops/attention/tf32.cuh"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::hopper;

// m, l and o of flash_attention.h, and r.
template <class S>
struct Tf32Softmax {
  float top[2] = {-infinity, -infinity};
  float total[2] = {};  // of this thread's columns
  float shrink[2];
  float totals[S::width / 2] = {};

  // x becomes the weights.
  __device__ void weigh(float (&x)[32], float scale) {
    float high[2] = {top[0], top[1]}, sum[2][2] = {}, shift[2];
    each_sum(x, [&](int r, int, float score) { high[r] = fmaxf(high[r], score); });
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float highest = warp_reduce<4>(high[r], [](float a, float b) { return fmaxf(a, b); });
      shift[r] = highest == -infinity ? 0.0f : __fmul_rn(highest, scale);
      shrink[r] = weight_of(top[r], scale, shift[r]);
      top[r] = highest;
    }
    each_sum(x, [&](int r, int c, float& score) {
      sum[r][c % 2] += score = weight_of(score, scale, shift[r]);
    });
#pragma unroll
    for (int r = 0; r < 2; ++r) total[r] = total[r] * shrink[r] + (sum[r][0] + sum[r][1]);
  }
  __device__ void add(float (&sums)[S::width / 2]) {
    each_sum(totals,
             [&](int r, int c, float& value) { value = value * shrink[r] + at(sums, r, c); });
  }
};

// As many halves as there is room for.
template <class S>
constexpr int stages_of = static_cast<int>((226 * 1024 - sizeof(OwnRows<S>)) /
                                           sizeof(typename S::Half));
template <class S>
struct Tf32Memory {
  Halves<S, stages_of<S>> halves;
  OwnRows<S> q;
};

template <bool drops, class S>
__device__ void attend_rows(const FlashAttentionSize& s, const Place<S, false>& at, OwnRows<S>& own,
                            Feed<S, stages_of<S>>& in, const float* q, float* y, float* lse) {
  const attention::Scale<float> scale(s.scale);
  const auto draws = drops ? attention::draws_of<false>(s, at.line) : attention::Draws<false>{};
  own.load(at.rows_of(s, q, s.length_q, s.row, at.first));
  Tf32Softmax<S> softmax;
  for (int t = 0; t < at.end; ++t) {
    float x[32] = {}, sums[S::width / 2] = {};
    scores<S, false>(x, own, in);
    if (scale.sign != 1) each_sum(x, [&](int, int, float& score) { score *= scale.sign; });
    if (!at.whole(t)) {
      const Sight sight = at.sight(t);
      each_sum(x, [&](int r, int c, float& score) {
        if (!sight.sees(r, col(c))) score = -infinity;
      });
    }
    softmax.weigh(x, scale.size);
    if constexpr (drops)
      draw<S::cols>(draws, at.first, t * S::cols, [&](int r, int c, unsigned bits) {
        if (bits < s.dropout.threshold) hopper::at(x, r, c) = 0;
      });
    weighted<S>(sums, x, in);
    softmax.add(sums);
  }

  float factor[2];
  finish_rows<drops>(softmax, s, at, scale.size, lse, factor);
  store_sums(softmax.totals, factor, at.rows_of(s, y, s.length_q, s.heads * s.head_dim, at.first));
}

struct PackedInputs {
  const void *k, *v;
};

template <class S, bool drops>
__global__ void __launch_bounds__(S::threads, 1)
    attend_tf32(FlashAttentionSize s, Places places, PackedInputs in, const float* q, float* y,
                float* lse) {
  if constexpr (has_wgmma) {
    __shared__ Ring<stages_of<S>> ring;
    extern __shared__ __align__(128) unsigned char memory[];
    auto& m = *reinterpret_cast<Tf32Memory<S>*>(memory);
    if (threadIdx.x == 0) {
      ring.init(1, S::workers);
      show_barriers();
    }
    __syncthreads();
    Feed<S, stages_of<S>> feed{m.halves, ring};
    const auto send = [&](const Place<S, false>& at) {
      const std::int64_t first = at.line * tiles_of(s.length_k);
      for (int t = 0; t < at.end; ++t) {
        feed.send_tile(in.k, first + t);
        feed.send_tile(in.v, first + t);
      }
    };
    run_places<Place<S, false>, S>(s, places, send, [&](const Place<S, false>& at) {
      attend_rows<drops>(s, at, m.q, feed, q, y, lse);
    });
  } else {
    __trap();
  }
}

// With a third warpgroup a block does a twelfth more in the same time, but more beyond the end, and
// there is no room for random bits.
bool tall_is_faster(const FlashAttentionSize& s) {
  const auto rows = [&](int unit) { return divide_up<std::int64_t>(s.length_q, unit) * unit; };
  return s.dropout.threshold == 0 && 14 * rows(192) <= 15 * rows(128);
}

template <class S>
Tensor launch_attend(const FlashAttentionSize& s, const std::array<const float*, 3>& in, Tensor& y,
                     Tensor& lse) {
  const std::int64_t tiles = tiles_of(s.length_q) + 2 * tiles_of(s.length_k);
  Tensor odd = odd_room(s, tiles, y);
  Tensor k = packed_room<S>(s, s.length_k, y), v = packed_room<S>(s, s.length_k, y);
  launch_pack<S>(s, Packings<3>{{{in[0], s.length_q, s.row, nullptr, nullptr},
                                 {in[1], s.length_k, s.row, k.data<float>(), nullptr},
                                 {in[2], s.length_k, s.row, nullptr, v.data<float>()}},
                                odd_bits(odd)});
  const PackedInputs packed{k.data<float>(), v.data<float>()};
  const auto with = [&]<class Blocks, bool drops>() {
    const Places places = places_of<Blocks, false>(s, 2);
    launch(op, attend_tf32<Blocks, drops>, blocks_for(s, places), Blocks::threads,
           sizeof(Tf32Memory<Blocks>), s, places, packed, in[0], y.data<float>(),
           lse.data<float>());
  };
  if (S::width == 64 && tall_is_faster(s))
    with.template operator()<Tf32Tiles<64, S::exact, 3>, false>();
  else
    attention::with_dropout(s, [&](auto drops) { with.template operator()<S, drops>(); });
  return odd;
}

}  // namespace

Tensor gpu::hopper::flash_attention_tf32(const FlashAttentionSize& s, const Tensor& q,
                                         const Tensor& k, const Tensor& v, Tensor& y, Tensor& lse) {
  using Smallest = Tf32Tiles<64, false>;
  if (!fits_tf32(s, q.dtype()) || !has_barriers<attend_tf32<Smallest, false>>(op)) return {};
  const auto in = attention_parts<float>(s, q, k, v);
  Tensor odd;
  with_tf32_tiles(s.head_dim,
                  [&](auto tiles) { odd = launch_attend<decltype(tiles)>(s, in, y, lse); });
  return odd;
}

}  // namespace ebb
