// The CPU twins of conv2d: the way that each size goes, and bf16 in pairs or widened.
#include "ebb/ops/convolution/cpu_depthwise.h"
#include "ebb/ops/convolution/cpu_few_pixels.h"
#include "ebb/ops/convolution/cpu_pairs.h"
#include "ebb/ops/convolution/cpu_small_images.h"
#include "ebb/ops/convolution/cpu_stage.h"

namespace ebb {
namespace {

using namespace cpu;

// What a pass makes of two tensors; the bias is that of forward.
template <class Way, class T>
void run(Way way, Pass pass, const T* a, const T* b, const T* bias, T* out) {
  switch (pass) {
    case Pass::forward:
      return way.forward(a, b, bias, out);
    case Pass::input:
      return way.input_gradient(a, b, out);
    case Pass::weights:
      return way.weight_gradient(a, b, out);
  }
}

// x, w → y; w, dy → dx; x, dy → dw: by the way that fits the sizes, the last being correlations.
void run_pass(const Conv2dSize& z, Pass pass, bool pairs, const Tensor& a, const Tensor& b,
              const Tensor& bias, Tensor& out) {
  visit_numbers(a.dtype(), pairs, [&]<class T, bool pairs>() {
    const auto by = [&](auto way) {
      run(way, pass, a.data<T>(), b.data<T>(), bias.defined() ? bias.data<T>() : nullptr,
          out.data<T>());
    };
    if constexpr (!pairs) {
      if (Depthwise<T>::fits(z)) return by(Depthwise<T>(z));
      if (FewPixels<T>::fits(z, pass)) return by(FewPixels<T>(z));
    }
    if (SmallImages<T, pairs>::fits(z)) return by(SmallImages<T, pairs>(z));
    switch (pass) {
      case Pass::forward:
        return direct::convolve(z, pairs, a, b, bias, out);
      case Pass::input:
        return direct::input_gradient(z, pairs, a, b, out);
      case Pass::weights:
        return direct::weight_gradient(z, pairs, a, b, out);
    }
  });
}

// The operands of a pass in pairs, and the sizes as these have them. Channels of one pixel make
// pairs; for the weights, which sum over images, pixels of two of them.
struct Paired {
  Conv2dSize size;
  Pairs a, b;
};

std::int64_t half(std::int64_t n) { return (n + 1) / 2; }

Paired in_pairs(const Conv2dSize& z, Pass pass, const Tensor& a, const Tensor& b) {
  const std::int64_t groups = z.options.groups;
  const std::int64_t channels = z.channels_in_group(), filters = z.filters_in_group();
  Conv2dSize paired = z;
  if (pass == Pass::forward) {
    paired.c = groups * half(channels);
    return {paired, pairs_of(a, z.n * groups, channels, z.h * z.w),
            pairs_of(b, z.k, channels, z.r * z.s)};
  }
  if (pass == Pass::input) {
    paired.k = groups * half(filters);
    return {paired, pairs_of(a, groups, filters, channels * z.r * z.s),
            pairs_of(b, z.n * groups, filters, z.p * z.q)};
  }
  paired.n = half(z.n);
  if (z.n != 1)
    return {paired, pairs_of(a, 1, z.n, z.c * z.h * z.w), pairs_of(b, 1, z.n, z.k * z.p * z.q)};
  const auto& o = z.options;  // one image: of its upper and its lower results
  paired.p = half(z.p);
  paired.h = (paired.p - 1) * o.stride.h + (z.r - 1) * o.dilation.h + 1;
  paired.options.padding.h = 0;
  return {paired, halves_of(a, {paired.h, paired.p * o.stride.h, o.padding.h}),
          halves_of(b, {paired.p, paired.p})};
}

// Bf16 arguments are widened and results rounded; what is in pairs stays as it is.
template <class... P, class... A>
void in_f32(void (*twin)(P...), A&&... arguments) {
  ebb::detail::call_widened(twin, arguments...);
}

void run_any_pass(const Conv2dSize& z, Pass pass, const Tensor& a, const Tensor& b,
                  const Tensor& bias, Tensor& out) {
  if (out.dtype() != Dtype::bf16) return run_pass(z, pass, false, a, b, bias, out);
  const auto [down, right] = z.options.stride;
  const bool many_phases =
      pass == Pass::input && down * right > 16 && FewPixels<float>::fits(z, pass);
  if (multiplies_pairs && !Depthwise<float>::fits(z) && !many_phases) {
    const Paired p = in_pairs(z, pass, a, b);
    if (no_denormals(p.a.least_exponent, p.b.least_exponent))
      return in_f32(run_pass, p.size, pass, true, p.a.x, p.b.x, bias, out);
  }
  in_f32(run_pass, z, pass, false, a, b, bias, out);
}

}  // namespace

void cpu::conv2d(const Conv2dSize& z, const Tensor& x, const Tensor& w, const Tensor& b,
                 Tensor& y) {
  run_any_pass(z, Pass::forward, x, w, b, y);
}

void cpu::conv2d_backward(const Conv2dSize& z, const Tensor& x, const Tensor& w, const Tensor& dy,
                          Tensor& dx, Tensor& dw, Tensor& db) {
  if (db.defined()) in_f32(direct::bias_gradient, dy, db);
  if (dw.defined()) run_any_pass(z, Pass::weights, x, dy, {}, dw);
  if (dx.defined()) run_any_pass(z, Pass::input, w, dy, {}, dx);
}

}  // namespace ebb
