#include "ebb/ops/normalization/norm_spread.cuh"

#include <algorithm>

namespace ebb {
namespace gpu {
namespace {

template <class T_, bool centred>
struct SpreadForward {
  using T = T_;
  using Number = double;
  static constexpr int inputs = 1;
  const T* x[inputs];
  const T* weight;
  const T* bias;
  double eps;
  double* mean;
  float* rstd;

  // The row's first element: seen from there, numbers far from 0 keep their digits.
  using Given = float;
  __device__ Given given(std::int64_t row, std::int64_t cols) const {
    return centred ? widen(x[0][row * cols]) : 0.0f;
  }
  struct Known {
    float half_mean, rest, twice_r;
  };
  // From Σ (x − first) and Σ (x − first)².
  __device__ Known known(std::int64_t row, std::int64_t cols, Given first, double a, double b,
                         bool leader) const {
    const double n = static_cast<double>(cols);
    const double off = a / n;
    const double square = b - off * a;
    const double m = centred ? static_cast<double>(first) + off : 0;
    const float r = static_cast<float>(1 / sqrt((square < 0 ? 0 : square) / n + eps));
    if (leader) {
      if constexpr (centred) mean[row] = m;
      rstd[row] = r;
    }
    const Hat<float> hat(m, r);
    return {hat.half_mean, hat.rest, hat.twice_r};
  }

  template <int packs>
  struct Own {
    static constexpr int width = pack_size<T>;
    using P = Pack<T, width>;
    static constexpr float small = centred ? 1.0f / 128 : 1;  // differences may overflow
    int mine;                                                 // packs that are there
    P w[packs];
    P b[packs];

    __device__ Own(const SpreadForward& body, std::int64_t column, int has) : mine(has) {
      float one[width];
#pragma unroll
      for (int j = 0; j < width; ++j) one[j] = 1;
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        const std::int64_t at = column + k * (spread_threads * width);
        w[k] = narrow<T>(one);
        if (body.weight) w[k] = load_if<width>(k < mine, body.weight + at);
        b[k] = load_if<width>(body.bias && k < mine, body.bias + at);
      }
    }
    // Of a row, seen from this thread's first element.
    __device__ void add(Given first, const P (&x)[packs][1], double& a, double& b) const {
      const float origin = centred ? widen(x[0][0], 0) * small : 0.0f;
      float sum = 0;
      float square = 0;
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        if (k > 0 && k >= mine) continue;
#pragma unroll
        for (int j = 0; j < width; ++j) {
          const float v = widen(x[k][0], j) * small - origin;
          if constexpr (centred) sum += v;
          square += v * v;
        }
      }
      b = static_cast<double>(square) / (small * small);
      if (!centred || mine == 0) return;
      const double off = static_cast<double>(origin) / small - static_cast<double>(first);
      const double by = static_cast<double>(sum) / small;
      const double n = mine * width;
      a = by + n * off;
      b += (2 * by + n * off) * off;
    }
    __device__ void count_rows(int) {}
    __device__ P map(const Known& known, int k, const P (&x)[1]) const {
      float out[width];
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const float h = (0.5f * widen(x[0], j) - known.half_mean) * known.twice_r + known.rest;
        out[j] = h * widen(w[k], j) + widen(b[k], j);
      }
      return narrow<T>(out);
    }
    __device__ void finish() {}
  };
};

template <class T_, int count>
struct SpreadBackward {
  using T = T_;
  using Number = float;
  static constexpr int inputs = 2;
  static constexpr int window = 64;  // rows added up before they join the earlier ones
  const T* x[inputs];                // and dy
  const T* weight;
  const double* mean;
  const float* rstd;
  std::int64_t cols;
  float* partial;  // [count][cols], or null: nobody asks, or one window has all rows
  AffineGradients<T, count> gradients;

  struct Given {
    float half_mean, rest, twice_r;
  };
  __device__ Given given(std::int64_t row, std::int64_t) const {
    const Hat<float> hat(count == 2 ? mean[row] : 0.0, rstd[row]);
    return {hat.half_mean, hat.rest, hat.twice_r};
  }
  // dx = r (g − shift − slope half(x))
  struct alignas(16) Known {
    float half_mean, r, shift, slope;
  };
  // From Σ g and Σ g x̂.
  __device__ Known known(std::int64_t row, std::int64_t cols, const Given& of, double a, double b,
                         bool) const {
    const double n = static_cast<double>(cols);
    const float of_g = count == 2 ? static_cast<float>(a / n) : 0.0f;
    const float of_gx = static_cast<float>(b / n);
    return {of.half_mean, rstd[row], of_g + of.rest * of_gx, of.twice_r * of_gx};
  }

  template <int packs>
  struct Own {
    static constexpr int width = pack_size<T>;
    using P = Pack<T, width>;
    using Sums = Pack<float, width>;
    const SpreadBackward& body;
    std::int64_t column;
    int mine;
    P w[packs];
    float sums[count][packs][width] = {};
    int waiting = 0;
    bool first = true;

    __device__ Own(const SpreadBackward& of, std::int64_t first_column, int has)
        : body(of), column(first_column), mine(has) {
      float one[width];
#pragma unroll
      for (int j = 0; j < width; ++j) one[j] = 1;
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        w[k] = narrow<T>(one);
        if (body.weight) w[k] = load_if<width>(k < mine, body.weight + at(k));
      }
    }
    __device__ std::int64_t at(int k) const { return column + k * (spread_threads * width); }

    // Of a row. What is not there is 0, and so is what it adds.
    __device__ void add(const Given& of, const P (&x)[packs][2], float& a, float& b) {
#pragma unroll
      for (int k = 0; k < packs; ++k)
#pragma unroll
        for (int j = 0; j < width; ++j) {
          const float d = widen(x[k][1], j);
          const float h = (0.5f * widen(x[k][0], j) - of.half_mean) * of.twice_r + of.rest;
          const float g = rounded_product(d, widen(w[k], j));
          if constexpr (count == 2) a += g;
          b += g * h;
          sums[0][k][j] += d * h;
          if constexpr (count == 2) sums[1][k][j] += d;
        }
    }
    // That so many rows have been added, perhaps the last ones.
    __device__ void count_rows(int rows) {
      waiting += rows;
      if (waiting < window || !body.partial) return;
      add_to_partial();
      waiting = 0;
    }
    __device__ void add_to_partial() {
      each([&](int q, int k) {
        Sums* const to = partial(q, k);
        const Sums before = first ? Sums{} : *to;
#pragma unroll
        for (int j = 0; j < width; ++j) sums[q][k][j] += before.v[j];
        store(to, narrow<float>(sums[q][k]));
#pragma unroll
        for (int j = 0; j < width; ++j) sums[q][k][j] = 0;
      });
      first = false;
    }
    __device__ P map(const Known& known, int k, const P (&x)[2]) const {
      float out[width];
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const float half = 0.5f * widen(x[0], j) - known.half_mean;
        const float g = rounded_product(widen(x[1], j), widen(w[k], j));
        out[j] = known.r * (g - known.shift - half * known.slope);
      }
      return narrow<T>(out);
    }
    __device__ void finish() {
      if (body.partial && (waiting > 0 || first)) add_to_partial();
      T* const to[] = {body.gradients.dweight, body.gradients.dbias};
      each([&](int q, int k) {
        if (!to[q]) return;
        if (body.partial) {
          const Sums all = *partial(q, k);
#pragma unroll
          for (int j = 0; j < width; ++j) sums[q][k][j] = all.v[j];
        }
        store_words(to[q] + at(k), narrow<T>(sums[q][k]));
      });
    }

   private:
    __device__ Sums* partial(int q, int k) const {
      return reinterpret_cast<Sums*>(body.partial + q * body.cols + at(k));
    }
    template <class F>
    __device__ void each(const F& f) {
#pragma unroll
      for (int q = 0; q < count; ++q)
#pragma unroll
        for (int k = 0; k < packs; ++k)
          if (k < mine) f(q, k);
    }
  };
};

template <class T, class... X>
bool can_spread(const NormRows& s, const X*... x) {
  constexpr int others = 16384;  // bytes of a block, more than its static memory
  return compute_capability() >= 90 && multiprocessors() >= spread_blocks &&
         block_memory() >= spread_memory + others && s.cols % pack_size<T> == 0 &&
         all_aligned(x...) &&
         hopper::has_barriers<spread_kernel<SpreadForward<float, true>, 1, 4>>("norm");
}

template <int packs, int rows, class Body>
void launch_spread(const char* op, const Body& body, const NormRows& n, Device device,
                   typename Body::T* y) {
  using Rows = SpreadRows<Body, packs, rows>;
  using Bits = typename Rows::Bits;
  const std::int64_t steps = divide_up<std::int64_t>(n.rows, rows);
  Tensor found = empty({steps, spread_blocks, Rows::numbers}, {Dtype::f64, device});
  Tensor sums = empty({steps, Rows::numbers}, {Dtype::f64, device});
  Tensor given = empty({n.rows, sizeof(typename Body::Given) / 4}, {Dtype::f32, device});
  const SpreadScratch<typename Body::Given> scratch{
      reinterpret_cast<Bits*>(found.data<double>()), reinterpret_cast<Bits*>(sums.data<double>()),
      reinterpret_cast<typename Body::Given*>(given.data<float>())};
  launch_together(op, spread_kernel<Body, packs, rows>,
                  {spread_blocks, spread_threads + spread_helpers * warp_size,
                   size_t{Rows::slots} * Rows::slot_bytes},
                  body, n, scratch, y);
}

// `per_step` packs of a thread in a step, or those of one row; false, and nothing done, if a row is
// too long.
template <int per_step, class Body>
bool spread(const char* op, const Body& body, const NormRows& n, Device device,
            typename Body::T* y) {
  const std::int64_t packs = n.cols / pack_size<typename Body::T>;
  constexpr std::int64_t all = spread_blocks * spread_threads;
  if (packs > 4 * all) return false;
  if (packs <= all)
    launch_spread<1, per_step>(op, body, n, device, y);
  else if (packs <= 2 * all)
    launch_spread<2, per_step / 2>(op, body, n, device, y);
  else
    launch_spread<4, std::max(per_step / 4, 1)>(op, body, n, device, y);
  return true;
}

template <class T, bool centred>
bool forward(const Normalize& n) {
  const T* const w = data_or_null<T>(n.weight);
  const T* const b = data_or_null<T>(n.bias);
  if (!can_spread<T>(n.s, n.x.data<T>(), w, b, n.y.data<T>())) return false;
  const SpreadForward<T, centred> body{
      {n.x.data<T>()}, w, b, n.eps, data_or_null<double>(n.mean), n.rstd.data<float>()};
  return spread<4>(n.op, body, n.s, n.x.device(), n.y.data<T>());
}

template <class T, bool centred>
bool backward(const NormalizeBackward& n) {
  constexpr int count = centred ? 2 : 1;
  using Body = SpreadBackward<T, count>;
  const T* const w = data_or_null<T>(n.weight);
  const AffineGradients<T, count> gradients(n);
  if (!can_spread<T>(n.s, n.x.data<T>(), n.dy.data<T>(), w, n.dx.data<T>(), gradients.dweight,
                     gradients.dbias))
    return false;
  ParameterSums<T, count> sums(n, n.s.rows > Body::window ? 1 : 0);
  const Body body{{n.x.data<T>(), n.dy.data<T>()},
                  w,
                  data_or_null<double>(n.mean),
                  n.rstd.data<float>(),
                  n.s.cols,
                  sums.data(),
                  gradients};
  return spread<2>(n.op, body, n.s, n.x.device(), n.dx.data<T>());
}

}  // namespace

bool normalize_spread(const Normalize& n) {
  return try_norm(n, [&]<class T, bool centred>() { return forward<T, centred>(n); });
}

bool normalize_spread_backward(const NormalizeBackward& n) {
  return try_norm(n, [&]<class T, bool centred>() { return backward<T, centred>(n); });
}

}  // namespace gpu
}  // namespace ebb
