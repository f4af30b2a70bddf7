#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>

#include "ebb/core/cuda.cuh"
#include "ebb/ops/linalg/gemm.h"

namespace ebb {
namespace {

void check(cublasStatus_t status, std::string_view op) {
  require(status == CUBLAS_STATUS_SUCCESS, Kind::cuda, op, "a cuBLASLt call failed",
          cublasLtGetStatusString(status), "success");
}

// Everything that the choice of an algorithm depends on.
struct Key {
  GemmSize size;
  Dtype dtype;   // of a and b
  Dtype result;  // the same, or f32 for bf16
  bool tf32;
  bool bias;      // in the epilogue
  int alignment;  // of the operands, in bytes, at most 256

  std::array<std::int64_t, 11> values() const {
    return {size.batch,
            size.m,
            size.n,
            size.k,
            size.transpose_a,
            size.transpose_b,
            static_cast<std::int64_t>(dtype),
            static_cast<std::int64_t>(result),
            tf32,
            bias,
            alignment};
  }
  friend bool operator<(const Key& a, const Key& b) { return a.values() < b.values(); }
};

struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool found = false;  // else cuBLASLt has no algorithm for it
};

// Of one device. Handles, plans and workspace are kept to the end: there is no safe moment to
// destroy them. Work of all threads goes to one stream, so one workspace serves them all.
struct Library {
  std::mutex mutex;
  cublasLtHandle_t handle = nullptr;
  Tensor workspace;
  std::map<Key, Plan> plans;
};

Library& library(Device device) {
  constexpr int max_devices = 16;
  static auto* const all = new std::array<Library, max_devices>;
  return (*all)[static_cast<size_t>(device.index)];
}

struct Types {
  cudaDataType_t element;
  cudaDataType_t result;
  cudaDataType_t scale;
  cublasComputeType_t compute;
};

Types types_of(const Key& key) {
  if (key.dtype == Dtype::f64) return {CUDA_R_64F, CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_64F};
  if (key.dtype == Dtype::bf16)
    return {CUDA_R_16BF, key.result == Dtype::f32 ? CUDA_R_32F : CUDA_R_16BF, CUDA_R_32F,
            CUBLAS_COMPUTE_32F};
  return {CUDA_R_32F, CUDA_R_32F, CUDA_R_32F,
          key.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F};
}

// rows × columns as cuBLAS counts them, column by column, without gaps.
cublasLtMatrixLayout_t layout(std::string_view op, cudaDataType_t type, std::int64_t rows,
                              std::int64_t columns, std::int64_t batch) {
  cublasLtMatrixLayout_t made = nullptr;
  check(cublasLtMatrixLayoutCreate(&made, type, static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(columns), rows),
        op);
  if (batch == 1) return made;
  const auto count = static_cast<int32_t>(batch);
  const std::int64_t stride = rows * columns;
  check(cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                         sizeof count),
        op);
  check(cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                         sizeof stride),
        op);
  return made;
}

template <class Value>
void set(std::string_view op, cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t what,
         const Value& value) {
  check(cublasLtMatmulDescSetAttribute(product, what, &value, sizeof value), op);
}

void choose_algorithm(std::string_view op, const Library& lib, const Key& key, Plan& plan) {
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), op);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value), op);
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(lib.workspace.bytes()));
  const auto alignment = static_cast<uint32_t>(key.alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
  // Parts of a bf16 sum are added in f32: the other ways round each to bf16 first.
  if (key.dtype == Dtype::bf16)
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  cublasLtMatmulHeuristicResult_t best{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      lib.handle, plan.product, plan.a, plan.b, plan.y, plan.y, preference, 1, &best, &count);
  check(cublasLtMatmulPreferenceDestroy(preference), op);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) check(status, op);
  plan.found = status == CUBLAS_STATUS_SUCCESS && count > 0 && best.state == CUBLAS_STATUS_SUCCESS;
  plan.algorithm = best.algo;
}

// Row-major y = a · b is, read column by column, yᵀ = bᵀ · aᵀ: the operands change places, and what
// is stored row by row is its own transpose.
Plan make_plan(std::string_view op, const Library& lib, const Key& key) {
  const GemmSize& s = key.size;
  const Types types = types_of(key);
  Plan plan;
  check(cublasLtMatmulDescCreate(&plan.product, types.compute, types.scale), op);
  set(op, plan.product, CUBLASLT_MATMUL_DESC_TRANSA, s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(op, plan.product, CUBLASLT_MATMUL_DESC_TRANSB, s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (key.bias) set(op, plan.product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  const auto made = [&](std::int64_t rows, std::int64_t columns) {
    return layout(op, types.element, rows, columns, s.batch);
  };
  plan.a = s.transpose_b ? made(s.k, s.n) : made(s.n, s.k);
  plan.b = s.transpose_a ? made(s.m, s.k) : made(s.k, s.m);
  plan.y = layout(op, types.result, s.n, s.m, s.batch);
  choose_algorithm(op, lib, key, plan);
  return plan;
}

template <class T>
__global__ void fill_rows(std::int64_t size, std::int64_t columns, const T* bias, T* y) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += stride)
    y[i] = bias[i % columns];
}

// Every row of y becomes the bias.
void spread(std::string_view op, const Tensor& bias, Tensor& y) {
  visit<float, double, bf16>(y.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    constexpr int threads = 256;
    constexpr std::int64_t most = 1 << 16;
    const auto blocks = std::min(gpu::divide_up<std::int64_t>(y.numel(), threads), most);
    gpu::launch(op, fill_rows<T>, dim3(static_cast<unsigned>(blocks)), threads, 0, y.numel(),
                bias.numel(), bias.data<T>(), y.data<T>());
  });
}

__global__ void add_rows_kernel(std::int64_t size, std::int64_t columns, const float* sums,
                                const bf16* bias, bf16* y) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += stride)
    y[i] = gpu::narrow<bf16>(sums[i] + gpu::widen(bias[i % columns]));
}

int alignment_of(std::initializer_list<const void*> pointers) {
  std::uintptr_t bits = 256;
  for (const void* p : pointers) bits |= reinterpret_cast<std::uintptr_t>(p);
  return static_cast<int>(bits & (~bits + 1));
}

// Where cuBLASLt's kernels round a sum to bf16 before they add the bias (seen in CUDA 13.0's).
bool unaligned(const GemmSize& s, const Tensor& a, const Tensor& b, const Tensor& bias,
               const Tensor& y) {
  constexpr int width = 8;  // of 16 bytes
  return s.n % width != 0 || s.k % width != 0 || (s.transpose_a && s.m % width != 0) ||
         alignment_of({a.raw(), b.raw(), bias.raw(), y.raw()}) < 16;
}

// y = sums + bias, rounded once.
void add_rows(std::string_view op, const Tensor& sums, const Tensor& bias, Tensor& y) {
  constexpr int threads = 256;
  constexpr std::int64_t most = 1 << 16;
  const auto blocks = std::min(gpu::divide_up<std::int64_t>(y.numel(), threads), most);
  gpu::launch(op, add_rows_kernel, dim3(static_cast<unsigned>(blocks)), threads, 0, y.numel(),
              bias.numel(), sums.data<float>(), bias.data<bf16>(), y.data<bf16>());
}

// The operands of one call, in cuBLAS's order.
struct Call {
  const void* a;
  const void* b;
  const void* bias;  // for the epilogue, or null
  void* y;
  bool add;  // to what is in y
};

// False, and nothing queued, when cuBLASLt has no algorithm for it.
bool multiply(std::string_view op, Library& lib, const Key& key, const Call& call) {
  auto at = lib.plans.find(key);
  if (at == lib.plans.end()) at = lib.plans.emplace(key, make_plan(op, lib, key)).first;
  const Plan& plan = at->second;
  if (!plan.found) return false;
  if (call.bias) set(op, plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);
  const float floats[] = {1, call.add ? 1.0f : 0.0f};
  const double doubles[] = {1, call.add ? 1.0 : 0.0};
  const bool wide = key.dtype == Dtype::f64;
  const void* alpha = wide ? static_cast<const void*>(doubles) : floats;
  const void* beta = wide ? static_cast<const void*>(doubles + 1) : floats + 1;
  check(cublasLtMatmul(lib.handle, plan.product, alpha, call.a, plan.a, call.b, plan.b, beta,
                       call.y, plan.y, call.y, plan.y, &plan.algorithm, lib.workspace.raw(),
                       static_cast<size_t>(lib.workspace.bytes()), gpu::stream()),
        op);
  return true;
}

void prepare(std::string_view op, Library& lib, Device device) {
  if (lib.handle) return;
  constexpr std::int64_t mebibyte = 1 << 20;
  const std::int64_t bytes = (gpu::compute_capability() >= 90 ? 32 : 8) * mebibyte;
  if (!lib.workspace.defined()) lib.workspace = empty({bytes}, {Dtype::u8, device});
  check(cublasLtCreate(&lib.handle), op);
}

}  // namespace

void gpu::gemm(std::string_view op, const GemmSize& size, const Tensor& a, const Tensor& b,
               const Tensor& bias, Tensor& y) {
  if (y.numel() == 0) return;
  if (size.k == 0) return bias.defined() ? spread(op, bias, y) : fill(0, y);
  if (bias.defined() && y.dtype() == Dtype::bf16 && unaligned(size, a, b, bias, y)) {
    Tensor sums = empty(y.shape(), {Dtype::f32, y.device()});
    gemm(op, size, a, b, {}, sums);
    return add_rows(op, sums, bias, y);
  }
  Library& lib = library(y.device());
  const std::lock_guard lock(lib.mutex);
  prepare(op, lib, y.device());
  const void* p = bias.defined() ? bias.raw() : nullptr;
  Key key{size,      a.dtype(),
          y.dtype(), a.dtype() == Dtype::f32 && tf32_allowed(),
          false,     alignment_of({a.raw(), b.raw(), y.raw(), p})};
  // The library counts batches in 32 bits, and some of its kernels in a grid of 65,535.
  constexpr std::int64_t most = 65535;
  for (std::int64_t first = 0; first < size.batch; first += most) {
    key.size.batch = std::min(most, size.batch - first);
    const auto at = [&](const Tensor& x, std::int64_t matrix) {
      return static_cast<const char*>(x.raw()) + first * matrix * size_of(x.dtype());
    };
    const Call call{at(b, size.k * size.n), at(a, size.m * size.k), nullptr,
                    static_cast<char*>(y.raw()) + first * size.m * size.n * size_of(y.dtype()),
                    false};
    Call biased = call;
    biased.bias = p;
    key.bias = p != nullptr && y.dtype() != Dtype::f64;  // f64 has no epilogues
    if (key.bias && multiply(op, lib, key, biased)) continue;
    key.bias = false;
    if (p && first == 0) spread(op, bias, y);
    Call plain = call;
    plain.add = p != nullptr;
    require(multiply(op, lib, key, plain), Kind::cuda, op, "cuBLASLt has no algorithm",
            text(y.dtype(), " ", size.m, " x ", size.n, " x ", size.k), "a supported product");
  }
}

}  // namespace ebb
