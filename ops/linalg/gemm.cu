#include "ebb/ops/linalg/gemm.h"

#include <algorithm>

#include "ebb/core/cuda.cuh"
#include "ebb/ops/elementwise/gelu.h"
#include "ebb/ops/linalg/plans.cuh"
#include "ebb/ops/reduction/sum.h"

namespace ebb {
namespace {

using gpu::Call;
using gpu::Key;
using gpu::Shared;
using gpu::Then;

__global__ void add_rows_kernel(std::int64_t size, std::int64_t columns, const float* sums,
                                const bf16* bias, bf16* y) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += stride)
    y[i] = gpu::narrow<bf16>(sums[i] + gpu::widen(bias[i % columns]));
}

// Every row of y becomes the bias.
void spread(const Tensor& bias, Tensor& y) {
  gpu::repeat_along(bias, {1, y.numel() / bias.numel(), bias.numel()}, 1, y);
}

// Where cuBLASLt's kernels round a sum to bf16 before they add the bias (seen in CUDA 13.0's).
bool unaligned(const GemmSize& s) {
  constexpr int width = 8;  // of 16 bytes
  return s.n % width != 0 || s.k % width != 0 || (s.transpose_a && s.m % width != 0);
}

// y = sums + bias, rounded once.
void add_rows(std::string_view op, const Tensor& sums, const Tensor& bias, Tensor& y) {
  constexpr int threads = 256;
  constexpr std::int64_t most = 1 << 16;
  const auto blocks = std::min(gpu::divide_up<std::int64_t>(y.numel(), threads), most);
  gpu::launch(op, add_rows_kernel, dim3(static_cast<unsigned>(blocks)), threads, 0, y.numel(),
              bias.numel(), sums.data<float>(), bias.data<bf16>(), y.data<bf16>());
}

// As gemm(), of sizes that have a product.
void multiply_all(std::string_view op, const GemmSize& size, Shared shared, const Tensor& a,
                  const Tensor& b, const Tensor& bias, const Tensor& plus, Tensor& y) {
  const void* p = bias.defined() ? bias.raw() : nullptr;
  const void* c = plus.defined() ? plus.raw() : nullptr;
  Key key{size, a.dtype(), y.dtype(), a.dtype() == Dtype::f32 && tf32_allowed()};
  key.shared = shared;
  // The library counts batches in 32 bits, and some of its kernels in a grid of 65,535.
  constexpr std::int64_t most = 65535;
  for (std::int64_t first = 0; first < size.batch; first += most) {
    key.size.batch = std::min(most, size.batch - first);
    const auto at = [&](const Tensor& x, std::int64_t matrix) {
      return static_cast<const char*>(x.raw()) + first * matrix * size_of(x.dtype());
    };
    void* const out = const_cast<char*>(at(y, size.m * size.n));
    Call call{at(b, size.k * size.n), at(a, shared == Shared::nothing ? size.m * size.k : 0), p,
              c ? at(plus, shared == Shared::a_and_plus ? 0 : size.m * size.n) : nullptr, out};
    key.bias = p != nullptr && y.dtype() != Dtype::f64;  // f64 has no epilogues
    if (key.bias && gpu::multiply(op, y.device(), key, call)) continue;
    key.bias = false;
    call.bias = nullptr;
    if (p) {
      if (first == 0) spread(bias, y);
      if (first == 0 && c) gpu::accumulate(plus, y);
      call.plus = out;
    }
    require(gpu::multiply(op, y.device(), key, call), Kind::cuda, op, "cuBLASLt has no algorithm",
            text(y.dtype(), " ", size.m, " x ", size.n, " x ", size.k), "a supported product");
  }
}

}  // namespace

void gpu::gemm(std::string_view op, const GemmSize& size, const Tensor& a, const Tensor& b,
               const Tensor& bias, const Tensor& plus, Tensor& y) {
  if (y.numel() == 0) return;
  const bool rounds_twice =
      bias.defined() && y.dtype() == Dtype::bf16 && size.k > 0 && unaligned(size);
  if (plus.defined() && (size.k == 0 || rounds_twice)) {
    gemm(op, size, a, b, bias, {}, y);
    return accumulate(plus, y);
  }
  if (size.k == 0) return bias.defined() ? spread(bias, y) : fill(0, y);
  if (rounds_twice) {
    Tensor sums = empty(y.shape(), {Dtype::f32, y.device()});
    gemm(op, size, a, b, {}, {}, sums);
    return add_rows(op, sums, bias, y);
  }
  multiply_all(op, size, Shared::nothing, a, b, bias, plus, y);
}

void gpu::gemm_each(std::string_view op, const GemmSize& size, const Tensor& a, const Tensor& b,
                    const Tensor& bias, Tensor& y) {
  Tensor plus;
  if (bias.defined()) {
    plus = empty({size.m, size.n}, y.options());
    repeat_along(bias, {size.m, size.n, 1}, 1, plus);
  }
  multiply_all(op, size, bias.defined() ? Shared::a_and_plus : Shared::a, a, b, {}, plus, y);
}

namespace {

// The product with gelu or its backward in it; false, and nothing queued, where cuBLASLt has none.
bool multiply_with(Then then, std::string_view op, const GemmSize& size, const Tensor& a,
                   const Tensor& b, const Tensor& bias, const Tensor& h, Tensor& y) {
  if (y.dtype() != Dtype::bf16 || y.numel() == 0 || size.k == 0) return false;
  if (unaligned(size)) return false;
  const void* p = bias.defined() ? bias.raw() : nullptr;
  const Key key{size, a.dtype(), y.dtype(), false, p != nullptr, then};
  return multiply(op, y.device(), key, {b.raw(), a.raw(), p, nullptr, y.raw(), h.raw()});
}

}  // namespace

void gpu::gemm_gelu(std::string_view op, const GemmSize& size, const Tensor& a, const Tensor& b,
                    const Tensor& bias, Tensor& h, Tensor& y) {
  if (multiply_with(Then::gelu, op, size, a, b, bias, h, y)) return;
  gemm(op, size, a, b, bias, {}, h);
  gelu(h, true, y);
}

void gpu::gemm_gelu_backward(std::string_view op, const GemmSize& size, const Tensor& a,
                             const Tensor& b, const Tensor& h, Tensor& dh) {
  if (multiply_with(Then::gelu_backward, op, size, a, b, {}, h, dh)) return;
  Tensor dy = empty_like(h);
  gemm(op, size, a, b, {}, {}, dy);
  gelu_backward(h, dy, true, dh);
}

}  // namespace ebb
