// fill, convert and accumulate work on packs of elements on a GPU: around the edges of its blocks
// each element has to be there, and nothing beside them.
#include "ebb/core/basic.h"

#include <doctest/doctest.h>

#include <array>

#include "ebb/core/run.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

constexpr std::array dtypes = {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::i32, Dtype::u8};
constexpr std::array sizes = {0, 1, 3, 2047, 2048, 2049, 4096, 8191, 16384, 16385, 40000};

// Whole numbers that every type holds exactly, no two neighbours alike.
Tensor whole_numbers(std::int64_t n, Dtype dtype) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>((i * 37 + i / 251) % 127);
  return tensor(x, {n}).to(dtype);
}

}  // namespace

TEST_CASE("basic: every element is converted, from every type to every type") {
  for (const Device device : devices())
    for (const Dtype from : dtypes)
      for (const Dtype to : dtypes)
        for (const std::int64_t n : sizes) {
          const Tensor x = whole_numbers(n, from);
          CHECK(values(x.to(device).to(to)) == values(x));
        }
}

TEST_CASE("basic: every element is filled") {
  for (const Device device : devices())
    for (const Dtype dtype : dtypes)
      for (const std::int64_t n : sizes) {
        const std::vector<double> filled(static_cast<size_t>(n), 7);
        CHECK(values(full({n}, 7, {dtype, device})) == filled);
      }
}

TEST_CASE("basic: every element is added, bf16 to f32 as well") {
  for (const Device device : devices())
    for (const auto& [from, to] :
         {std::pair{Dtype::f32, Dtype::f32}, std::pair{Dtype::f64, Dtype::f64},
          std::pair{Dtype::bf16, Dtype::bf16}, std::pair{Dtype::bf16, Dtype::f32}})
      for (const std::int64_t n : sizes) {
        const Tensor x = whole_numbers(n, from).to(device);
        Tensor y = full({n}, 100, {to, device});
        run<cpu::accumulate, gpu::accumulate>(device, x, y);
        std::vector<double> sums = values(x);
        for (double& s : sums) s += 100;
        CHECK(values(y) == sums);
      }
}
