#include <limits>

#include "ebb/ops/attention/hopper.h"
#include "ebb/ops/attention/odd.cuh"
#include "ebb/ops/map.cuh"
#include "ebb/ops/rows.cuh"

namespace ebb {
namespace {

using namespace gpu;
using attention::AllRows;
using attention::draws_of;
using attention::Everything;
using attention::ExactCore;
using attention::load;
using attention::OddRows;
using attention::Reached;
using attention::Rows;
using attention::TensorCore;
using attention::threads;
using attention::with_dropout;

constexpr const char* op = "flash_attention";

// The part of a tensor that belongs to one head.
template <class T>
__device__ Rows<T> rows_of(const FlashAttentionSize& s, std::int64_t head, T* x,
                           std::int64_t length, std::int64_t step, bool aligned) {
  x += head / s.heads * length * step + head % s.heads * s.head_dim;
  return {x, step, length, static_cast<int>(s.head_dim), aligned};
}

// Which head and which of its rows a block owns. Blocks of a head follow each other, as they share
// what is in the L2 cache, those with the most to do before the others.
template <int rows>
struct Place {
  std::int64_t head, first;
  __device__ Place(std::int64_t length, bool last_first, std::int64_t number) {
    const std::int64_t tiles = divide_up<std::int64_t>(length, rows);
    head = number / tiles;
    const std::int64_t tile = number % tiles;
    first = (last_first ? tiles - 1 - tile : tile) * rows;
  }
};

// Calls f for the block's place and all of its rows; or, where few rows are left, for places with
// some of these.
template <class Scope, int rows, bool of_keys, class F>
__device__ void each_place(const FlashAttentionSize& s, const OddRows& odd, F f) {
  const std::int64_t length = of_keys ? s.length_k : s.length_q;
  const bool last_first = s.is_causal && !of_keys;
  if constexpr (std::is_same_v<Scope, AllRows>) {
    f(Place<rows>(length, last_first, blockIdx.x), AllRows{});
  } else {
    const std::int64_t places = s.batch * s.heads * divide_up<std::int64_t>(length, rows);
    for (std::int64_t number = blockIdx.x; number < places; number += gridDim.x) {
      const Place<rows> at(length, last_first, number);
      const Reached reached(odd, s, at.head);
      if (!reached.any_from<of_keys>(at.first)) continue;
      if (number != blockIdx.x) __syncthreads();
      f(at, reached);
    }
  }
}

// What the rows from `own` on see of the `cols` others from `other` on; of_keys: the rows are keys,
// and the others queries.
template <class Core, bool of_keys>
struct Sight {
  static constexpr int far = 1 << 30;
  int gap = far;  // a query's own row and column 0: how far it is behind that key
  int left;       // of the others

  __device__ Sight(bool is_causal, std::int64_t own, std::int64_t other, std::int64_t length) {
    const std::int64_t ahead = of_keys ? other - own : own - other;
    if (is_causal && ahead < Core::rows + Core::cols) gap = static_cast<int>(ahead);
    left = static_cast<int>(min(length - other, std::int64_t{Core::cols}));
  }
  __device__ bool operator()(int row, int col) const {
    return (of_keys ? col - row : row - col) + gap >= 0;
  }
  // What the thread's r-th row has in its c-th column.
  __device__ bool hides(int r, int c) const {
    return Core::col(c) >= left || !(*this)(Core::row(r), Core::col(c));
  }
  __device__ bool diagonal() const { return gap < (of_keys ? Core::rows : Core::cols) - 1; }
  __device__ bool whole() const { return left == Core::cols && !diagonal(); }
};

// f(r, c) for each score that a thread has.
template <class Core, class F>
__device__ void each(F f) {
#pragma unroll
  for (int r = 0; r < Core::own_rows; ++r)
#pragma unroll
    for (int c = 0; c < Core::own_cols; ++c) f(r, c);
}

// A score that is a number of its own, not the first half of a fused multiply-add.
__device__ float product(float x, float scale) { return __fmul_rn(x, scale); }
__device__ double product(double x, double scale) { return __dmul_rn(x, scale); }

// scale = sign · size, with a size above 0: the largest product has the largest score, and −∞
// stays.
template <class V>
struct Scale {
  V sign, size;
  __device__ explicit Scale(double scale)
      : sign(scale > 0   ? 1
             : scale < 0 ? -1
                         : 0),
        size(scale == 0 ? V(1) : V(fabs(scale))) {}
};

template <class Core>
struct AttendMemory {
  typename Core::Own q;
  typename Core::Other k[Core::stages], v[Core::stages];
  typename Core::Scratch scratch;
};

// Calls meet(stage, j) for the tiles of others at j, which fetch(stage, j) has brought: all at once
// with one stage, during the tile before with two.
template <class Core, class Fetch, class Meet>
__device__ void for_tiles(std::int64_t first, std::int64_t end, Fetch fetch, Meet meet) {
  constexpr bool ahead = Core::stages == 2;
  if (ahead && first < end) fetch(0, first);
  int stage = 0;
  for (std::int64_t j = first; j < end; j += Core::cols) {
    if (!ahead) {
      __syncthreads();
      fetch(0, j);
    }
    wait_for_copies();
    __syncthreads();
    if (ahead && j + Core::cols < end) fetch(1 - stage, j + Core::cols);
    meet(stage, j);
    if (ahead) stage = 1 - stage;
  }
}

// Of the keys so far, each row keeps the largest score, the sum of the exponentials and of the
// values that they weigh; they are scaled down when a larger score comes.
template <class Core>
struct Softmax {
  using V = typename Core::V;
  static constexpr V infinity = std::numeric_limits<V>::infinity();
  V top[Core::own_rows];
  V total[Core::own_rows] = {};  // of this thread's columns
  typename Core::Sums sums = {};

  __device__ Softmax() {
#pragma unroll
    for (V& t : top) t = -infinity;
  }

  // x becomes the weights.
  __device__ void weigh(typename Core::X& x, V scale) {
#pragma unroll
    for (int r = 0; r < Core::own_rows; ++r) {
      V high = top[r];
#pragma unroll
      for (V value : x[r]) high = fmax(high, value);
      high = warp_reduce<Core::lanes>(high, [](V a, V b) { return fmax(a, b); });
      const V shift = high == -infinity ? V(0) : product(high, scale);
      const V shrink = Core::weight(top[r], scale, shift);
      top[r] = high;
      V sum = 0;
#pragma unroll
      for (V& value : x[r]) sum += value = Core::weight(value, scale, shift);
      total[r] = total[r] * shrink + sum;
#pragma unroll
      for (V& value : sums[r]) value *= shrink;
    }
  }
};

template <class Core, bool drops, class Scope>
__device__ void attend_rows(const FlashAttentionSize& s, const Place<Core::rows>& at,
                            const Scope& scope, bool aligned, const typename Core::T* q,
                            const typename Core::T* k, const typename Core::T* v,
                            typename Core::T* y, typename Core::V* lse) {
  using V = typename Core::V;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& m = *reinterpret_cast<AttendMemory<Core>*>(memory);
  const auto keys = rows_of(s, at.head, k, s.length_k, s.row, aligned);
  const auto values = rows_of(s, at.head, v, s.length_k, s.row, aligned);
  const std::int64_t end = s.is_causal ? min(at.first + Core::rows, s.length_k) : s.length_k;
  if (end > 0) load(m.q, rows_of(s, at.head, q, s.length_q, s.row, aligned).from(at.first));

  Softmax<Core> softmax;
  const Scale<V> scale(s.scale);
  const auto fetch = [&](int stage, std::int64_t j) {
    load(m.k[stage], keys.from(j));
    load(m.v[stage], values.from(j));
  };
  for_tiles<Core>(0, end, fetch, [&](int stage, std::int64_t j) {
    typename Core::X x = {};
    Core::scores(x, m.q, m.k[stage]);
    const Sight<Core, false> sight(s.is_causal, at.first, j, s.length_k);
    if (scale.sign != 1) each<Core>([&](int r, int c) { x[r][c] *= scale.sign; });
    if (!sight.whole()) {
      each<Core>([&](int r, int c) {
        if (sight.hides(r, c)) x[r][c] = -Softmax<Core>::infinity;
      });
    }
    softmax.weigh(x, scale.size * Core::unit);
    if constexpr (drops) {
      Core::draw(draws_of<false>(s, at.head), at.first, j, [&](int r, int c, unsigned bits) {
        if (bits < s.dropout.threshold) x[r][c] = 0;
      });
    }
    if (sight.diagonal())
      Core::add(softmax.sums, x, m.v[stage], m.scratch, sight);
    else
      Core::add(softmax.sums, x, m.v[stage], m.scratch, Everything{});
  });

#pragma unroll
  for (int r = 0; r < Core::own_rows; ++r) {
    V& total = softmax.total[r];
    total = warp_reduce<Core::lanes>(total, Sum{});
    const std::int64_t i = at.first + Core::row(r);
    if (attention::lane() % Core::lanes == 0 && i < s.length_q && scope.template row<false>(i))
      lse[at.head * s.length_q + i] = product(softmax.top[r], scale.size) + log(total);
  }
  const auto of_y = rows_of(s, at.head, y, s.length_q, s.heads * s.head_dim, aligned);
  const V kept = drops ? static_cast<V>(s.dropout.scale) : V(1);
  const auto factor = [&](int r) { return softmax.total[r] == 0 ? V(0) : kept / softmax.total[r]; };
  const auto takes = [&](int row) { return scope.template row<false>(at.first + row); };
  Core::store(softmax.sums, factor, of_y.from(at.first), takes, m.q);
}

template <class Core, bool drops, class Scope>
__global__ void __launch_bounds__(threads, 2)
    attend(FlashAttentionSize s, OddRows odd, bool aligned, const typename Core::T* q,
           const typename Core::T* k, const typename Core::T* v, typename Core::T* y,
           typename Core::V* lse) {
  each_place<Scope, Core::rows, false>(s, odd, [&](const auto& at, const Scope& scope) {
    attend_rows<Core, drops>(s, at, scope, aligned, q, k, v, y, lse);
  });
}

template <class T>
struct Inputs {
  const T *q, *k, *v, *dy;
  const Compute<T>*lse, *d;
};

// What belongs to queries: the D of each, and its lse, which is +∞ where no key is seen and beyond
// the end, so that P is 0 there.
template <class V>
struct Statistics {
  V lse, d;
  template <class T>
  __device__ Statistics(const Inputs<T>& in, std::int64_t length, std::int64_t head, std::int64_t i)
      : lse(i < length ? in.lse[head * length + i] : -std::numeric_limits<V>::infinity()),
        d(i < length ? in.d[head * length + i] : V(0)) {
    if (lse == -std::numeric_limits<V>::infinity()) lse = -lse;
  }
};

template <class Core>
struct GradientMemory {
  typename Core::Own own[2];
  typename Core::Other others[Core::stages][2];
  typename Core::V lse[Core::stages][Core::cols], d[Core::stages][Core::cols];
  typename Core::Scratch scratch;
};

// dq of some queries, which meet all keys; or dk and dv of some keys, which meet all queries, with
// P and dS lying on their sides:
//   own (q, dy), others (k, v):   x = S,   z = dP,   dq += dS k
//   own (k, v), others (q, dy):   x = Sᵀ,  z = dPᵀ,  dk += dSᵀ q,  dv += Pᵀ dy
template <class Core, bool of_keys, bool drops, class Scope>
__device__ void gradients_of_rows(const FlashAttentionSize& s, const Place<Core::rows>& at,
                                  const Scope& scope, bool aligned,
                                  const Inputs<typename Core::T>& in, typename Core::T* dx,
                                  typename Core::T* dv) {
  using V = typename Core::V;
  using Sums = typename Core::Sums;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& m = *reinterpret_cast<GradientMemory<Core>*>(memory);
  const std::int64_t length = of_keys ? s.length_k : s.length_q;
  const std::int64_t others = of_keys ? s.length_q : s.length_k;
  const auto queries = rows_of(s, at.head, in.q, s.length_q, s.row, aligned);
  const auto upstream = rows_of(s, at.head, in.dy, s.length_q, s.heads * s.head_dim, aligned);
  const auto keys = rows_of(s, at.head, in.k, s.length_k, s.row, aligned);
  const auto values = rows_of(s, at.head, in.v, s.length_k, s.row, aligned);
  const std::int64_t first = of_keys && s.is_causal ? at.first / Core::cols * Core::cols : 0;
  const std::int64_t end = !of_keys && s.is_causal ? min(at.first + Core::rows, others) : others;
  if (first < end) {
    load(m.own[0], (of_keys ? keys : queries).from(at.first));
    load(m.own[1], (of_keys ? values : upstream).from(at.first));
  }

  V lse[Core::own_rows], d[Core::own_rows];
#pragma unroll
  for (int r = 0; r < Core::own_rows && !of_keys; ++r) {
    const Statistics<V> own(in, s.length_q, at.head, at.first + Core::row(r));
    lse[r] = own.lse * Core::unit;
    d[r] = own.d;
  }
  const auto fetch = [&](int stage, std::int64_t j) {
    load(m.others[stage][0], (of_keys ? queries : keys).from(j));
    load(m.others[stage][1], (of_keys ? upstream : values).from(j));
    if (of_keys && threadIdx.x < Core::cols) {
      const Statistics<V> other(in, s.length_q, at.head, j + threadIdx.x);
      m.lse[stage][threadIdx.x] = other.lse * Core::unit;
      m.d[stage][threadIdx.x] = other.d;
    }
  };

  Sums sums_x = {}, sums_v = {};
  const auto scale = static_cast<V>(s.scale);
  const V kept = drops ? static_cast<V>(s.dropout.scale) : V(1);
  for_tiles<Core>(first, end, fetch, [&](int stage, std::int64_t j) {
    typename Core::X x = {}, z = {};
    auto& other = m.others[stage];
    Core::scores(x, m.own[0], other[0]);
    Core::scores(z, m.own[1], other[1]);
    const Sight<Core, of_keys> sight(s.is_causal, at.first, j, others);
    const auto differentiate = [&](int r, int c) {
      z[r][c] = x[r][c] * (z[r][c] - (of_keys ? m.d[stage][Core::col(c)] : d[r]));
    };
    each<Core>([&](int r, int c) {
      const V shift = of_keys ? m.lse[stage][Core::col(c)] : lse[r];
      x[r][c] = Core::weight(x[r][c], scale * Core::unit, shift);
      if constexpr (!drops) differentiate(r, c);
    });
    if constexpr (drops) {
      const auto draws = draws_of<of_keys>(s, at.head);
      Core::draw(draws, at.first, j, [&](int r, int c, unsigned bits) {
        const bool dropped = bits < s.dropout.threshold;
        z[r][c] = dropped ? V(0) : z[r][c] * kept;
        differentiate(r, c);
        if (dropped) x[r][c] = 0;
      });
    }
    if (!sight.whole()) {
      each<Core>([&](int r, int c) {
        if (sight.hides(r, c)) x[r][c] = z[r][c] = 0;
      });
    }
    const auto add = [&](const auto& sees) {
      if constexpr (of_keys) Core::add(sums_v, x, other[1], m.scratch, sees);
      Core::add(sums_x, z, other[0], m.scratch, sees);
    };
    if (sight.diagonal())
      add(sight);
    else
      add(Everything{});
  });

  const auto to = rows_of(s, at.head, dx, length, s.row, aligned).from(at.first);
  const auto takes = [&](int row) { return scope.template row<of_keys>(at.first + row); };
  Core::store(
      sums_x, [&](int) { return scale; }, to, takes, m.own[0]);
  if constexpr (of_keys) {
    const auto to_v = rows_of(s, at.head, dv, length, s.row, aligned).from(at.first);
    Core::store(
        sums_v, [&](int) { return kept; }, to_v, takes, m.own[1]);
  }
}

template <class Core, bool of_keys, bool drops, class Scope>
__global__ void __launch_bounds__(threads, 2)
    gradients(FlashAttentionSize s, OddRows odd, bool aligned, Inputs<typename Core::T> in,
              typename Core::T* dx, typename Core::T* dv) {
  each_place<Scope, Core::rows, of_keys>(s, odd, [&](const auto& at, const Scope& scope) {
    gradients_of_rows<Core, of_keys, drops>(s, at, scope, aligned, in, dx, dv);
  });
}

// D = Σ dy∘y of each [sequence, position, head], to [sequence, head, position].
template <class T>
struct UpstreamDots {
  std::int64_t length, heads;
  Compute<T>* d;
  template <class Row>
  __device__ void operator()(Row& row) const {
    const auto dot = row.sum([](auto, auto y, auto dy) { return y * dy; });
    if (!row.leader()) return;
    const std::int64_t position = row.index() / heads;
    d[(position / length * heads + row.index() % heads) * length + position % length] = dot;
  }
};

// Rows and columns of a thread that multiplies by itself: as many as registers have room for, and
// shared memory where it is `roomy`, as on A100 and H100; else 64 KB are enough (not for f64 at
// 256).
template <class V, int width, bool roomy>
struct ExactSizes {
  static constexpr int most = width <= 64 ? 4 : width <= 128 ? 2 : 1;
  static constexpr int few = sizeof(V) == 4 || most == 1 ? most : most / 2;
  static constexpr int cols = roomy ? 2 * few : few;
  static constexpr int rows = cols;
  static constexpr int gradient_rows = width <= 64 ? few : cols;
};

template <class F>
void with_width(std::int64_t head_dim, F f) {
  if (head_dim <= 32) return f(std::integral_constant<int, 32>{});
  if (head_dim <= 64) return f(std::integral_constant<int, 64>{});
  if (head_dim <= 96) return f(std::integral_constant<int, 96>{});
  if (head_dim <= 128) return f(std::integral_constant<int, 128>{});
  f(std::integral_constant<int, 256>{});
}

// Odd rows are rare: it is enough to fill the GPU.
dim3 blocks_for(const FlashAttentionSize& s, const OddRows& odd, std::int64_t length, int rows) {
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
  std::int64_t blocks = s.batch * s.heads * divide_up<std::int64_t>(length, rows);
  if (odd.tiles != nullptr) blocks = std::min<std::int64_t>(blocks, 2 * multiprocessors());
  require(blocks <= most, Kind::limit, op, "too many blocks", blocks, most);
  return dim3(static_cast<unsigned>(blocks));
}

template <class Memory>
size_t memory_for() {
  const auto most = static_cast<size_t>(block_memory());
  require(sizeof(Memory) <= most, Kind::limit, op, "too little shared memory on this GPU", most,
          sizeof(Memory));
  return sizeof(Memory);
}

// Calls f(core of attend(), core of gradients()) for the type, head_dim and GPU.
template <class T, class F>
void with_cores(std::int64_t head_dim, F f) {
  with_width(head_dim, [&](auto padded) {
    constexpr int w = padded;
    if constexpr (std::is_same_v<T, bf16> && w <= 128) {
      if (compute_capability() >= 80)
        return f(TensorCore<w, 2, 64>{}, TensorCore < w, w <= 64 ? 2 : 1, w <= 64 ? 32 : 64 > {});
    }
    constexpr int width = w == 96 ? 128 : w;
    const auto with = [&](auto roomy) {
      using Sizes = ExactSizes<Compute<T>, width, roomy>;
      f(ExactCore<T, width, Sizes::rows, Sizes::cols>{},
        ExactCore<T, width, Sizes::gradient_rows, Sizes::cols>{});
    };
    if constexpr (std::is_same_v<T, float>) {
      constexpr std::int64_t roomy = 113 * 1024;  // two blocks share a multiprocessor's 227 KB
      if (block_memory() >= roomy) return with(std::true_type{});
    }
    with(std::false_type{});
  });
}

// Calls f<what a kernel makes>(): all rows, or what odd ones reach.
template <class Core, class F>
void with_scope(const OddRows& odd, F f) {
  constexpr int width = 8 * Core::own_sums;
  if constexpr (std::is_same_v<typename Core::T, float> && (width == 64 || width == 128)) {
    if (odd.tiles != nullptr) return f.template operator()<Reached>();
  }
  f.template operator()<AllRows>();
}

template <class T>
bool aligned_rows(const FlashAttentionSize& s, const std::array<T*, 3>& x, const void* y) {
  return s.head_dim % pack_size<std::remove_const_t<T>> == 0 && aligned(x[0]) && aligned(x[1]) &&
         aligned(x[2]) && aligned(y);
}

template <class Core, bool of_keys, bool drops, class T>
void launch_gradients(const FlashAttentionSize& s, const OddRows& odd, bool packed,
                      const Inputs<T>& in, T* dx, T* dv) {
  with_scope<Core>(odd, [&]<class Scope>() {
    launch(op, gradients<Core, of_keys, drops, Scope>,
           blocks_for(s, odd, of_keys ? s.length_k : s.length_q, Core::rows), threads,
           memory_for<GradientMemory<Core>>(), s, odd, packed, in, dx, dv);
  });
}

}  // namespace

void gpu::flash_attention(const FlashAttentionSize& s, const Tensor& q, const Tensor& k,
                          const Tensor& v, Tensor& y, Tensor& lse) {
  if (hopper::flash_attention(s, q, k, v, y, lse)) return;
  const Tensor left = hopper::flash_attention_tf32(s, q, k, v, y, lse);
  const OddRows odd(s, left);
  visit<float, double, bf16>(q.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const auto in = attention_parts<T>(s, q, k, v);
    T* const out = y.data<T>();
    with_cores<T>(s.head_dim, [&](auto core, auto) {
      using Core = decltype(core);
      with_dropout(s, [&](auto drops) {
        with_scope<Core>(odd, [&]<class Scope>() {
          launch(op, attend<Core, drops, Scope>, blocks_for(s, odd, s.length_q, Core::rows),
                 threads, memory_for<AttendMemory<Core>>(), s, odd, aligned_rows(s, in, out), in[0],
                 in[1], in[2], out, lse.data<Compute<T>>());
        });
      });
    });
  });
}

void gpu::flash_attention_backward(const FlashAttentionSize& s, const Tensor& q, const Tensor& k,
                                   const Tensor& v, const Tensor& y, const Tensor& lse,
                                   const Tensor& dy, Tensor& dq, Tensor& dk, Tensor& dv) {
  if (hopper::flash_attention_backward(s, q, k, v, y, lse, dy, dq, dk, dv)) return;
  visit<float, double, bf16>(q.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using V = Compute<T>;
    Tensor d = empty(lse.shape(), lse.options());
    stream_rows<T>(op, UpstreamDots<T>{s.length_q, s.heads, d.data<V>()},
                   RowLayout{s.batch * s.length_q * s.heads, s.head_dim}, nullptr, y.data<T>(),
                   dy.data<T>());
    const Tensor left = hopper::flash_attention_tf32_backward(s, q, k, v, lse, d, dy, dq, dk, dv);
    const OddRows odd(s, left);
    const auto x = attention_parts<T>(s, q, k, v);
    const auto dx = attention_parts<T>(s, dq, dk, dv);
    const T* const upstream = dy.data<T>();
    const Inputs<T> in{x[0], x[1], x[2], upstream, lse.data<V>(), std::as_const(d).data<V>()};
    const bool packed = aligned_rows(s, x, upstream) && aligned_rows(s, dx, upstream);
    with_cores<T>(s.head_dim, [&](auto, auto core) {
      using Core = decltype(core);
      with_dropout(s, [&](auto drops) {
        launch_gradients<Core, false, drops>(s, odd, packed, in, dx[0], static_cast<T*>(nullptr));
        launch_gradients<Core, true, drops>(s, odd, packed, in, dx[1], dx[2]);
      });
    });
  });
}

}  // namespace ebb
