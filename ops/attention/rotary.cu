#include <algorithm>
#include <numbers>

#include "ebb/ops/attention/rotary.h"
#include "ebb/ops/divider.cuh"
#include "ebb/ops/map.cuh"
#include "ebb/ops/packs.cuh"

namespace ebb {
namespace gpu {
namespace {

constexpr int threads = 256;
constexpr int rows = 2;  // heads a thread turns: four packs, all on their way at once

// Pair i at position p turns by p · 2^(−i · step).
struct Turn {
  double first, step;
  int sign;

  Turn(const RotaryOptions& options, std::int64_t width, int sign)
      : first(static_cast<double>(options.first)),
        step(2 * std::log2(options.base) / static_cast<double>(width)),
        sign(sign) {}
};

// Which threads have which places: a place takes `slots` of them, as many blocks as that fills, or
// a part of one. Slot u has the pack u % lanes of the heads u / lanes, + groups, + 2 groups …, of
// all sequences, of which there are fewer than 2³¹ packs.
struct Slots {
  using Few = WordDivider<std::uint32_t>;
  std::uint32_t all, groups;         // heads of all sequences, and which a thread begins
  std::uint32_t places;              // of a block
  Few slots, blocks, pairs;          // of a place
  Few lanes, heads;                  // of a head, and of a sequence at a place
  std::uint32_t next_head;           // from one head of a thread to the next,
  std::int64_t next, next_sequence;  // in elements, and where a sequence ends

  Slots(const RotaryLayout& s, int width)
      : all(static_cast<std::uint32_t>(s.batch * (s.turned + s.kept))),
        groups(divide_up<std::uint32_t>(all, rows)),
        places(1),
        slots(groups * (s.width / 2 / width)),
        blocks(divide_up<std::uint32_t>(slots.d, threads)),
        pairs(s.width / 2),
        lanes(s.width / 2 / width),
        heads(s.turned + s.kept),
        next_head(groups % heads.d),
        next((groups / heads.d * s.length * heads.d + next_head) * s.width),
        next_sequence((s.length - 1) * heads.d * s.width) {
    if (slots.d < threads) places = threads / slots.d;
  }
};

__device__ void sine_and_cosine(float half_turns, float* sine, float* cosine) {
  sincospif(half_turns, sine, cosine);
}
__device__ void sine_and_cosine(double half_turns, double* sine, double* cosine) {
  sincospi(half_turns, sine, cosine);
}

// cos θ and ±sin θ. Of an angle, in f64, only what exceeds whole half turns is rounded to C.
template <class C>
__device__ void find_angle(const Turn& turn, std::int64_t place, int pair, C& cosine, C& sine) {
  const double position = turn.first + static_cast<double>(place);
  const double half_turns = position * (exp2(-turn.step * pair) * std::numbers::inv_pi);
  const double whole = rint(half_turns);
  sine_and_cosine(static_cast<C>(half_turns - whole), &sine, &cosine);
  const bool odd = static_cast<long long>(whole) % 2 != 0;
  cosine = odd ? -cosine : cosine;
  sine = odd == (turn.sign > 0) ? -sine : sine;
}

// A block works out its angles once, for all heads and sequences, while they are on their way.
template <class T, int width>
__global__ void __launch_bounds__(threads, 5)
    rotary_kernel(Slots slots, RotaryLayout s, Turn turn, const T* x, T* y) {
  using C = Compute<T>;
  using W = Word<width * sizeof(T) < 4 ? width * sizeof(T) : 4>;
  using P = Pack<W, width * sizeof(T) / sizeof(W)>;
  extern __shared__ __align__(16) char memory[];
  const auto pairs = static_cast<int>(slots.pairs.d);
  C* const cosine = reinterpret_cast<C*>(memory);
  C* const sine = cosine + slots.places * pairs;
  const std::uint32_t block = slots.blocks.quotient(blockIdx.x);
  const std::uint32_t thread = (blockIdx.x - block * slots.blocks.d) * threads + threadIdx.x;
  const std::uint32_t local = slots.slots.quotient(thread);
  const std::uint32_t slot = thread - local * slots.slots.d;
  const std::uint32_t group = slots.lanes.quotient(slot);
  const auto pair = static_cast<int>(slot - group * slots.lanes.d) * width;
  const std::int64_t first = std::int64_t{block} * slots.places;
  const bool there = local < slots.places && first + local < s.length;
  const std::uint32_t sequence = slots.heads.quotient(group);
  std::uint32_t head = group - sequence * slots.heads.d;
  std::int64_t at = ((sequence * s.length + first + local) * slots.heads.d + head) * s.width + pair;
  std::int64_t from[rows];
  bool turned[rows];
  P low[rows], high[rows];
#pragma unroll
  for (int k = 0; k < rows; ++k) {
    turned[k] = head < s.turned;
    from[k] = there && group + k * slots.groups < slots.all ? at : -1;
    if (from[k] >= 0) {
      low[k] = *reinterpret_cast<const P*>(x + at);
      high[k] = *reinterpret_cast<const P*>(x + at + pairs);
    }
    head += slots.next_head;
    at += slots.next;
    if (head < slots.heads.d) continue;
    head -= slots.heads.d;
    at += slots.next_sequence;
  }
  for (std::uint32_t i = threadIdx.x; i < slots.places * pairs; i += threads) {
    const std::uint32_t place = slots.pairs.quotient(i);
    find_angle(turn, first + place, static_cast<int>(i - place * pairs), cosine[i], sine[i]);
  }
  __syncthreads();
  if (!there) return;
  const auto c = *reinterpret_cast<const Pack<C, width>*>(cosine + local * pairs + pair);
  const auto d = *reinterpret_cast<const Pack<C, width>*>(sine + local * pairs + pair);
#pragma unroll
  for (int k = 0; k < rows; ++k) {
    if (from[k] < 0) continue;
    if (turned[k]) {
      const auto u = __builtin_bit_cast(Pack<T, width>, low[k]);
      const auto v = __builtin_bit_cast(Pack<T, width>, high[k]);
      C a[width], b[width];
#pragma unroll
      for (int j = 0; j < width; ++j) {
        a[j] = widen(u, j) * c.v[j] - widen(v, j) * d.v[j];
        b[j] = widen(v, j) * c.v[j] + widen(u, j) * d.v[j];
      }
      low[k] = __builtin_bit_cast(P, narrow<T>(a));
      high[k] = __builtin_bit_cast(P, narrow<T>(b));
    }
    store(reinterpret_cast<P*>(y + from[k]), low[k]);
    store(reinterpret_cast<P*>(y + from[k] + pairs), high[k]);
  }
}

}  // namespace
}  // namespace gpu

void gpu::rotary(const Tensor& x, const RotaryLayout& s, const RotaryOptions& options, int sign,
                 Tensor& y) {
  if (x.numel() == 0) return;
  visit<float, double, bf16>(x.dtype(), "rotary", [&](auto zero) {
    using T = decltype(zero);
    const auto go = [&]<int width>() {
      const std::int64_t heads = s.turned + s.kept, sequence = s.length * heads * s.width;
      const auto most = std::max<std::int64_t>(1, (1 << 30) / (heads * s.width));
      for (std::int64_t done = 0; done < s.batch; done += most) {
        RotaryLayout part = s;
        part.batch = std::min(most, s.batch - done);
        const Slots slots(part, width);
        const auto blocks = divide_up<std::int64_t>(s.length, slots.places) * slots.blocks.d;
        launch("rotary", rotary_kernel<T, width>, dim3(static_cast<unsigned>(blocks)), threads,
               slots.places * s.width * sizeof(Compute<T>), slots, part,
               Turn(options, s.width, sign), x.data<T>() + done * sequence,
               y.data<T>() + done * sequence);
      }
    };
    const bool packed = s.width / 2 % pack_size<T> == 0;
    packed ? go.template operator()<pack_size<T>>() : go.template operator()<1>();
  });
}

}  // namespace ebb
