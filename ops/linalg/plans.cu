#include "ebb/ops/linalg/plans.cuh"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <utility>

#include "ebb/core/basic.h"
#include "ebb/core/graph.h"
#include "ebb/core/random.h"
#include "ebb/core/timer.h"

namespace ebb {
namespace {

using gpu::Call;
using gpu::Key;
using gpu::Shared;
using gpu::Then;

void check(cublasStatus_t status, std::string_view op) {
  require(status == CUBLAS_STATUS_SUCCESS, Kind::cuda, op, "a cuBLASLt call failed",
          cublasLtGetStatusString(status), "success");
}

constexpr int most_candidates = 8;

struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, plus = nullptr, y = nullptr;
  // None where cuBLASLt has no algorithm; several, the likeliest first, until they are measured.
  std::array<cublasLtMatmulAlgo_t, most_candidates> candidates;
  int count = 0;
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

// rows × columns as cuBLAS counts them, column by column, without gaps; one matrix for the whole
// batch where it is `shared`.
cublasLtMatrixLayout_t layout(std::string_view op, cudaDataType_t type, std::int64_t rows,
                              std::int64_t columns, std::int64_t batch, bool shared = false) {
  cublasLtMatrixLayout_t made = nullptr;
  check(cublasLtMatrixLayoutCreate(&made, type, static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(columns), rows),
        op);
  if (batch == 1) return made;
  const auto count = static_cast<int32_t>(batch);
  const std::int64_t stride = shared ? 0 : rows * columns;
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

std::int64_t matrices_of_a(const Key& key) {
  return key.shared == Shared::nothing ? key.size.batch : 1;
}

// What a measurement costs at the first product is soon saved in training: also by small products
// of one matrix with many images, of which the likeliest way may take twice as long as another. It
// takes operands of its own, which are not to be what memory runs out of.
bool worth_measuring(const Key& key) {
  constexpr std::int64_t most = std::int64_t{1} << 29;  // bytes
  const std::int64_t least = std::int64_t{1} << (key.shared == Shared::nothing ? 31 : 26);
  const GemmSize& s = key.size;
  const std::int64_t h = key.then == Then::gelu_backward ? s.m * s.n : 0;
  const std::int64_t operands = matrices_of_a(key) * s.m * s.k + s.batch * (s.k * s.n + h);
  return s.batch * s.m * s.n * s.k >= least && operands * size_of(key.dtype) <= most;
}

void find_candidates(std::string_view op, const Library& lib, const Key& key, Plan& plan) {
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), op);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value), op);
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(lib.workspace.bytes()));
  // Parts of a bf16 sum are added in f32: the other ways round each to bf16 first.
  if (key.dtype == Dtype::bf16)
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  cublasLtMatmulHeuristicResult_t found[most_candidates] = {};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      lib.handle, plan.product, plan.a, plan.b, plan.plus, plan.y, preference,
      worth_measuring(key) ? most_candidates : 1, found, &count);
  check(cublasLtMatmulPreferenceDestroy(preference), op);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) check(status, op);
  for (int i = 0; i < count; ++i)
    if (found[i].state == CUBLAS_STATUS_SUCCESS) plan.candidates[plan.count++] = found[i].algo;
}

cublasLtEpilogue_t epilogue_of(const Key& key) {
  switch (key.then) {
    case Then::gelu:
      return key.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    case Then::gelu_backward:
      return CUBLASLT_EPILOGUE_DGELU;
    default:
      return key.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  }
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
  set(op, plan.product, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(key));
  if (key.then != Then::nothing) set(op, plan.product, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, s.n);
  const bool shared = key.shared != Shared::nothing;
  const auto made = [&](std::int64_t rows, std::int64_t columns, bool shared) {
    return layout(op, types.element, rows, columns, s.batch, shared);
  };
  plan.a = s.transpose_b ? made(s.k, s.n, false) : made(s.n, s.k, false);
  plan.b = s.transpose_a ? made(s.m, s.k, shared) : made(s.k, s.m, shared);
  plan.plus = layout(op, types.result, s.n, s.m, s.batch, key.shared == Shared::a_and_plus);
  plan.y = layout(op, types.result, s.n, s.m, s.batch);
  find_candidates(op, lib, key, plan);
  return plan;
}

cublasStatus_t start(std::string_view op, Library& lib, const Key& key, const Plan& plan,
                     const cublasLtMatmulAlgo_t& algorithm, const Call& call) {
  if (call.bias) set(op, plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);
  if (call.h) set(op, plan.product, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, call.h);
  const float floats[] = {1, call.plus ? 1.0f : 0.0f};
  const double doubles[] = {1, call.plus ? 1.0 : 0.0};
  const bool wide = key.dtype == Dtype::f64;
  const void* alpha = wide ? static_cast<const void*>(doubles) : floats;
  const void* beta = wide ? static_cast<const void*>(doubles + 1) : floats + 1;
  return cublasLtMatmul(lib.handle, plan.product, alpha, call.a, plan.a, call.b, plan.b, beta,
                        call.plus ? call.plus : call.y, plan.plus, call.y, plan.y, &algorithm,
                        lib.workspace.raw(), static_cast<size_t>(lib.workspace.bytes()),
                        gpu::stream());
}

__global__ void digest_kernel(const unsigned* words, std::int64_t n, unsigned long long* sum) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  unsigned long long own = 0;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride)
    own += (words[i] + 1ull) * (2654435761ull * static_cast<unsigned long long>(i) + 1);
  atomicAdd(sum, own);
}

// A number that another order of the sums in y would almost surely change.
std::uint64_t digest(std::string_view op, const Key& key, Device device, const void* y) {
  const std::int64_t bytes = key.size.batch * key.size.m * key.size.n * size_of(key.result);
  Tensor sum = zeros({2}, {Dtype::i32, device});
  auto* out = static_cast<unsigned long long*>(sum.raw());
  gpu::launch(op, digest_kernel, dim3(1024), 256, 0, static_cast<const unsigned*>(y), bytes / 4,
              out);
  const std::vector<std::int32_t> halves = sum.to_vector<std::int32_t>();
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(halves[1])) << 32 |
         static_cast<std::uint32_t>(halves[0]);
}

// Which of `count` candidates give the bits of the first one, in the order of likelihood. run(i)
// writes y.
template <class Run>
std::vector<int> alike(std::string_view op, const Key& key, Device device, const void* y, int count,
                       Run run) {
  std::vector<int> same;
  std::uint64_t bits = 0;
  for (int i = 0; i < count; ++i) {
    if (run(i) != CUBLAS_STATUS_SUCCESS) continue;
    const std::uint64_t own = digest(op, key, device, y);
    if (same.empty()) bits = own;
    if (own == bits) same.push_back(i);
  }
  return same;
}

// The fastest of some candidates, each timed with cold caches, in rounds, as a GPU's clocks change
// meanwhile. One after the likeliest has to be clearly faster.
template <class Run>
int fastest_of(std::string_view op, Device device, const std::vector<int>& candidates, Run run) {
  if (candidates.size() < 2) return candidates.empty() ? 0 : candidates.front();
  constexpr int rounds = 5;
  constexpr double clearly = 0.99, patience = 0.1;  // seconds in all
  constexpr std::int64_t flushed = std::int64_t{1} << 26;
  Tensor caches = empty({flushed}, {Dtype::u8, device});
  Timer timer(device);
  std::array<double, most_candidates> least;
  least.fill(1e9);
  double spent = 0;
  for (int round = 0; round < rounds && spent < patience; ++round)
    for (const int i : candidates) {
      gpu::fill(0, caches);
      timer.start();
      check(run(i), op);
      timer.stop();
      const double seconds = timer.seconds();
      least[i] = std::min(least[i], seconds);
      spent += seconds;
    }
  int best = candidates.front();
  for (const int i : candidates)
    if (least[i] < clearly * least[best]) best = i;
  return best;
}

// Keeps the fastest of the candidates whose result has the bits of the first one's: so the bits
// depend on no measurement. They are compared on random operands: zeros and small integers have the
// same sums in any order. Writes over y, and over what gelu keeps.
void keep_fastest(std::string_view op, Library& lib, const Key& key, Plan& plan, const Call& call) {
  const Device device = lib.workspace.device();
  const GemmSize& s = key.size;
  Generator generator(1);
  const auto random = [&](std::int64_t n) {
    return uniform({n}, -1, 1, generator, {key.dtype, device});
  };
  const auto raw = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
  const Tensor a = random(s.batch * s.k * s.n), b = random(matrices_of_a(key) * s.m * s.k), none;
  const Tensor bias = key.bias ? random(s.n) : none;
  const Tensor plus = key.shared == Shared::a_and_plus ? random(s.m * s.n) : none;
  const Tensor h = key.then == Then::gelu_backward ? random(s.m * s.n) : none;
  const Call trial{raw(a), raw(b), raw(bias), raw(plus), call.y, h.defined() ? h.raw() : call.h};
  const auto run = [&](int i) { return start(op, lib, key, plan, plan.candidates[i], trial); };
  const int best = fastest_of(op, device, alike(op, key, device, call.y, plan.count, run), run);
  std::swap(plan.candidates[0], plan.candidates[best]);
  plan.count = 1;
}

void prepare(std::string_view op, Library& lib, Device device) {
  if (lib.handle) return;
  constexpr std::int64_t mebibyte = 1 << 20;
  const std::int64_t bytes = (gpu::compute_capability() >= 90 ? 32 : 8) * mebibyte;
  if (!lib.workspace.defined()) lib.workspace = empty({bytes}, {Dtype::u8, device});
  check(cublasLtCreate(&lib.handle), op);
}

}  // namespace

bool gpu::multiply(std::string_view op, Device device, const Key& key, const Call& call) {
  Library& lib = library(device);
  const std::lock_guard lock(lib.mutex);
  prepare(op, lib, device);
  auto at = lib.plans.find(key);
  if (at == lib.plans.end()) at = lib.plans.emplace(key, make_plan(op, lib, key)).first;
  Plan& plan = at->second;
  if (plan.count == 0) return false;
  if (plan.count > 1 && call.plus != call.y && !gpu::capturing())
    keep_fastest(op, lib, key, plan, call);
  ebb::check(start(op, lib, key, plan, plan.candidates[0], call), op);
  return true;
}

void gpu::forget_plans(Device device) {
  Library& lib = library(device);
  const std::lock_guard lock(lib.mutex);
  lib.plans.clear();
}

}  // namespace ebb
