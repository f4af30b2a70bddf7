// Sizes at which 16-bit grids, 32-bit indices and the ends of packets show.
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

constexpr std::int64_t rows = 65'537 + 3;  // more than gridDim.y and .z can be
constexpr std::int64_t beyond = std::int64_t{1} << 31;

// Whether the GPU has this much to give; where not, the check counts as skipped.
bool has_room(std::int64_t gib) {
  if (cuda_device_count() > 0) {
    try {
      empty({gib << 30}, {Dtype::u8, cuda_device});
      release_cache(cuda_device);
      ++gpu_checks_run;
      return true;
    } catch (const Error& error) {
      if (error.kind() != Kind::oom) throw;
    }
  }
  ++gpu_checks_skipped;
  return false;
}

// Poisoned memory, and an empty cache afterwards.
struct Room {
  Room() { poison_memory(true); }
  ~Room() {
    poison_memory(false);
    release_cache(cuda_device);
  }
};

// Zeros, and `last` after them along dimension 0.
Tensor zeros_then(const Tensor& last, std::int64_t before) {
  return concat({zeros(last.shape().with(0, before), last.options()), last});
}

constexpr Tolerance bf16_apart{1e-30, 0x1p-7};             // two roundings
constexpr Tolerance bf16_gradient{1e-7, 0x1p-6};           // of a y rounded to bf16, rounded itself
constexpr Tolerance few_products{1e-5, 0};                 // up to 4, of numbers up to 5
constexpr Tolerance sum_over_images{2e-3, 4e-6};           // 260,000 products of such numbers
constexpr Tolerance short_row_gradient{1e-4, 4e-6, true};  // 1/σ of 5 numbers may be large
constexpr Tolerance tiny_row{1e-5, 0};  // of 1 to 40 numbers: 1/σ up to 1/√eps
constexpr Tolerance tiny_row_gradient{2e-3, 1e-5, true};

}  // namespace

TEST_CASE("large: more rows than a grid is high") {
  const auto twins = [](const Function& f, const Shape& shape, TwinTolerance tolerance) {
    check_twins(f, {randn(shape, 1)}, tolerance);
  };
  const TwinTolerance as_rows{row, row_gradient}, as_sums{{1e-6, 2e-6}, {1e-6, 2e-6}};
  twins([](const Tensors& t) { return softmax(t[0]); }, {rows, 3}, as_rows);
  twins([](const Tensors& t) { return log_softmax(t[0]); }, {rows, 3},
        {pointwise, pointwise_gradient});
  twins([](const Tensors& t) { return softmax(t[0], {.dim = 1}); }, {rows, 3, 2}, as_rows);
  twins([](const Tensors& t) { return layer_norm(t[0]); }, {rows, 5}, {row, short_row_gradient});
  twins([](const Tensors& t) { return rms_norm(t[0]); }, {rows, 5}, {row, short_row_gradient});
  twins([](const Tensors& t) { return sum(t[0], {.dim = {1}}); }, {rows, 3}, as_sums);
  twins([](const Tensors& t) { return sum(t[0], {.dim = {1}}); }, {rows, 3, 2}, as_sums);
  twins([](const Tensors& t) { return max(t[0], {.dim = {1}}); }, {rows, 3}, {exact, exact});
  twins([](const Tensors& t) { return l2_norm(t[0], {.dim = {1}}); }, {rows, 3}, as_sums);
  twins([](const Tensors& t) { return permute(t[0], {0, 2, 1}); }, {rows, 2, 3}, {exact, exact});
  twins([](const Tensors& t) { return permute(t[0], {2, 1, 0}); }, {3, 2, rows}, {exact, exact});
  twins([](const Tensors& t) { return max_pool2d(t[0], 2); }, {rows, 1, 2, 3}, {exact, exact});
  twins([](const Tensors& t) { return max_pool1d(t[0], 2); }, {1, rows, 3}, {exact, exact});
  twins([](const Tensors& t) { return avg_pool2d(t[0], 2); }, {1, rows, 2, 3}, as_sums);
  twins([](const Tensors& t) { return rgb_to_grayscale(t[0]); }, {rows, 3, 1, 1}, as_sums);
}

TEST_CASE("large: more images than a grid is deep") {
  check_twins([](const Tensors& t) { return conv2d(t[0], t[1]); },
              {randn({rows, 1, 3, 3}, 1), randn({2, 1, 2, 2}, 2)}, {few_products, sum_over_images});
  check_twins([](const Tensors& t) { return matmul(t[0], t[1]); },
              {randn({rows, 2, 3}, 1), randn({rows, 3, 1}, 2)}, {few_products, few_products});
  check_twins(
      [](const Tensors& t) {
        const Tensor mean = zeros({2}, t[0].options()), var = ones({2}, t[0].options());
        return batch_norm(t[0], mean, var, {}, {}, {.training = true});
      },
      {randn({rows, 2, 2}, 1)}, {row, row_gradient});
  check_twins(
      [](const Tensors& t) {
        return cross_entropy(t[0], zeros({rows}, {Dtype::i32, t[0].device()}));
      },
      {randn({rows, 3}, 1)}, {pointwise, pointwise_gradient});
}

TEST_CASE("large: every length up to two packets has its own tail") {
  for (std::int64_t n = 1; n <= 40; ++n) {
    const Tensor a = randn({n}, 1), b = randn({n}, 2);
    check_twins([](const Tensors& t) { return swiglu(t[0], t[1]); }, {a, b});
    check_twins([](const Tensors& t) { return add(t[0], t[1]); }, {a, b}, {one_rounding, exact});
    check_twins([](const Tensors& t) { return mish(t[0]); }, {a});
    check_twins(
        [](const Tensors& t) {
          return softmax(reshape(t[0], {1, -1}));
        },
        {a}, {row, row_gradient});
    const Tensor three = randn({3, n}, 3);
    check_twins([](const Tensors& t) { return layer_norm(t[0]); }, {three},
                {tiny_row, tiny_row_gradient});
    check_twins([](const Tensors& t) { return sum(t[0], {.dim = {0}}); }, {three},
                {{1e-6, 2e-6}, exact});
  }
}

TEST_CASE("large: a map of more than 2^31 elements") {
  if (!has_room(40)) return;
  const Room room;
  const Tensor last = tensor<std::uint8_t>({1, 2, 3, 4, 5}, {5}, cuda_device);
  const Tensor y = invert_colors(zeros_then(last, beyond), {.max = 100});
  CHECK(values(slice(y, 0, beyond)) == std::vector<double>{99, 98, 97, 96, 95});
  CHECK(values(slice(y, 0, beyond - 2, beyond)) == std::vector<double>{100, 100});
  CHECK(std::abs(sum(y.to(Dtype::f32)).item() / (100 * double(beyond)) - 1) <= 1e-6);
}

TEST_CASE("large: rows of more than 2^31 elements together, forward and backward") {
  if (!has_room(40)) return;
  const Room room;
  const std::int64_t before = 65'536, cols = 32'771;
  const Tensor last = leaf(randn({1, cols}, 1, Dtype::bf16, cuda_device));
  const Tensor last_dy = randn({1, cols}, 2, Dtype::bf16, cuda_device);
  const Tensor last_y = softmax(last);
  last_y.backward(last_dy);
  Tensor x = leaf(zeros_then(last.detach(), before));
  const Tensor y = softmax(x);
  check_close(slice(y, 0, -1), last_y, bf16_apart, "last row");
  CHECK(std::abs(sum(y).item() / double(before + 1) - 1) <= .01);
  check_close(slice(sum(x, {.dim = {1}}), 0, -1), sum(last, {.dim = {1}}), bf16_apart, "last sum");
  y.backward(zeros_then(last_dy, before));
  check_close(slice(x.grad(), 0, -1), last.grad(), bf16_gradient, "last gradient");
  CHECK(values(max(slice(x.grad(), 0, 0, before))) == std::vector<double>{0});
}

TEST_CASE("large: images of more than 2^31 pixels together, pooled and back") {
  if (!has_room(40)) return;
  const Room room;
  const std::int64_t before = 2'048, side = 1'024;
  const Tensor last = leaf(randn({1, 1, side, side}, 1, Dtype::bf16, cuda_device));
  const Tensor last_y = max_pool2d(last, 2);
  last_y.backward(ones_like(last_y));
  Tensor x = leaf(zeros_then(last.detach(), before));
  const Tensor y = max_pool2d(x, 2);
  check_close(slice(y, 0, -1), last_y, exact, "last image");
  CHECK(values(max(slice(y, 0, 0, before))) == std::vector<double>{0});
  y.backward(ones_like(y));
  check_close(slice(x.grad(), 0, -1), last.grad(), exact, "last gradient");
  CHECK(std::abs(sum(x.grad()).item() / (double(before + 1) * side * side / 4) - 1) <= 0x1p-8);
}
