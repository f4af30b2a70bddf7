// Twins compare the CPU with itself in f64, and the golden cases are small: what goes wrong beyond
// the size of a block goes wrong in both. Here ops of larger tensors get to the same result by a
// way that has other blocks.
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

using Along = std::function<Tensor(const Tensor&, std::int64_t dim)>;

// y and dx of f, for a dy that depends on its shape alone.
struct Both {
  Tensor y, dx;

  Both(const std::function<Tensor(const Tensor&)>& f, const Tensor& x, const Tensor& dy) {
    const Tensor in = leaf(x.clone());
    y = f(in);
    y.backward(dy);
    y = y.detach();
    dx = in.grad();
  }
};

void check_same(const Both& a, const Both& b, const std::string& what) {
  check_close(a.y, b.y.to(cpu_device), {1e-13, 1e-13, true}, what);
  check_close(a.dx, b.dx.to(cpu_device), {1e-13, 1e-13, true}, what + ": dx");
}

Tensor turned(const Tensor& x) { return x.rank() == 2 ? transpose(x, 0, 1) : x; }

const Shape shapes[] = {{37, 1301}, {1301, 37}, {5003, 3}};

}  // namespace

TEST_CASE("detours: along the first dimension as along the last one of the transposed") {
  const std::pair<const char*, Along> ops[] = {
      {"softmax", [](const Tensor& x, auto dim) { return softmax(x, {.dim = dim}); }},
      {"log_softmax", [](const Tensor& x, auto dim) { return log_softmax(x, {.dim = dim}); }},
      {"l2_normalize", [](const Tensor& x, auto dim) { return l2_normalize(x, {.dim = dim}); }},
      {"l2_norm", [](const Tensor& x, auto dim) { return l2_norm(x, {.dim = {dim}}); }},
      {"sum", [](const Tensor& x, auto dim) { return sum(x, {.dim = {dim}}); }},
      {"mean", [](const Tensor& x, auto dim) { return mean(x, {.dim = {dim}}); }},
      {"max", [](const Tensor& x, auto dim) { return max(x, {.dim = {dim}}); }}};
  for (const Device device : devices())
    for (const auto& [name, f] : ops)
      for (const Shape& shape : shapes) {
        const Tensor x = randn(shape, 1, Dtype::f64, device);
        const Tensor dy = randn(f(x, 0).shape(), 2, Dtype::f64, device);
        const Both first([&](const Tensor& in) { return f(in, 0); }, x, dy);
        const Both last([&](const Tensor& in) { return turned(f(turned(in), 1)); }, x, dy);
        check_same(first, last, name);
      }
}

// Many short rows have a way of their own on the GPU.
TEST_CASE("detours: many short rows are those of some at a time") {
  using Rows = std::function<Tensor(const Tensor&)>;
  const std::pair<const char*, Rows> ops[] = {
      {"softmax", [](const Tensor& x) { return softmax(x); }},
      {"l2_normalize", [](const Tensor& x) { return l2_normalize(x); }},
      {"max", [](const Tensor& x) { return max(x, {.dim = {1}}); }}};
  const auto limit = [](Dtype dtype) {
    if (dtype == Dtype::bf16) return Tolerance{1e-6, 0x1p-7, true};
    return dtype == Dtype::f32 ? Tolerance{1e-6, 4e-6, true} : Tolerance{1e-13, 1e-13, true};
  };
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
      for (const std::int64_t n : {1, 3, 8, 12})
        for (const auto& [name, f] : ops) {
          const std::int64_t rows = (std::int64_t{1} << 20) / n + 77, some = rows / 3 + 5;
          const Tensor x = randn({rows, n}, 10, dtype, device);
          const auto parts = [&](const Tensor& in) {
            Tensors y;
            for (std::int64_t r = 0; r < rows; r += some)
              y.push_back(f(slice(in, 0, r, std::min(r + some, rows))));
            return concat(y, 0);
          };
          const Tensor dy = randn(f(x).shape(), 11, dtype, device);
          const Both all(f, x, dy), few(parts, x, dy);
          check_close(all.y, few.y.to(cpu_device), limit(dtype), name);
          check_close(all.dx, few.dx.to(cpu_device), limit(dtype), std::string(name) + ": dx");
        }
}

TEST_CASE("detours: batch_norm's channels are layer_norm's rows, and planes are rows") {
  for (const Device device : devices())
    for (const Shape& shape : shapes) {
      const Tensor x = randn(shape, 3, Dtype::f64, device),
                   dy = randn(shape, 4, Dtype::f64, device);
      const auto zero = [&] { return zeros({shape[1]}, x.options()); };
      const auto train = [&](const Tensor& in) {
        return batch_norm(in, zero(), zero(), {}, {}, {.training = true});
      };
      const Both rows(train, x, dy);
      check_same(rows, {[](const Tensor& in) { return turned(layer_norm(turned(in))); }, x, dy},
                 "batch_norm of rows");
      const auto by_planes = [&](const Tensor& in) {
        return turned(
            reshape(train(reshape(turned(in), {1, shape[1], shape[0]})), {shape[1], shape[0]}));
      };
      check_same(rows, {by_planes, x, dy}, "batch_norm of planes");
    }
}

TEST_CASE("detours: gradients of weights and biases are sums over rows") {
  for (const Device device : devices())
    for (const Shape& shape : shapes) {
      const TensorOptions there{Dtype::f64, device};
      const Tensor x = randn(shape, 5, Dtype::f64, device),
                   dy = randn(shape, 6, Dtype::f64, device);
      const Tensor w = leaf(ones({shape[1]}, there)), b = leaf(zeros({shape[1]}, there));
      const auto check = [&](const char* what, const Tensor& y, const Tensor& hat) {
        w.impl()->grad = b.impl()->grad = Tensor();
        y.backward(dy);
        check_close(w.grad(), sum(dy * hat, {.dim = {0}}).to(cpu_device), {1e-12, 1e-12, true},
                    what);
        if (b.grad().defined())
          check_close(b.grad(), sum(dy, {.dim = {0}}).to(cpu_device), {1e-12, 1e-12, true}, what);
      };
      check("layer_norm", layer_norm(x, w, b), layer_norm(x));
      check("rms_norm", rms_norm(x, w), rms_norm(x));
      const auto zero = [&] { return zeros({shape[1]}, there); };
      const BatchNormOptions train{.training = true};
      check("batch_norm", batch_norm(x, zero(), zero(), w, b, train),
            batch_norm(x, zero(), zero(), {}, {}, train));
    }
}

TEST_CASE("detours: max pools without a gradient are those with one") {
  struct Windows {
    Pair kernel;
    MaxPool2dOptions options;
  };
  std::vector<Windows> windows;
  for (const Pair stride : {Pair(1), Pair(2, 1), Pair(1, 2), Pair(2)}) {
    for (const Pair kernel : {Pair(1, 3), Pair(1, 2), Pair(2, 2), Pair(3, 2)})
      windows.push_back({kernel, {.stride = stride, .padding = Pair(kernel.h / 2, 1)}});
    windows.push_back({2, {.stride = stride, .dilation = Pair(2, 1)}});
  }
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16})
      for (const Windows& w : windows)
        for (const Shape& shape :
             {Shape{3, 1, 9, 130}, Shape{40, 1, 6, 70}, Shape{2, 1, 3, 33}, Shape{2, 1, 5, 301}}) {
          const Tensor near_one = randn(shape, 18, dtype, device);  // log: some of it NaN
          const Tensor x = log(near_one + full(shape, 2, near_one.options()));
          const Tensor y = max_pool2d(leaf(x), w.kernel, w.options).detach();
          check_close(max_pool2d(x, w.kernel, w.options), y.to(cpu_device), {0, 0}, "max_pool2d");
        }
}

TEST_CASE("detours: pools of many planes are pools of each") {
  using Pool = std::function<Tensor(const Tensor&)>;
  const Pool pools[] = {
      [](const Tensor& x) { return max_pool2d(x, 3, {.stride = 2, .padding = 1}); },
      [](const Tensor& x) { return avg_pool2d(x, 3, {.stride = 2, .padding = 1}); },
      [](const Tensor& x) {
        return avg_pool2d(x, {4, 5}, {.stride = 3, .ceil_mode = true, .count_include_pad = false});
      }};
  for (const Device device : devices())
    for (const Pool& pool : pools)
      for (const Shape& shape : {Shape{19, 1, 9, 11}, Shape{33, 1, 5, 6}, Shape{8, 1, 23, 23}}) {
        const Tensor x = randn(shape, 8, Dtype::f64, device);
        const Tensor dy = randn(pool(x).shape(), 9, Dtype::f64, device);
        const auto by_plane = [&](const Tensor& in) {
          Tensors planes;
          for (std::int64_t i = 0; i < shape[0]; ++i)
            planes.push_back(pool(slice(in, 0, i, i + 1)));
          return concat(planes, 0);
        };
        check_same({pool, x, dy}, {by_plane, x, dy}, "pool");
      }
}

namespace {

struct Windows {
  Shape x, w;
  Conv2dOptions options;
};
using Convolution = std::function<Tensor(const Tensor& x, const Tensor& w, const Tensor& b)>;

// y, dx, dw and db of both must be the same.
void check_convolutions(const Convolution& f, const Convolution& g, const Windows& sizes,
                        Device device) {
  const auto results = [&](const Convolution& convolution) {
    const Tensor x = leaf(randn(sizes.x, 12, Dtype::f64, device)),
                 w = leaf(randn(sizes.w, 13, Dtype::f64, device)),
                 b = leaf(randn({sizes.w[0]}, 14, Dtype::f64, device));
    const Tensor y = convolution(x, w, b);
    y.backward(randn(y.shape(), 15, Dtype::f64, device));
    return Tensors{y.detach(), x.grad(), w.grad(), b.grad()};
  };
  const Tensors one = results(f), other = results(g);
  const char* const names[] = {"y", "dx", "dw", "db"};
  for (size_t i = 0; i < 4; ++i)
    check_close(one[i], other[i].to(cpu_device), {1e-13, 1e-13, true}, names[i]);
}

}  // namespace

TEST_CASE("detours: a convolution of channels by themselves is one of each channel") {
  const Windows windows[] = {
      {{2, 19, 7, 7}, {19, 1, 3, 3}, {.padding = 1}},
      {{3, 8, 9, 12}, {8, 1, 5, 4}, {.stride = Pair(2, 3), .padding = Pair(2, 0)}},
      {{1, 37, 11, 6}, {37, 1, 2, 3}, {.stride = 2, .padding = 3, .dilation = Pair(2, 1)}},
      {{2, 16, 1, 90}, {16, 1, 1, 7}, {.padding = Pair(0, 3), .dilation = Pair(1, 2)}}};
  for (const Device device : devices())
    for (const Windows& sizes : windows) {
      const auto together = [&](const Tensor& x, const Tensor& w, const Tensor& b) {
        Conv2dOptions options = sizes.options;
        options.groups = sizes.x[1];
        return conv2d(x, w, b, options);
      };
      const auto apart = [&](const Tensor& x, const Tensor& w, const Tensor& b) {
        Tensors y;
        for (std::int64_t c = 0; c < sizes.x[1]; ++c)
          y.push_back(conv2d(slice(x, 1, c, c + 1), slice(w, 0, c, c + 1), slice(b, 0, c, c + 1),
                             sizes.options));
        return concat(y, 1);
      };
      check_convolutions(together, apart, sizes, device);
    }
}

TEST_CASE("detours: a convolution of many images is one of each, or of two") {
  const Windows windows[] = {
      {{5, 70, 7, 9}, {19, 70, 1, 1}, {}},
      {{3, 65, 20, 21}, {16, 65, 1, 1}, {}},
      {{3, 70, 7, 9}, {32, 70, 1, 1}, {.stride = Pair(2, 3)}},
      {{3, 9, 4, 5}, {49, 9, 3, 3}, {.padding = 1}},
      {{5, 8, 13, 12}, {96, 8, 4, 2}, {.stride = Pair(2, 3), .padding = Pair(3, 2)}},
      {{3, 7, 4, 5}, {113, 7, 3, 4}, {.padding = Pair(4, 5), .dilation = Pair(3, 2)}},
      {{3, 40, 1, 50}, {128, 40, 1, 3}, {.padding = Pair(0, 1)}},
      {{35, 8, 4, 5}, {8, 1, 3, 3}, {.groups = 8}},
      {{2, 5, 1, 700}, {9, 5, 1, 90}, {.stride = Pair(1, 30)}},
      {{3, 70, 17, 16}, {1, 70, 1, 1}, {}},
      // Small images side by side, and those that the kernel covers.
      {{37, 20, 4, 4}, {18, 20, 3, 3}, {.padding = 1}},
      {{130, 9, 5, 7}, {37, 9, 2, 3}, {.stride = 2, .padding = 1}},
      {{17, 45, 3, 3}, {70, 45, 2, 2}, {.dilation = 2}},
      {{16, 8, 8, 3}, {5, 8, 3, 3}, {.stride = Pair(3, 1), .padding = Pair(2, 1)}},
      {{29, 20, 4, 5}, {7, 20, 4, 5}, {}},
      {{6, 3, 1, 1}, {4, 3, 1, 1}, {}}};
  for (const Device device : devices())
    for (const Windows& sizes : windows) {
      const auto together = [&](const Tensor& x, const Tensor& w, const Tensor& b) {
        return conv2d(x, w, b, sizes.options);
      };
      const auto apart = [&](const Tensor& x, const Tensor& w, const Tensor& b) {
        Tensors y;
        for (std::int64_t n = 0; n < sizes.x[0]; n += 2)
          y.push_back(conv2d(slice(x, 0, n, n + 2), w, b, sizes.options));
        return concat(y, 0);
      };
      check_convolutions(together, apart, sizes, device);
    }
}
