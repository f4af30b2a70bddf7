#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

constexpr BatchNormOptions train{.training = true};

struct Running {
  Tensor mean, var;
};
Running running(std::int64_t channels, TensorOptions options = {}) {
  return {zeros({channels}, options), ones({channels}, options)};
}

// Running statistics as new in each call, so that the function is one.
Function f(BatchNormOptions options) {
  return [=](const Tensors& in) {
    const Running r = running(in[0].size(1), in[0].options());
    const auto get = [&](size_t i) { return i < in.size() ? in[i] : Tensor(); };
    return batch_norm(in[0], r.mean, r.var, get(1), get(2), options);
  };
}

// One channel of N values: y, dx for dy = 1, 2, 3, …, and the running statistics.
void check_channel(const std::vector<float>& x, const std::vector<double>& y,
                   const std::vector<double>& dx, double mean, double var, Tolerance tolerance) {
  for (const Device device : devices())
    for (const bool image : {false, true}) {
      const std::int64_t n = std::int64_t(x.size());
      const Shape shape = image ? Shape{1, 1, n} : Shape{n, 1};
      std::vector<float> dy;
      for (std::int64_t i = 1; i <= n; ++i) dy.push_back(float(i));
      Tensor in = leaf(tensor<float>(x, shape, device));
      Running r = running(1, {.device = device});
      const Tensor out = batch_norm(in, r.mean, r.var, {}, {}, train);
      out.backward(tensor<float>(dy, shape, device));
      check_close(out, tensor<double>(y, shape), tolerance, "y");
      if (!dx.empty()) check_close(in.grad(), tensor<double>(dx, shape), {.05, 1e-3}, "dx");
      CHECK(std::abs(r.mean.item() - mean) <= 1e-6 * (1 + std::abs(mean)));
      CHECK(std::abs(r.var.item() - var) <= 1e-6 * (1 + std::abs(var)));
    }
}

}  // namespace

TEST_CASE("batch_norm: known channels in training, and the running statistics they leave") {
  check_channel({5, 5, 5}, {0, 0, 0}, {-316.228, 0, 316.228}, .5, .9, {1e-4, 0});
  check_channel({1, 3}, {-.999995, .999995}, {-5e-6, 5e-6}, .2, 1.1, pointwise);
  check_channel({10000, 10001, 10002}, {-1.2247357, 0, 1.2247357}, {0, 0, 0}, 1000.1, 1.0,
                {2e-5, 0});
}

TEST_CASE("batch_norm: out of training the running statistics are used and kept") {
  for (const Device device : devices()) {
    Tensor x = leaf(tensor<float>({5, 7, 5, 7}, {2, 2}, device));
    const Tensor mean = tensor<float>({0, 1}, {2}, device);
    const Tensor var = tensor<float>({0, 4}, {2}, device);
    const Tensor y = batch_norm(x, mean, var, {}, {});
    check_close(y, tensor<double>({1581.13883, 2.99999625, 1581.13883, 2.99999625}, {2, 2}),
                pointwise, "y");
    y.backward(ones({2, 2}, {.device = device}));
    check_close(x.grad(), tensor<double>({316.227766, .499999375, 316.227766, .499999375}, {2, 2}),
                pointwise, "dx");
    CHECK(values(mean) == std::vector<double>{0, 1});
    CHECK(values(var) == std::vector<double>{0, 4});
  }
}

TEST_CASE("batch_norm: out of training dx is of dy alone, be x NaN or infinite") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16})
      for (const Shape& shape : {Shape{50, 7}, Shape{300, 64}, Shape{3, 5, 7, 7}, Shape{9, 8, 512}})
        for (const bool weighted : {true, false}) {
          const std::int64_t c = shape[1];
          const Tensor w = weighted ? randn({c}, 31, dtype, device) : Tensor();
          const Tensor dy = randn(shape, 32, dtype, device);
          const auto dx = [&](const Tensor& from) {
            const Tensor x = leaf(from.to(dtype).to(device));
            const Tensor scale = weighted ? leaf(w) : w;
            const Running r = running(c, {.device = device});
            batch_norm(x, r.mean.to(dtype), r.var.to(dtype), scale, {}).backward(dy);
            return x.grad();
          };
          Tensor wild = randn(shape, 33);
          for (std::int64_t i = 0; i < wild.numel(); i += 11)
            wild.data<double>()[i] = i % 2 ? NAN : INFINITY;
          check_close(dx(wild), dx(randn(shape, 33)), exact, "dx");
        }
}

TEST_CASE("batch_norm: gradients agree with finite differences") {
  const Tensor w = randn({3}, 1);
  const Tensor b = randn({3}, 2);
  for (const bool training : {true, false})
    for (const Shape& shape : {Shape{5, 3}, Shape{2, 3, 4}, Shape{2, 3, 2, 3}}) {
      check_gradients(f({.training = training}), {randn(shape, 3), w, b});
      check_gradients(f({.training = training}), {randn(shape, 4)});
    }
}

TEST_CASE("batch_norm: twins agree at ragged sizes, with few and with large planes") {
  const TwinTolerance tolerance{row, row_gradient};
  for (const bool training : {true, false})
    for (const Shape& shape :
         {Shape{67, 5}, Shape{300, 33}, Shape{3, 5, 7}, Shape{16, 3, 1, 1}, Shape{2, 3, 28, 28},
          Shape{5, 2, 13, 17}, Shape{1, 2, 150, 111}, Shape{1100, 72}, Shape{9, 3, 4, 5},
          Shape{700, 2, 2, 2}, Shape{3, 2, 120, 90}, Shape{3, 400, 8, 16}}) {
      const std::int64_t c = shape[1];
      check_twins(f({.training = training}), {randn(shape, 5), randn({c}, 6), randn({c}, 7)},
                  tolerance);
    }
  check_twins(f(train), {randn({70000, 1, 2}, 8)}, tolerance);
  // Of two values dx is what is left when numbers of dy's size cancel: the error is dy's.
  const TwinTolerance cancelled{row, {4e-6, 4e-6, true}};
  for (const Shape& shape : {Shape{2, 1}, Shape{1, 4, 2}})
    check_twins(f(train), {randn(shape, 11)}, cancelled);
}

// Planes that are not whole packs share those at their ends with their neighbours, and channels
// that are not are columns of several samples together.
TEST_CASE("batch_norm: twins agree where packs lie across channels and samples") {
  for (const bool training : {true, false})
    for (const Shape& shape :
         {Shape{4096, 3}, Shape{1000, 100}, Shape{640, 17}, Shape{64, 16, 7, 7}, Shape{40, 8, 3},
          Shape{33, 12, 5, 7}, Shape{128, 1, 3, 3}, Shape{100, 6, 27}, Shape{1, 4, 9, 9},
          Shape{400, 4, 15, 15}, Shape{3000, 4, 7, 7}, Shape{64, 40, 27, 27}, Shape{31, 1, 45, 45}})
      check_twins(f({.training = training}),
                  {randn(shape, 26), randn({shape[1]}, 27), randn({shape[1]}, 28)},
                  {row, row_gradient});
}

// f64 is never held between the sums and the map.
TEST_CASE("batch_norm: f64 is exact, and bf16 rounds only results, at every width of a pack") {
  const auto run = [](Dtype dtype, const Shape& shape, Device device) {
    const auto in = [&](const Shape& of, std::uint64_t seed) {
      return randn(of, seed, Dtype::bf16).to(dtype).to(device);
    };
    const Tensor x = leaf(in(shape, 20)), w = leaf(in({shape[1]}, 21)),
                 b = leaf(in({shape[1]}, 22));
    const Tensor y = f(train)({x, w, b});
    y.backward(in(shape, 23));
    return Tensors{y.detach(), x.grad(), w.grad(), b.grad()};
  };
  for (const Shape& shape :
       {Shape{70, 1000}, Shape{600, 40}, Shape{33, 64}, Shape{50, 9}, Shape{3, 20, 8, 9},
        Shape{5, 6, 26, 26}, Shape{4, 12, 5, 7}, Shape{90, 100, 2, 2}, Shape{2, 3, 96, 100},
        Shape{4096, 3}, Shape{640, 100}, Shape{64, 16, 7, 7}, Shape{40, 8, 3}, Shape{64, 4, 45, 45},
        Shape{3000, 4, 7, 7}, Shape{24, 3, 14, 14}, Shape{31, 1, 45, 45}}) {
    const Tensors exact = run(Dtype::f64, shape, cpu_device);
    for (const Device device : devices())
      for (const Dtype dtype : {Dtype::f64, Dtype::bf16}) {
        const Tensors got = run(dtype, shape, device);
        const Tolerance tolerance = dtype == Dtype::f64 ? Tolerance{1e-11, 1e-11} : rounded_to_bf16;
        for (size_t i = 0; i < got.size(); ++i) check_close(got[i], exact[i], tolerance, "");
      }
  }
}

// A GPU has all blocks of a group at a time, which go from channel to channel, or from strip to
// strip of columns, the last of which is not full. Of some tensors a block cannot hold its whole
// share: on an H100 backward of the first, the last and [16000,256], forward of [24000,260]. The
// last ones have one channel for all blocks.
TEST_CASE("batch_norm: twins agree where groups of blocks have large channels, and many of them") {
  for (const Shape& shape :
       {Shape{40, 8, 112, 112}, Shape{9, 140, 60, 60}, Shape{9000, 548}, Shape{24000, 260},
        Shape{16000, 256}, Shape{3, 400, 8, 16}, Shape{2, 1, 1000, 1000}, Shape{4, 1, 1001, 1001}})
    check_twins(f(train), {randn(shape, 24)}, {row, row_gradient});
}

TEST_CASE("batch_norm: a captured step gives the bytes of an ordinary one") {
  for (const Device device : devices()) {
    const auto run = [&](bool captured) {
      const Tensor x = randn({16, 40, 30, 30}, 25, Dtype::f32, device);
      const Running r = running(40, {.device = device});
      const auto step = [&] {
        const Tensor in = leaf(x.detach());
        const Tensor y = batch_norm(in, r.mean, r.var, {}, {}, train);
        y.backward(tanh(y.detach()));
        Tensor(x).copy_(add(y.detach(), in.grad()));
      };
      Graph graph(device, step);
      for (int i = 0; i < 6; ++i) captured ? graph.run() : step();
      CHECK(graph.captured() == (captured && device.is_cuda()));
      return std::vector{values(x), values(r.mean), values(r.var)};
    };
    CHECK(run(true) == run(false));
  }
}

TEST_CASE(
    "batch_norm: training leaves mean 0 and variance 1 in every channel, whatever the offset") {
  for (const Device device : devices()) {
    Tensor x = randn({8, 4, 9, 9}, 9, Dtype::f64);
    for (std::int64_t i = 0; i < x.numel(); ++i)
      x.data<double>()[i] = 1000 + 3 * x.data<double>()[i];
    const Tensor y = f(train)({x.to(Dtype::f32).to(device)}).to(Dtype::f64).to(cpu_device);
    for (std::int64_t c = 0; c < 4; ++c) {
      double mean = 0;
      double square = 0;
      for (std::int64_t i = 0; i < 8 * 81; ++i) {
        const double v = y.data<double>()[(i / 81 * 4 + c) * 81 + i % 81];
        mean += v / 648;
        square += v * v / 648;
      }
      CHECK(std::abs(mean) <= 3e-5);  // half an ulp of 1000, over σ = 3
      CHECK(std::abs(square - 1) <= 1e-5);
    }
  }
}

TEST_CASE("batch_norm: running statistics may be f32 beside bf16, and count as changed") {
  for (const Device device : devices()) {
    const Tensor x = randn({16, 3}, 10, Dtype::bf16, device);
    const Running r = running(3, {.device = device});
    const std::uint64_t mean = r.mean.version(), var = r.var.version();
    const Tensor y = batch_norm(x, r.mean, r.var, {}, {}, train);
    CHECK(y.dtype() == Dtype::bf16);
    CHECK(r.mean.version() > mean);
    CHECK(r.var.version() > var);
    CHECK(values(r.var)[0] != 1);
  }
}

TEST_CASE("batch_norm: no samples out of training, and no channels, are fine") {
  const auto check = [](const Shape& shape, const BatchNormOptions& options, Dtype dtype,
                        Device device) {
    const Tensor x = leaf(zeros(shape, {dtype, device})), w = leaf(ones({shape[1]}, x.options())),
                 b = leaf(w);
    const Running r = running(shape[1], x.options());
    const Tensor y = batch_norm(x, r.mean, r.var, w, b, options);
    CHECK(y.shape() == shape);
    y.backward(zeros(shape, x.options()));
    CHECK(x.grad().shape() == shape);
    check_close(w.grad(), zeros(w.shape()), exact, "dw");
    check_close(b.grad(), zeros(w.shape()), exact, "db");
  };
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16}) {
      for (const Shape& shape : {Shape{0, 3, 2, 2}, Shape{0, 64}}) check(shape, {}, dtype, device);
      for (const bool training : {true, false})
        for (const Shape& shape : {Shape{4, 0}, Shape{50, 0, 12, 33}})
          check(shape, {.training = training}, dtype, device);
    }
}

TEST_CASE("batch_norm: what cannot be normalised is refused") {
  const Running r = running(2);
  const Tensor x = zeros({1, 2});
  check_error(Kind::value, {"batch_norm: more than 1 value for each channel", "got [1,2]"},
              [&] { batch_norm(x, r.mean, r.var, {}, {}, train); });
  check_error(Kind::shape, {"batch_norm: x must be [N,C], [N,C,L] or [N,C,H,W]; got [2]"},
              [&] { batch_norm(zeros({2}), r.mean, r.var, {}, {}); });
  check_error(Kind::shape, {"batch_norm: running_var has the wrong shape; got [3]; expected [2]"},
              [&] { batch_norm(x, r.mean, zeros({3}), {}, {}); });
  check_error(Kind::value, {"batch_norm: running_var is negative; got -1 at channel 0"},
              [&] { batch_norm(x, r.mean, full({2}, -1), {}, {}); });
  check_error(Kind::shape, {"batch_norm: weight has the wrong shape"},
              [&] { batch_norm(x, r.mean, r.var, zeros({1}), {}); });
  for (const double eps : {-1.0, double(NAN)})
    check_error(Kind::value, {"batch_norm: eps out of range"},
                [&] { batch_norm(x, r.mean, r.var, {}, {}, {.eps = eps}); });
  for (const double momentum : {-.1, 1.1, double(NAN)})
    check_error(Kind::value, {"batch_norm: momentum out of range"},
                [&] { batch_norm(x, r.mean, r.var, {}, {}, {.momentum = momentum}); });
}
