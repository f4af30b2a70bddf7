// The input gradient with a stride as a convolution without one, for few channels, a first layer's,
// and on Hopper: the pixels of dx that share a place modulo the stride are channels of it, whose
// filters are every stride-th tap. mma_convolve.cu and tiles_convolve.cu would compute each such
// class by itself, in tiles that are mostly padding.
//
//   dx[n, c, i·stride + a, …] = y[n, (c,a,b), i, …],   y = conv2d(dy, unfolded w)
#include "ebb/ops/convolution/chunks.cuh"
#include "ebb/ops/convolution/paths.h"

namespace ebb::gpu {
namespace {

using namespace convolution;

constexpr int phase_threads = 256;

// One spatial axis: phase a at cell i reads dy[i + first + u] by tap (a − first·stride − u·stride +
// padding) / dilation, if it is one of the kernel's.
struct Phases {
  std::int64_t stride, padding, dilation, kernel;
  std::int64_t first, window;  // of u

  Phases(std::int64_t stride, std::int64_t padding, std::int64_t dilation, std::int64_t kernel)
      : stride(stride), padding(padding), dilation(dilation), kernel(kernel) {
    const std::int64_t low = padding - (kernel - 1) * dilation;
    first = low < 0 ? -(-low / stride) : divide_up(low, stride);
    window = (stride - 1 + padding) / stride - first + 1;
  }
  // Of phase a, or −1.
  __device__ std::int64_t tap(std::int64_t a, std::int64_t u) const {
    const std::int64_t reach = a + padding - (first + u) * stride;
    const std::int64_t r = reach / dilation;
    return reach >= 0 && reach % dilation == 0 && r < kernel ? r : -1;
  }
};

// w [filters, channels, R, S] of each group → [channels, h.stride, w.stride, filters, h.window,
// w.window].
template <class T>
__global__ void __launch_bounds__(phase_threads)
    unfold_filters(Phases h, Phases w, std::int64_t filters, std::int64_t channels,
                   std::int64_t size, const T* weight, T* out) {
  const std::int64_t i = std::int64_t{blockIdx.x} * phase_threads + threadIdx.x;
  if (i >= size) return;
  BlockIndex place{i};
  const std::int64_t v = place.next(w.window), u = place.next(h.window);
  const std::int64_t k = place.next(filters);
  const std::int64_t s = w.tap(place.next(w.stride), v), r = h.tap(place.next(h.stride), u);
  const std::int64_t c = place.next(channels), group = place.left;
  const std::int64_t filter = (group * filters + k) * channels + c;
  out[i] = r < 0 || s < 0 ? T{} : weight[(filter * h.kernel + r) * w.kernel + s];
}

// y [planes, h_stride, w_stride, rows, cols] → dx [planes, height, width]. A warp writes a row.
template <class T>
__global__ void __launch_bounds__(phase_threads)
    fold_pixels(std::int64_t lines, int height, int width, int h_stride, int w_stride, int rows,
                int cols, const T* y, T* dx) {
  const std::int64_t line =
      std::int64_t{blockIdx.x} * (phase_threads / warp_size) + threadIdx.x / warp_size;
  if (line >= lines) return;
  const int h = static_cast<int>(line % height);
  const std::int64_t phase = (line / height * h_stride + h % h_stride) * w_stride;
  const T* from = y + (phase * rows + h / h_stride) * cols;
  for (int w = threadIdx.x % warp_size; w < width; w += warp_size)
    dx[line * width + w] = from[std::int64_t{w % w_stride} * rows * cols + w / w_stride];
}

// Whether that computes less than a tile's padding; or no more than twice as much, by tensor cores
// that take no strides. An infinite dy then meets zeros for taps that there are not, and gives NaN
// beside what sees it.
bool phased(const Conv2dSize& size, Dtype dtype, const Phases& h, const Phases& w) {
  constexpr std::int64_t most = 16;  // rows of the tile
  const std::int64_t each = h.stride * w.stride, taps = h.kernel * w.kernel;
  if (each == 1 || h.stride > most || w.stride > most || h.kernel < h.stride ||
      w.kernel < w.stride || h.first > 0 || w.first > 0)
    return false;
  const std::int64_t rows = size.channels_in_group() * each, filters = size.filters_in_group();
  if (rows <= most) return true;
  constexpr double enough = 0x1p26;  // products, to pack their operands
  const double products = static_cast<double>(size.n * size.p * size.q) *
                          static_cast<double>(size.k * size.channels_in_group() * taps);
  return compute_capability() == 90 && on_tensor_cores(dtype) && rows >= 64 && filters >= 32 &&
         h.window * w.window * each <= 2 * taps && products >= enough;
}

}  // namespace

bool phases::convolve(const Conv2dSize& size, bool transposed, const Tensor& dy,
                      const Tensor& weight, const Tensor&, Tensor& dx) {
  const Conv2dOptions& o = size.options;
  const Phases h(o.stride.h, o.padding.h, o.dilation.h, size.r);
  const Phases w(o.stride.w, o.padding.w, o.dilation.w, size.s);
  if (!transposed || !phased(size, dx.dtype(), h, w)) return false;
  const std::int64_t filters = size.filters_in_group(), channels = size.c * h.stride * w.stride;
  const Conv2dSize unstrided{size.n,
                             size.k,
                             size.p,
                             size.q,
                             channels,
                             h.window,
                             w.window,
                             divide_up(size.h, h.stride),
                             divide_up(size.w, w.stride),
                             {.padding = {-h.first, -w.first}, .groups = o.groups}};
  Tensor unfolded = empty({channels, filters, h.window, w.window}, dx.options());
  Tensor y = empty({size.n, channels, unstrided.p, unstrided.q}, dx.options());
  visit<float, double, bf16>(dx.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    launch(op, unfold_filters<T>,
           grid_of(op, divide_up<std::int64_t>(unfolded.numel(), phase_threads)), phase_threads, 0,
           h, w, filters, size.channels_in_group(), unfolded.numel(), weight.data<T>(),
           unfolded.data<T>());
    gpu::conv2d(unstrided, dy, unfolded, {}, y);
    const std::int64_t lines = dx.numel() / size.w;
    launch(op, fold_pixels<T>,
           grid_of(op, divide_up<std::int64_t>(lines, phase_threads / warp_size)), phase_threads, 0,
           lines, size.h, size.w, h.stride, w.stride, unstrided.p, unstrided.q, y.data<T>(),
           dx.data<T>());
  });
  return true;
}

}  // namespace ebb::gpu
