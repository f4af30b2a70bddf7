// occupancy: how many warps of a multiprocessor the element-wise kernels can fill, forward and
// backward, by CUDA's own calculation. Exit: 0, 1 when silu or mish leave room, 4 without a GPU.
#include <cstdio>

#include <ebb/ebb.h>

namespace {

using namespace ebb;

struct Row {
  const char* op;
  Tensor (*call)(const Tensor& x);
};

const Row rows[] = {
    {"silu", silu},
    {"mish", mish},
    {"gelu", [](const Tensor& x) { return gelu(x); }},
    {"gelu, erf", [](const Tensor& x) { return gelu(x, {.approximate = "none"}); }},
    {"tanh", tanh},
    {"sigmoid", sigmoid},
    {"relu", relu},
    {"exp", exp},
    {"log", log},
    {"sqrt", sqrt},
    {"swiglu", [](const Tensor& x) { return swiglu(x, x); }},
    {"add", [](const Tensor& x) { return add(x, x); }},
    {"mul", [](const Tensor& x) { return mul(x, x); }},
    {"div", [](const Tensor& x) { return div(x, x); }},
    {"invert_colors", [](const Tensor& x) { return invert_colors(x); }},
    {"dropout", [](const Tensor& x) { return dropout(x, {.seed = 0}); }},
};

// Prints the kernels of one direction; false when one cannot fill a multiprocessor.
bool print(const Row& row, const char* direction, Dtype dtype,
           const std::vector<KernelUse>& kernels) {
  bool filled = true;
  for (const KernelUse& k : kernels) {
    std::printf("%-14s %-4s %-8s %7d %9d %7d %6d %3d of %d  %3.0f %%\n", row.op,
                std::string(name(dtype)).c_str(), direction, k.threads, k.registers, k.local_bytes,
                k.blocks, k.warps, k.max_warps, 100.0 * k.warps / k.max_warps);
    filled = filled && k.warps == k.max_warps;
  }
  return filled;
}

bool measure(const Row& row, Dtype dtype) {
  Tensor x = full({1 << 20}, 0.5, {dtype, cuda_device}).set_requires_grad(true);
  const Tensor dy = full({1 << 20}, 0.25, {dtype, cuda_device});
  Tensor y = row.call(x);  // once unwatched: dropout tries its launch shapes
  const bool forward = print(row, "forward", dtype, kernels_of([&] { y = row.call(x); }));
  return print(row, "backward", dtype, kernels_of([&] { y.backward(dy); })) && forward;
}

}  // namespace

int main() {
  if (cuda_device_count() == 0) {
    std::fprintf(stderr, "occupancy: no CUDA device; got none; expected one\n");
    return 4;
  }
  tune_dropout(false);
  std::printf("%-14s %-4s %-8s %7s %9s %7s %6s %9s\n", "op", "type", "", "threads", "registers",
              "spilled", "blocks", "warps");
  bool filled = true;
  for (const Row& row : rows)
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const bool all = measure(row, dtype);
      if (row.call == silu || row.call == mish) filled = filled && all;
    }
  std::printf("silu and mish %s\n", filled ? "fill every warp" : "LEAVE WARPS EMPTY");
  return filled ? 0 : 1;
}
