// The CPU twins of conv2d: the way that each size goes, and bf16 in pairs or widened.
#include "ebb/ops/convolution/cpu_depthwise.h"
#include "ebb/ops/convolution/cpu_few_pixels.h"
#include "ebb/ops/convolution/cpu_pairs.h"
#include "ebb/ops/convolution/cpu_small_images.h"
#include "ebb/ops/convolution/cpu_stage.h"

namespace ebb {
namespace {

using namespace cpu;

// Where bf16 is widened.
bool widens(const Conv2dSize& z) { return !multiplies_pairs || Depthwise<float>::fits(z); }

// f of the way that fits the sizes; false where it is that of correlations.
template <class T, bool pairs, class F>
bool by_another_way(const Conv2dSize& z, Pass pass, F&& f) {
  if constexpr (!pairs) {
    if (Depthwise<T>::fits(z)) return f(Depthwise<T>(z)), true;
    if (FewPixels<T>::fits(z, pass)) return f(FewPixels<T>(z)), true;
  }
  if (SmallImages<T, pairs>::fits(z)) return f(SmallImages<T, pairs>(z)), true;
  return false;
}

void forward(const Conv2dSize& z, bool pairs, const Tensor& x, const Tensor& w, const Tensor& b,
             Tensor& y) {
  visit_numbers(x.dtype(), pairs, [&]<class T, bool pairs>() {
    const T* bias = b.defined() ? b.data<T>() : nullptr;
    if (!by_another_way<T, pairs>(z, Pass::forward, [&](auto way) {
          way.forward(x.data<T>(), w.data<T>(), bias, y.data<T>());
        }))
      direct::convolve(z, pairs, x, w, b, y);
  });
}

void input_gradient(const Conv2dSize& z, bool pairs, const Tensor& w, const Tensor& dy,
                    Tensor& dx) {
  visit_numbers(dy.dtype(), pairs, [&]<class T, bool pairs>() {
    if (!by_another_way<T, pairs>(z, Pass::input, [&](auto way) {
          way.input_gradient(w.data<T>(), dy.data<T>(), dx.data<T>());
        }))
      direct::input_gradient(z, pairs, w, dy, dx);
  });
}

void weight_gradient(const Conv2dSize& z, bool pairs, const Tensor& x, const Tensor& dy,
                     Tensor& dw) {
  visit_numbers(dy.dtype(), pairs, [&]<class T, bool pairs>() {
    if (!by_another_way<T, pairs>(z, Pass::weights, [&](auto way) {
          way.weight_gradient(x.data<T>(), dy.data<T>(), dw.data<T>());
        }))
      direct::weight_gradient(z, pairs, x, dy, dw);
  });
}

// Bf16 arguments are widened and results rounded; what is in pairs stays as it is.
template <class... P, class... A>
void in_f32(void (*twin)(P...), A&&... arguments) {
  ebb::detail::call_widened(twin, arguments...);
}

std::int64_t half(std::int64_t n) { return (n + 1) / 2; }

// The same three in bf16. Channels of one pixel make pairs; for the weights, which sum over images,
// pixels of two of them.
void bf16_forward(const Conv2dSize& z, const Tensor& x, const Tensor& w, const Tensor& b,
                  Tensor& y) {
  const std::int64_t groups = z.options.groups, channels = z.channels_in_group();
  if (!widens(z)) {
    const Pairs px = pairs_of(x, z.n * groups, channels, z.h * z.w);
    const Pairs pw = pairs_of(w, z.k, channels, z.r * z.s);
    Conv2dSize paired = z;
    paired.c = groups * half(channels);
    if (exact(px, pw)) return in_f32(forward, paired, true, px.x, pw.x, b, y);
  }
  in_f32(forward, z, false, x, w, b, y);
}

void bf16_input_gradient(const Conv2dSize& z, const Tensor& w, const Tensor& dy, Tensor& dx) {
  const std::int64_t groups = z.options.groups, filters = z.filters_in_group();
  const auto [down, right] = z.options.stride;
  if (!widens(z) &&
      !(down * right > 16 && FewPixels<float>::fits(z, Pass::input))) {  // so many phases
    const Pairs pw = pairs_of(w, groups, filters, z.channels_in_group() * z.r * z.s);
    const Pairs pdy = pairs_of(dy, z.n * groups, filters, z.p * z.q);
    Conv2dSize paired = z;
    paired.k = groups * half(filters);
    if (exact(pw, pdy)) return in_f32(input_gradient, paired, true, pw.x, pdy.x, dx);
  }
  in_f32(input_gradient, z, false, w, dy, dx);
}

void bf16_weight_gradient(const Conv2dSize& z, const Tensor& x, const Tensor& dy, Tensor& dw) {
  if (!widens(z)) {
    Conv2dSize paired = z;
    paired.n = half(z.n);
    Pairs px, pdy;
    if (z.n == 1) {  // of its upper and its lower results
      const auto& o = z.options;
      paired.p = half(z.p);
      paired.h = (paired.p - 1) * o.stride.h + (z.r - 1) * o.dilation.h + 1;
      paired.options.padding.h = 0;
      px = halves_of(x, {paired.h, paired.p * o.stride.h, o.padding.h});
      pdy = halves_of(dy, {paired.p, paired.p});
    } else {
      px = pairs_of(x, 1, z.n, z.c * z.h * z.w);
      pdy = pairs_of(dy, 1, z.n, z.k * z.p * z.q);
    }
    if (exact(px, pdy)) return in_f32(weight_gradient, paired, true, px.x, pdy.x, dw);
  }
  in_f32(weight_gradient, z, false, x, dy, dw);
}

}  // namespace

void cpu::conv2d(const Conv2dSize& z, const Tensor& x, const Tensor& w, const Tensor& b,
                 Tensor& y) {
  if (x.dtype() == Dtype::bf16) return bf16_forward(z, x, w, b, y);
  forward(z, false, x, w, b, y);
}

void cpu::conv2d_backward(const Conv2dSize& z, const Tensor& x, const Tensor& w, const Tensor& dy,
                          Tensor& dx, Tensor& dw, Tensor& db) {
  const bool narrow = dy.dtype() == Dtype::bf16;
  if (db.defined()) narrow ? in_f32(direct::bias_gradient, dy, db) : direct::bias_gradient(dy, db);
  if (dw.defined())
    narrow ? bf16_weight_gradient(z, x, dy, dw) : weight_gradient(z, false, x, dy, dw);
  if (dx.defined())
    narrow ? bf16_input_gradient(z, w, dy, dx) : input_gradient(z, false, w, dy, dx);
}

}  // namespace ebb
