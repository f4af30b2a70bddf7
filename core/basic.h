// The few kernels that the engine itself needs: fill, convert, accumulate. Ops have their own.
#pragma once
#include "ebb/core/tensor.h"

namespace ebb {

using Fill = void(double value, Tensor& y);
using Convert = void(const Tensor& x, Tensor& y);  // same shape and device, any dtypes
// y += x; same shape, dtype and device, or a bf16 x and an f32 y.
using Accumulate = void(const Tensor& x, Tensor& y);

namespace cpu {
Fill fill;
Convert convert;
Accumulate accumulate;
}  // namespace cpu
namespace gpu {
Fill fill;
Convert convert;
Accumulate accumulate;
}  // namespace gpu

// Raw bytes between any two devices, ordered after what is queued; returns when the host's side of
// the copy may be reused.
void copy_bytes(void* to, Device to_device, const void* from, Device from_device,
                std::int64_t bytes);

namespace gpu {
void copy_bytes(void* to, const void* from, std::int64_t bytes, bool wait);
void synchronize();
int device_count();
void* allocate(std::int64_t bytes, std::int64_t* free_bytes);  // null when the device is full
void release(void* block);
void fill_bytes(void* block, int byte, std::int64_t bytes);
}  // namespace gpu

}  // namespace ebb
