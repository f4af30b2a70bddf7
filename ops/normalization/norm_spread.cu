#include "ebb/ops/normalization/norm_spread.cuh"

#include <algorithm>

#include "ebb/ops/normalization/norm_backward.cuh"

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
  // From Σ (x − first) and Σ (x − first)².
  using Known = Hat<float>;
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
    return {m, r};
  }

  template <int packs>
  struct Own {
    static constexpr int width = pack_size<T>;
    using P = Pack<T, width>;
    static constexpr float small = centred ? 1.0f / 128 : 1;  // differences may overflow
    int mine = 0;                                             // packs that are there
    P w[packs];
    P b[packs];

    __device__ Own(const SpreadForward& body, std::int64_t first, int count) {
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        const int column = spread_column<T>(k);
        w[k] = weight_pack<width>(body.weight, column < count, first + column);
        b[k] = load_if<width>(body.bias && column < count, body.bias + first + column);
        if (column < count) mine = k + 1;
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
    __device__ P map(const Known& hat, int k, const P (&x)[1]) const {
      float out[width];
#pragma unroll
      for (int j = 0; j < width; ++j)
        out[j] = hat(widen(x[0], j)) * widen(w[k], j) + widen(b[k], j);
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

  using Given = Hat<float>;
  __device__ Given given(std::int64_t row, std::int64_t) const {
    return {count == 2 ? mean[row] : 0.0, rstd[row]};
  }
  // From Σ g and Σ g x̂.
  using Known = RowGradient<float>;
  __device__ Known known(std::int64_t row, std::int64_t cols, const Given& hat, double a, double b,
                         bool) const {
    const double n = static_cast<double>(cols);
    return {hat, rstd[row], count == 2 ? static_cast<float>(a / n) : 0.0f,
            static_cast<float>(b / n)};
  }

  template <int packs>
  struct Own {
    static constexpr int width = pack_size<T>;
    using P = Pack<T, width>;
    const SpreadBackward& body;
    std::int64_t first;  // column of the slice
    int columns;
    P w[packs];
    OwnSums<count, packs, width, spread_threads> sums;
    int waiting = 0;
    bool moved = false;

    __device__ Own(const SpreadBackward& of, std::int64_t first_column, int n)
        : body(of), first(first_column), columns(n) {
#pragma unroll
      for (int k = 0; k < packs; ++k)
        w[k] =
            weight_pack<width>(body.weight, spread_column<T>(k) < n, first + spread_column<T>(k));
    }

    // Of a row. What is not there is 0, and so is what it adds.
    __device__ void add(const Given& hat, const P (&x)[packs][2], float& a, float& b) {
#pragma unroll
      for (int k = 0; k < packs; ++k)
#pragma unroll
        for (int j = 0; j < width; ++j) {
          const float d = widen(x[k][1], j);
          const float h = hat(widen(x[k][0], j));
          const float g = rounded_product(d, widen(w[k], j));
          if constexpr (count == 2) a += g;
          b += g * h;
          sums.v[0][k][j] += d * h;
          if constexpr (count == 2) sums.v[1][k][j] += d;
        }
    }
    // That so many rows have been added, perhaps the last ones.
    __device__ void count_rows(int rows) {
      waiting += rows;
      if (waiting < window || !body.partial) return;
      waiting = 0;
      join();
      sums.move(lane(), columns, body.partial + first, body.cols);
      moved = true;
    }
    __device__ P map(const Known& gradient, int k, const P (&x)[2]) const {
      float out[width];
#pragma unroll
      for (int j = 0; j < width; ++j)
        out[j] = gradient(rounded_product(widen(x[1], j), widen(w[k], j)), widen(x[0], j));
      return narrow<T>(out);
    }
    __device__ void finish() {
      join();
      T* const to[] = {body.gradients.dweight, body.gradients.dbias};
      sums.each(lane(), columns, [&](int q, int column, const float(&sum)[width]) {
        if (to[q]) store_words(to[q] + first + column, narrow<T>(sum));
      });
    }

   private:
    __device__ static int lane() { return static_cast<int>(threadIdx.x); }
    // With those of earlier windows.
    __device__ void join() {
      if (moved) sums.add(lane(), columns, body.partial + first, body.cols);
    }
  };
};

template <class T>
bool can_spread(const NormRows& s) {
  constexpr int others = 16384;  // bytes of a block, more than its static memory
  return compute_capability() >= 90 && multiprocessors() >= spread_blocks &&
         block_memory() >= spread_memory + others && s.cols % pack_size<T> == 0 &&
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
  if (!can_spread<T>(n.s)) return false;
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
  if (!can_spread<T>(n.s)) return false;
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
