// Sums over the channels of [samples, channels, plane] on the GPU, for batch norm; and for layer
// norm of few long rows, which are the channels of one sample. Maps are in channel_map.cuh.
//
// The packs of a channel's planes, one plane after the other, are cut into slices of a block each,
// whatever the shape: there are slices enough to fill every GPU, the same on each.
//
// Terms are those of columns.cuh. They may also see `shared` tensors [plane], after the others: a
// weight; 0 where such a pointer is null.
#pragma once
#include <numeric>

#include "ebb/ops/channel_map.cuh"
#include "ebb/ops/columns.cuh"

namespace ebb::gpu {

inline constexpr int channel_threads = 256;
inline constexpr int channel_packs = 4;  // in flight a thread

struct ChannelSlices {
  std::int64_t samples;
  std::int64_t channels;
  std::int64_t plane;
  std::int64_t packs = 0;  // of a plane
  std::int64_t slices = 1;
  std::int64_t chunk = 0;  // packs of a slice
};

// A thread's way through the packs of a slice.
template <int threads = channel_threads>
class ChannelWalk {
 public:
  __device__ ChannelWalk(const ChannelSlices& s, int width, std::int64_t channel,
                         std::int64_t slice)
      : packs_(s.packs), plane_(s.plane), width_(width) {
    const std::int64_t first = slice * s.chunk;
    const std::int64_t rest = s.samples * s.packs - first;
    left_ = static_cast<int>((rest < s.chunk ? rest : s.chunk) - threadIdx.x);
    const std::int64_t sample = quotient(first + threadIdx.x, s.packs);
    pack_ = first + threadIdx.x - sample * s.packs;
    place_ = (sample * s.channels + channel) * s.plane + pack_ * width;
    const std::int64_t whole = quotient(threads, s.packs);
    part_ = threads - whole * s.packs;
    step_ = whole * s.channels * s.plane + part_ * width;
    wrap_ = s.channels * s.plane - s.packs * width;
  }
  __device__ bool inside() const { return left_ > 0; }
  __device__ std::int64_t pack() const { return pack_; }  // of the plane
  __device__ std::int64_t place() const { return place_; }
  // Elements of the plane from the pack on.
  __device__ std::int64_t rest() const { return plane_ - pack_ * width_; }
  // Places are found again from here on: the compiler would rather keep those of all packs.
  __device__ void forget() { asm volatile("" : "+l"(pack_), "+l"(place_)); }
  __device__ void step() {
    left_ -= threads;
    pack_ += part_;
    place_ += step_;
    if (pack_ < packs_) return;
    pack_ -= packs_;
    place_ += wrap_;
  }

 private:
  // Division takes a fifth of the instructions in words of 32 bits.
  __device__ static std::int64_t quotient(std::int64_t n, std::int64_t d) {
    if ((n | d) >> 32 == 0) return static_cast<unsigned>(n) / static_cast<unsigned>(d);
    return n / d;
  }
  std::int64_t packs_, plane_, pack_, place_, part_, step_, wrap_;
  int left_, width_;
};

// Planes that are not whole packs are read by the packs of memory that they touch: they share the
// first one with the plane before, the last one with the next. Which elements of the pack around
// `place` are the plane's, as bits: it ends `rest` elements from there, and may begin there.
template <int width>
__device__ unsigned own_elements(std::int64_t place, std::int64_t rest, bool begins) {
  const int lead = static_cast<int>(place) & (width - 1);
  const int end = rest + lead < width ? static_cast<int>(rest) + lead : width;
  const int begin = begins ? lead : 0;
  return end > begin ? (1u << end) - (1u << begin) : 0;
}

// What a thread has in registers: `inputs` of each of `most` packs, of which `count` are there.
// `ragged`: packs that planes share, of planes longer than a pack.
template <class T, int inputs, int most, int width, bool ragged = false>
struct ChannelWindow {
  static constexpr int word = 32;  // bits
  Pack<T, width> packs[most][inputs];
  std::int64_t place[most];
  unsigned own[ragged ? (most * width + word - 1) / word : 1];  // bits of ragged elements
  int count = 0;
  int rounds = most;  // of all threads together: beyond that nobody has a pack

  __device__ void clear() {
    count = 0;
    if constexpr (ragged)
      for (unsigned& bits : own) bits = 0;
  }
  // Where pack u is, as in own_elements().
  __device__ void put(int u, bool there, std::int64_t at, std::int64_t rest, bool begins) {
    place[u] = at;
    if constexpr (!ragged) return;
    place[u] &= -width;
    if (there) own[u * width / word] |= own_elements<width>(at, rest, begins) << u * width % word;
  }

  template <int shared, class Walk>
  __device__ void load(Walk& walk, const T* const (&x)[inputs]) {
    clear();
#pragma unroll
    for (int u = 0; u < most; ++u) {
      if (over(u)) break;
      bool there = walk.inside();
      if (there) ++count;
      put(u, there, walk.place(), walk.rest(), walk.pack() == 0);
      if (ragged) there = own_of(u) != 0;
#pragma unroll
      for (int q = 0; q < inputs; ++q)
        packs[u][q] = q < inputs - shared
                          ? load_if<width>(there, x[q] + place[u])
                          : load_if<width>(there && x[q], x[q] + walk.pack() * width);
      walk.step();
    }
  }

  __device__ int size() const {
    if constexpr (!ragged) return count * width;
    int size = 0;
    for (const unsigned bits : own) size += __popc(bits);
    return size;
  }
  // Some element of the first plane.
  __device__ Compute<T> first() const {
    Compute<T> x = widen(packs[0][0], 0);
    if constexpr (ragged)
#pragma unroll
      for (int u = most - 1; u >= 0; --u) {
        const unsigned bits = own_of(u);
        if (bits != 0) x = widen(packs[u][0], 0);
        if (bits != 0 && (bits & 1) == 0) x = widen(packs[u][0], width - 1);
      }
    return x;
  }

  // Where element j of every pack is of the same column.
  __device__ ColumnRows<T, inputs, most, width> of_column(int j) const { return {packs, j, count}; }

  // f(x…)
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int u = 0; u < most; ++u) {
      if (over(u)) break;
      const unsigned bits = own_of(u);
      if (ragged || u < count)
        visit(
            u,
            [&](int j, auto... x) {
              if (bits >> j & 1u) f(x...);
            },
            std::make_index_sequence<inputs>{});
    }
  }

  // y = f(j, x…), `passing` as in load().
  template <class F>
  __device__ void map(T* y, F f, bool passing = false) const {
#pragma unroll
    for (int u = 0; u < most; ++u)
      if (u < count) map(u, y + place[u], f, passing);
  }
  // The same on the way that it was loaded, with no place to remember.
  template <class Walk, class F>
  __device__ void map(Walk walk, T* y, F f) const {
#pragma unroll
    for (int u = 0; u < most; ++u) {
      if (over(u)) break;
      if (u < count) map(u, y + (ragged ? walk.place() & -width : walk.place()), f, false);
      walk.step();
    }
  }

 private:
  __device__ bool over(int u) const { return u % 4 == 0 && u >= rounds; }
  static constexpr unsigned all = (1u << width) - 1;
  // Found again each time: the compiler would rather keep a predicate for each element.
  __device__ unsigned own_of(int u) const {
    if (!ragged) return all;
    unsigned bits = own[u * width / word];
    asm volatile("" : "+r"(bits));
    return bits >> u * width % word & all;
  }
  template <class F>
  __device__ void map(int u, T* y, const F& f, bool passing) const {
    Compute<T> out[width];
    visit(
        u, [&](int j, auto... x) { out[j] = f(j, x...); }, std::make_index_sequence<inputs>{});
    const unsigned bits = own_of(u);
    if (bits == all) return store_words(y, narrow<T>(out), passing);
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (bits >> j & 1u) y[j] = narrow<T>(out[j]);
  }
  template <class F, size_t... I>
  __device__ void visit(int u, const F& f, std::index_sequence<I...>) const {
    Pack<T, width> in[] = {packs[u][I]...};
    if constexpr (ragged) (forget(in[I]), ...);
#pragma unroll
    for (int j = 0; j < width; ++j) f(j, widen(in[I], j)...);
  }
  // Elements are widened again each time: there is no room for all of them.
  __device__ static void forget(Pack<T, width>& pack) {
    using Words = Pack<unsigned, static_cast<int>(sizeof(pack) / sizeof(unsigned))>;
    auto words = __builtin_bit_cast(Words, pack);
    for (unsigned& word : words.v) asm volatile("" : "+r"(word));
    pack = __builtin_bit_cast(Pack<T, width>, words);
  }
};

template <class T, int count, int shared, int width, class Terms, class... X>
__global__ void __launch_bounds__(channel_threads)
    channel_sums_kernel(Terms terms, ChannelSlices s, double* partial, const X*... x) {
  constexpr int inputs = sizeof...(X);
  const T* const from[] = {x...};
  auto own = terms.column(blockIdx.x);
  double sum[count] = {};
  ChannelWindow<T, inputs, channel_packs, width> window;
  for (ChannelWalk<> walk(s, width, blockIdx.x, blockIdx.y); walk.inside();) {
    window.template load<shared>(walk, from);
    own.add(window, sum);
  }
#pragma unroll
  for (int q = 0; q < count; ++q) {
    sum[q] = block_reduce<channel_threads>(sum[q], Sum{});
    if (threadIdx.x == 0) partial[(blockIdx.y * count + q) * s.channels + blockIdx.x] = sum[q];
  }
}

inline ChannelSlices channel_slices(std::int64_t samples, std::int64_t channels, std::int64_t plane,
                                    int width) {
  constexpr std::int64_t blocks = 2048;
  constexpr std::int64_t most_slices = 512;
  constexpr std::int64_t grain = channel_threads * 2;
  ChannelSlices s{samples, channels, plane, plane / width};
  const std::int64_t all = samples * s.packs;
  const std::int64_t wanted = std::min(divide_up(blocks, channels), most_slices);
  s.chunk = divide_up(divide_up(all, wanted), grain) * grain;
  s.slices = divide_up(all, s.chunk);
  return s;
}

// finish(channel, sums); the last `shared` of x are [plane].
template <class T, int count, int shared, class Terms, class Finish, class... X>
void channel_sums(std::string_view op, const Terms& terms, const Finish& finish,
                  std::int64_t samples, std::int64_t channels, std::int64_t plane, Device device,
                  const X*... x) {
  if (channels == 0) return;
  if (samples * plane == 0) return add_slices<count>(op, finish, channels, 0, nullptr);
  with_width<T>(plane, [&]<int width>() {
    const ChannelSlices s = channel_slices(samples, channels, plane, width);
    Tensor partial = empty({s.slices, count, channels}, {Dtype::f64, device});
    double* const to = partial.data<double>();
    launch(op, channel_sums_kernel<T, count, shared, width, Terms, X...>,
           dim3(static_cast<unsigned>(channels), static_cast<unsigned>(s.slices)), channel_threads,
           0, terms, s, to, x...);
    add_slices<count>(op, finish, channels, s.slices, to);
  });
}

// The most that a plane touches.
inline std::int64_t packs_of_plane(std::int64_t plane, int width) {
  return divide_up(plane + width - std::gcd(plane, std::int64_t{width}), std::int64_t{width});
}

// Σ (x − c) and Σ (x − c)² of a column or channel, c being its first element: nearly its mean, but
// for an outlier, which double has digits for. What a thread has of them goes by windows: sums in C
// about the mean of the first elements, made small as x − c of finite numbers may overflow.
template <class T>
struct MomentTerms {
  using C = Compute<T>;
  T c;  // as it came, so that nobody waits for it before it is needed

  struct Window {
    C origin, sum, square;
    int size;
  };
  template <class Rows>
  __device__ void open(const Rows& rows, Window& w) const {
    const C first = rows.first() * small;
    C total = 0;
    rows.each([&](C x, auto...) { total += x * small - first; });
    w.origin = first + total * reciprocal(static_cast<C>(rows.size()));
  }
  template <class Rows>
  __device__ void add(const Rows& rows, Window& w) const {
    rows.each([&](C x, auto...) {
      const C d = x * small - w.origin;
      w.sum += d;
      w.square += d * d;
    });
    w.size += rows.size();
  }
  __device__ void close(const Window& w, double (&sum)[2]) const {
    const double off = static_cast<double>(w.origin) / small - static_cast<double>(widen(c));
    const double rest = static_cast<double>(w.sum) / small;
    sum[0] += w.size * off + rest;
    sum[1] += static_cast<double>(w.square) / (small * small) + off * (w.size * off + 2 * rest);
  }

  template <class Rows>
  __device__ void add(const Rows& rows, double (&sum)[2]) const {
    Window w{};
    open(rows, w);
    add(rows, w);
    close(w, sum);
  }

 private:
  static constexpr C small = C(1) / 128;
};

// The same of channels whose first elements are `step` apart.
template <class T>
struct MomentsFromFirst {
  const T* x;
  std::int64_t step;
  using Column = MomentTerms<T>;
  __device__ Column column(std::int64_t channel) const { return {x[channel * step]}; }
};

}  // namespace ebb::gpu
