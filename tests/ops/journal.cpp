// The journal's notebooks had kernels that were wrong, never ran, or were compared with themselves.
// Each defect, and the test that would have found it:
//
//   Optimized_Conv2d    compared PyTorch's result with itself; output not initialised; bias added
//                       once a channel; filters read at the channel's index; stride = kernel only
//                         → here; golden conv2d-*; "conv2d: equals its definition …"
//   AvgPool2d           other shapes than the ones it was compared on → here; golden avg_pool2d-*
//   BatchNorm2d         in place, no running statistics, compared with eval mode
//                         → here; "batch_norm: known channels in training …"
//   Mish Tanh           backward without the upstream gradient → here; golden mish-* tanh-*
//   Mish GELU Tanh      overflow to NaN far from 0 → here; "hard numbers: …"; GELU was compared in
//                       [0, 1) with the other form → "gelu: the two forms differ …"
//   SiLU                backward could not run → golden silu-*
//   SwiGLU              wrong gate gradient; saved inputs overwritten → here; golden swiglu-*
//   LayerNorm_backward  no dx; unbiased variance; atomics → here; golden layer_norm-*
//   Layer_Norm_Forward  widths that are powers of two only → golden layer_norm-*
//   Flash_Attention_2   never ran → golden flash_attention-*
//   Fused_Softmax       past the end unless rows % 4 = 0 → here; golden softmax-10; past the end of
//                       any result: "softmax: twins agree …", and every other "… twins agree …"
//   RGB_to_GRAYSCALE    offset times the channel's stride → here; golden rgb_to_grayscale-*
//   Dropout             a random tensor from memory → "dropout: the mask of a seed is known …"
//   Sum                 atomics into memory that nobody set, run repeatedly → here
//   RMS_LayerNorm       no eps: a row of zeros is NaN → here; "hard numbers: rms_norm"
//   l2_norm             the same → here; "hard numbers: l2_norm and l2_normalize"
//   Inverting_Colors    square images only, stores without a mask, in place
//                         → here; golden invert_colors-*; "invert_colors: twins agree …"
//   MaxPool1d MaxPool2d stride = kernel only; channels lost; no padding, no backward
//                         → here; golden max_pool1d-* max_pool2d-*
//   inner_product       atomics: the sum depends on their order → here
#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {

using V = std::vector<double>;

Tensor count_up(const Shape& shape, Device device) {
  std::vector<float> v;
  for (std::int64_t i = 1; i <= shape.numel(); ++i) v.push_back(static_cast<float>(i));
  return tensor<float>(v, shape, device);
}

struct Poisoned {
  Poisoned() { poison_memory(true); }
  ~Poisoned() { poison_memory(false); }
};

Tensor gradient(const std::function<Tensor(const Tensor&)>& f, const Tensor& x, const Tensor& dy) {
  const Tensor in = leaf(x.clone());
  f(in).backward(dy);
  return in.grad();
}

}  // namespace

TEST_CASE("journal: conv2d adds each filter's bias once, whatever the channels and the stride") {
  const Poisoned poisoned;
  for (const Device device : devices())
    for (const std::int64_t stride : {1, 2, 3, 5}) {
      const std::int64_t channels = 17, side = (9 - 3) / stride + 1;
      const Tensor x = ones({2, channels, 9, 9}, {.device = device});
      const Tensor w =
          concat({ones({1, channels, 3, 3}, x.options()), zeros({1, channels, 3, 3}, x.options())});
      const Tensor y = conv2d(x, w, tensor<float>({1000, 5}, {2}, device), {.stride = stride});
      REQUIRE(y.shape() == Shape{2, 2, side, side});
      for (std::int64_t i = 0; i < y.numel(); ++i)
        CHECK(values(y)[size_t(i)] == (i / (side * side) % 2 == 0 ? 1153 : 5));
    }
}

TEST_CASE("journal: avg_pool2d of an image is that of a batch of one") {
  const Poisoned poisoned;
  for (const Device device : devices()) {
    const Tensor x = count_up({3, 4, 6}, device);
    const Tensor y = avg_pool2d(x, 2);
    CHECK(y.shape() == Shape{3, 2, 3});
    CHECK(values(y) == values(avg_pool2d(reshape(x, {1, 3, 4, 6}), 2)));
    CHECK(values(y)[0] == (1 + 2 + 7 + 8) / 4.);
    CHECK(values(y)[17] == (65 + 66 + 71 + 72) / 4.);
  }
}

TEST_CASE("journal: batch_norm in training uses the batch, moves the running numbers, keeps x") {
  for (const Device device : devices()) {
    const Tensor x = count_up({2, 3, 2, 2}, device);
    const Tensor mean = full({3}, 100, {.device = device}), var = full({3}, 7, {.device = device});
    const Tensor y = batch_norm(x, mean, var, {}, {}, {.training = true});
    CHECK(values(x) == values(count_up({2, 3, 2, 2}, device)));
    check_close(mean, tensor<double>({90.85, 91.25, 91.65}, {3}), pointwise, "running mean");
    for (const double v : values(sum(y, {.dim = {0, 2, 3}}))) CHECK(std::abs(v) <= 1e-5);
    const Tensor still = batch_norm(x, mean, var, {}, {}, {.training = false});
    CHECK(values(still) != values(y));
  }
}

TEST_CASE("journal: activations multiply by the upstream gradient, and are finite to 1e4") {
  using F = Tensor (*)(const Tensor&);
  std::vector<float> x;
  for (float v = 1e-3f; v <= 1e4f; v *= 1.25f) x.push_back(v), x.push_back(-v);
  const F fs[] = {mish,
                  silu,
                  ebb::tanh,
                  sigmoid,
                  [](const Tensor& t) { return gelu(t); },
                  [](const Tensor& t) { return gelu(t, {.approximate = "none"}); }};
  for (const Device device : devices())
    for (const F f : fs) {
      const Tensor in = tensor<float>(x, {std::int64_t(x.size())}, device);
      const Tensor dy = randn(in.shape(), 3, Dtype::f32, device);
      const Tensor slope = gradient(f, in, ones_like(in));
      check_close(gradient(f, in, dy), mul(slope, dy), {1e-30, 1e-6}, "dx");
      for (const Tensor& t : {f(in), slope})
        for (const double v : values(t)) CHECK(std::isfinite(v));
    }
}

TEST_CASE("journal: backward leaves inputs and the upstream gradient as they were") {
  const Function fs[] = {
      [](const Tensors& t) { return swiglu(t[0], t[1]); },
      [](const Tensors& t) { return mul(t[0], t[1]); },
      [](const Tensors& t) { return layer_norm(t[0]) + t[1]; },
      [](const Tensors& t) { return softmax(t[0]) * mish(t[1]); },
      [](const Tensors& t) { return matmul(t[0], t[1], {.transpose_b = true}); },
      [](const Tensors& t) { return invert_colors(t[0]) + rms_norm(t[1]); },
  };
  for (const Device device : devices())
    for (const Function& f : fs) {
      const Tensors in = {leaf(randn({5, 7}, 1, Dtype::f32, device)),
                          leaf(randn({5, 7}, 2, Dtype::f32, device))};
      const V a = values(in[0]), b = values(in[1]);
      const Tensor y = f(in);
      const V out = values(y);
      const Tensor dy = randn(y.shape(), 3, Dtype::f32, device);
      const V g = values(dy);
      y.backward(dy);
      CHECK(values(in[0]) == a);
      CHECK(values(in[1]) == b);
      CHECK(values(y) == out);
      CHECK(values(dy) == g);
    }
}

TEST_CASE("journal: layer_norm divides by the biased deviation and has a dx") {
  for (const Device device : devices()) {
    const Tensor x = leaf(tensor<float>({1, -1}, {1, 2}, device));
    const Tensor y = layer_norm(x, {}, {}, {.eps = 0});
    CHECK(values(y) == V{1, -1});  // √2 times less with the unbiased one
    y.backward(tensor<float>({1, 0}, {1, 2}, device));
    check_close(x.grad(), tensor<double>({0, 0}, {1, 2}), {1e-6, 0}, "dx");
    const Tensor x3 = tensor<float>({0, 3, 0}, {1, 3}, device);
    const Tensor dx = gradient([](const Tensor& t) { return layer_norm(t, {}, {}, {.eps = 0}); },
                               x3, tensor<float>({1, 0, 0}, {1, 3}, device));
    check_close(dx, tensor<double>({.35355339, 0, -.35355339}, {1, 3}), {1e-6, 0}, "dx");
  }
}

TEST_CASE("journal: softmax of any number of rows, no multiple of four") {
  const Poisoned poisoned;
  for (const Device device : devices())
    for (const std::int64_t rows : {1, 2, 3, 5, 1823}) {
      const Tensor x = randn({rows, 781}, 4, Dtype::f32, device);
      const Tensor all = concat({softmax(x), ones({3, 781}, x.options())});
      for (const double v : values(sum(all, {.dim = {1}})))
        CHECK((std::abs(v - 1) <= 1e-5 || v == 781));
    }
}

TEST_CASE("journal: grayscale takes each channel where it lies") {
  const Poisoned poisoned;
  for (const Device device : devices()) {
    const Tensor x = count_up({2, 3, 3, 5}, device);
    const V weights[] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
    for (size_t c = 0; c < 3; ++c) {
      const Tensor y =
          rgb_to_grayscale(x, {.weights = {weights[c][0], weights[c][1], weights[c][2]}});
      CHECK(values(y) == values(slice(x, 1, std::int64_t(c), std::int64_t(c) + 1)));
    }
  }
}

TEST_CASE("journal: sum and inner_product give the same bits each time, into any memory") {
  for (const Device device : devices()) {
    const Tensor x = randn({37, 4099}, 5, Dtype::f32, device);
    const Tensor v = reshape(x, {-1});
    const V rows = values(sum(x, {.dim = {1}})), columns = values(sum(x, {.dim = {0}}));
    const double dot = inner_product(v, v).item(), all = sum(x).item();
    const Poisoned poisoned;
    for (int k = 0; k < 20; ++k) {
      CHECK(values(sum(x, {.dim = {1}})) == rows);
      CHECK(values(sum(x, {.dim = {0}})) == columns);
      CHECK(inner_product(v, v).item() == dot);
      CHECK(sum(x).item() == all);
    }
  }
}

TEST_CASE("journal: rows of zeros are no NaN to a norm") {
  for (const Device device : devices()) {
    const Tensor x = leaf(zeros({3, 5}, {.device = device}));
    const Tensor ys[] = {rms_norm(x), l2_normalize(x), layer_norm(x), l2_norm(x, {.dim = {1}})};
    for (const Tensor& y : ys) {
      for (const double v : values(y)) CHECK(v == 0);
      y.backward(ones_like(y));
    }
    for (const double v : values(x.grad())) CHECK(std::isfinite(v));
  }
}

TEST_CASE("journal: images that are not square are inverted, into memory of their own") {
  const Poisoned poisoned;
  for (const Device device : devices())
    for (const Shape& shape : {Shape{3, 1080, 7}, Shape{1, 33, 65}, Shape{2, 3, 1, 129}}) {
      const Tensor x = randn(shape, 6, Dtype::f32, device);
      const V before = values(x);
      const V after = values(invert_colors(x));
      CHECK(values(x) == before);
      bool right = true;
      for (size_t i = 0; i < before.size(); ++i) right &= after[i] == double(1 - float(before[i]));
      CHECK(right);
    }
}

// Windows 0-1, 1-3, 3-5, … of a padded line: places 1, 3, 5 belong to two of them.
TEST_CASE("journal: pools overlap, pad, and send gradients to every winner") {
  const Poisoned poisoned;
  for (const Device device : devices()) {
    const Tensor x = leaf(tensor<float>({1, 9, 2, 3, 8, 7, 0}, {1, 1, 7}, device));
    const Tensor y = max_pool1d(x, 3, {.stride = 2, .padding = 1});
    CHECK(values(y) == V{9, 9, 8, 7});
    y.backward(tensor<float>({1, 10, 100, 1000}, {1, 1, 4}, device));
    CHECK(values(x.grad()) == V{0, 11, 0, 0, 100, 1000, 0});
    const Tensor plane = leaf(reshape(x.detach(), {1, 1, 1, 7}));
    const Tensor z = max_pool2d(plane, {1, 3}, {.stride = Pair(1, 2), .padding = {0, 1}});
    CHECK(values(z) == values(y));
    z.backward(ones_like(z));
    CHECK(values(plane.grad()) == V{0, 2, 0, 0, 1, 1, 0});
    const Tensor many = max_pool2d(count_up({3, 67, 2, 2}, device), 2);
    CHECK(many.shape() == Shape{3, 67, 1, 1});
    for (size_t i = 0; i < 201; ++i) CHECK(values(many)[i] == 4. * double(i + 1));
  }
}
