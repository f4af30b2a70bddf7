#include <omp.h>

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// y and the gradients, with so many threads.
std::vector<std::vector<double>> run(const Function& f, const std::vector<Shape>& shapes,
                                     int threads) {
  omp_set_num_threads(threads);
  Tensors in;
  for (const Shape& shape : shapes) in.push_back(leaf(randn(shape, in.size() + 1, Dtype::f32)));
  const Tensor y = f(in);
  y.backward(randn(y.shape(), 9, Dtype::f32));
  std::vector<std::vector<double>> all{values(y)};
  for (const Tensor& x : in) all.push_back(values(x.grad()));
  return all;
}

void check_threads(const char* name, const Function& f, const std::vector<Shape>& shapes) {
  INFO(name);
  const int most = omp_get_max_threads();
  const auto one = run(f, shapes, 1);
  for (const int threads : {2, 3, 7}) CHECK(run(f, shapes, threads) == one);
  omp_set_num_threads(most);
}

Function norm(const char* op) {
  const bool centred = std::string(op) == "layer_norm";
  return [=](const Tensors& in) {
    return centred ? layer_norm(in[0], in[1], in[2]) : rms_norm(in[0], in[1]);
  };
}

}  // namespace

TEST_CASE("threads: the same bits from norms on any number of them") {
  for (const Shape& s : {Shape{3, 40001}, Shape{150, 20001}, Shape{777, 333}, Shape{20000, 3}}) {
    check_threads("layer_norm", norm("layer_norm"), {s, {s[1]}, {s[1]}});
    check_threads("rms_norm", norm("rms_norm"), {s, {s[1]}});
  }
  for (const Shape& s : {Shape{700, 77}, Shape{9, 33, 7, 7}}) {
    const auto f = [&](const Tensors& in) {
      const Shape channels{s[1]};
      return batch_norm(in[0], zeros(channels), ones(channels), in[1], in[2], {.training = true});
    };
    check_threads("batch_norm", f, {s, {s[1]}, {s[1]}});
  }
}

TEST_CASE("threads: the same bits from reductions on any number of them") {
  for (const Shape& s : {Shape{5001, 9}, Shape{3, 150001}, Shape{401, 203}, Shape{7, 90, 301}})
    for (const std::int64_t dim : {0, 1}) {
      check_threads("sum", [=](const Tensors& in) { return sum(in[0], {.dim = {dim}}); }, {s});
      check_threads("max", [=](const Tensors& in) { return max(in[0], {.dim = {dim}}); }, {s});
      check_threads("softmax", [=](const Tensors& in) { return softmax(in[0], {dim}); }, {s});
      check_threads("log_softmax", [=](const Tensors& in) { return log_softmax(in[0], {dim}); },
                    {s});
    }
}

TEST_CASE("threads: the same bits from products and windows on any number of them") {
  check_threads("row", [](const Tensors& in) { return linear(in[0], in[1], in[2]); },
                {{1, 9001}, {33, 9001}, {33}});
  check_threads("column", [](const Tensors& in) { return matmul(in[0], in[1]); },
                {{2, 301, 501}, {2, 501, 1}});
  check_threads("dots", [](const Tensors& in) { return matmul(in[0], in[1]); },
                {{5, 90001}, {90001, 3}});
  struct Conv {
    Shape x, w;
    Conv2dOptions options;
  };
  for (const Conv& c :
       {Conv{{3, 40, 7, 7}, {200, 40, 3, 3}, {.padding = 1}},
        Conv{{3, 30, 15, 15}, {30, 1, 3, 3}, {.stride = 2, .padding = 1, .groups = 30}},
        Conv{{2, 3, 65, 65}, {20, 3, 8, 8}, {.stride = 8}},
        Conv{{90, 40, 4, 4}, {70, 40, 3, 3}, {.padding = 1}},
        Conv{{90, 40, 3, 3}, {70, 40, 3, 3}, {}}}) {
    const auto f = [&](const Tensors& in) { return conv2d(in[0], in[1], in[2], c.options); };
    check_threads("conv2d", f, {c.x, c.w, {c.w[0]}});
  }
  for (const std::int64_t kernel : {2, 3, 7}) {
    const Shape images{50, 9, 31, 33};
    check_threads("max_pool2d", [=](const Tensors& in) { return max_pool2d(in[0], kernel); },
                  {images});
    check_threads("avg_pool2d", [=](const Tensors& in) { return avg_pool2d(in[0], kernel); },
                  {images});
  }
}
