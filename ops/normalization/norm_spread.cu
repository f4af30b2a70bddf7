#include "ebb/ops/normalization/norm_spread.cuh"

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
    float origin;
    float sum;
    float square;
    __device__ void open(Given) { origin = sum = square = 0; }
    template <class Read>
    __device__ void add(int k, const Read& read) {
      const P in = read(0);
      if (centred && k == 0) origin = widen(in, 0) * small;
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const float v = widen(in, j) * small - origin;
        if constexpr (centred) sum += v;
        square += v * v;
      }
    }
    __device__ void close(Given first, double& a, double& b) const {
      b = static_cast<double>(square) / (small * small);
      if (!centred || mine == 0) return;
      const double off = static_cast<double>(origin) / small - static_cast<double>(first);
      const double by = static_cast<double>(sum) / small;
      const double n = mine * width;
      a = by + n * off;
      b += (2 * by + n * off) * off;
    }
    __device__ void count_rows(int, int, int) {}
    template <class Read>
    __device__ P map(const Known& known, int k, const Read& read) const {
      const P in = read(0);
      float out[width];
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const float h = (0.5f * widen(in, j) - known.half_mean) * known.twice_r + known.rest;
        out[j] = h * widen(w[k], j) + widen(b[k], j);
      }
      return narrow<T>(out);
    }
    __device__ void finish(int, int) {}
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
  float* partial;  // [count][groups][cols], or null: nobody asks, or there are no parts
  AffineGradients<T, count> gradients;

  struct Given {
    double mean;
    float r;
  };
  __device__ Given given(std::int64_t row, std::int64_t) const {
    return {count == 2 ? mean[row] : 0.0, rstd[row]};
  }
  // dx = r (g − shift − slope half(x))
  struct Known {
    float half_mean, r, shift, slope;
  };
  // From Σ g and Σ g x̂.
  __device__ Known known(std::int64_t, std::int64_t cols, Given given, double a, double b,
                         bool) const {
    const double n = static_cast<double>(cols);
    const Hat<float> hat(given.mean, given.r);
    const float of_g = count == 2 ? static_cast<float>(a / n) : 0.0f;
    const float of_gx = static_cast<float>(b / n);
    return {hat.half_mean, given.r, of_g + hat.rest * of_gx, hat.twice_r * of_gx};
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

    // Of a row.
    Hat<float> hat;
    float of_g;
    float of_gx;
    __device__ void open(const Given& given) {
      hat = Hat<float>(given.mean, given.r);
      of_g = of_gx = 0;
    }
    template <class Read>
    __device__ void add(int k, const Read& read) {
      const P in = read(0);
      const P up = read(1);
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const float d = widen(up, j);
        const float h = hat(widen(in, j));
        const float g = rounded_product(d, widen(w[k], j));
        if constexpr (count == 2) of_g += g;
        of_gx += g * h;
        sums[0][k][j] += d * h;
        if constexpr (count == 2) sums[1][k][j] += d;
      }
    }
    __device__ void close(const Given&, float& a, float& b) const {
      a = of_g;
      b = of_gx;
    }
    // That so many rows have been added, perhaps the last ones.
    __device__ void count_rows(int rows, int group, int groups) {
      waiting += rows;
      if (waiting < window || !body.partial) return;
      add_to_partial(group, groups);
      waiting = 0;
    }
    __device__ void add_to_partial(int group, int groups) {
      each([&](int q, int k) {
        Sums* const to = partial(q, k, group, groups);
        const Sums before = first ? Sums{} : *to;
#pragma unroll
        for (int j = 0; j < width; ++j) sums[q][k][j] += before.v[j];
        store(to, narrow<float>(sums[q][k]));
#pragma unroll
        for (int j = 0; j < width; ++j) sums[q][k][j] = 0;
      });
      first = false;
    }
    template <class Read>
    __device__ P map(const Known& known, int k, const Read& read) const {
      const P in = read(0);
      const P up = read(1);
      float out[width];
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const float half = 0.5f * widen(in, j) - known.half_mean;
        const float g = rounded_product(widen(up, j), widen(w[k], j));
        out[j] = known.r * (g - known.shift - half * known.slope);
      }
      return narrow<T>(out);
    }
    // One group has found all that there is.
    __device__ void finish(int group, int groups) {
      if (body.partial && (waiting > 0 || first)) add_to_partial(group, groups);
      if (groups > 1) return;
      T* const to[] = {body.gradients.dweight, body.gradients.dbias};
      each([&](int q, int k) {
        if (!to[q]) return;
        if (body.partial) {
          const Sums all = *partial(q, k, group, groups);
#pragma unroll
          for (int j = 0; j < width; ++j) sums[q][k][j] = all.v[j];
        }
        store_words(to[q] + at(k), narrow<T>(sums[q][k]));
      });
    }

   private:
    __device__ Sums* partial(int q, int k, int group, int groups) const {
      const std::int64_t of_group = (std::int64_t{q} * groups + group) * body.cols;
      return reinterpret_cast<Sums*>(body.partial + of_group + at(k));
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
  constexpr int others = 8192;  // bytes of a block, more than its static memory
  return compute_capability() >= 90 && multiprocessors() >= spread_blocks &&
         block_memory() >= spread_memory + others && s.cols % pack_size<T> == 0 &&
         all_aligned(x...) &&
         hopper::has_barriers<spread_kernel<SpreadForward<float, true>, 1, 4>>("norm");
}

template <class T, bool centred>
bool forward(const Normalize& n) {
  const T* const w = data_or_null<T>(n.weight);
  const T* const b = data_or_null<T>(n.bias);
  if (!can_spread<T>(n.s, n.x.data<T>(), w, b, n.y.data<T>())) return false;
  const SpreadPlan plan = spread_plan<T, 4>(n.s, 0);
  return with_plan<4>(plan, [&]<int packs, int rows>() {
    const SpreadForward<T, centred> body{
        {n.x.data<T>()}, w, b, n.eps, data_or_null<double>(n.mean), n.rstd.data<float>()};
    launch_spread<packs, rows>(n.op, body, n.s, plan, n.x.device(), n.y.data<T>());
  });
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
  const SpreadPlan plan = spread_plan<T, 2>(n.s, ParameterSums<T, count>::wanted(n) ? count : 0);
  return with_plan<2>(plan, [&]<int packs, int rows>() {
    const int groups = plan.groups();
    ParameterSums<T, count> sums(n, groups > 1 || n.s.rows > Body::window ? groups : 0);
    const Body body{{n.x.data<T>(), n.dy.data<T>()},
                    w,
                    data_or_null<double>(n.mean),
                    n.rstd.data<float>(),
                    n.s.cols,
                    sums.data(),
                    gradients};
    launch_spread<packs, rows>(n.op, body, n.s, plan, n.x.device(), n.dx.data<T>());
    if (groups > 1) sums.add_up();
  });
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
