// Short rows are worked on together on the CPU, as columns side by side: a row among others must
// give what it gives alone. The GPU's have their own ways, and their own tests.
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// The same terms in another order.
TwinTolerance reordered(Dtype dtype) {
  if (dtype == Dtype::f32) return {row, row_gradient};
  return {{0, 1e-13, true}, {0, 1e-12, true}};
}

constexpr std::array dtypes{Dtype::f32, Dtype::f64};

Tensor row_of(const Tensor& x, std::int64_t r) { return slice(x, 0, r, r + 1); }

// f of x [rows, …] and more inputs: y, and gradients, of all rows at once and of one after another.
void check_rows_alone(const Function& f, const Tensor& x, const Tensors& more = {}) {
  for (const Dtype dtype : dtypes) {
    const auto start = [&] {
      Tensors in{leaf(x.to(dtype))};
      for (const Tensor& t : more) in.push_back(leaf(t.to(dtype)));
      return in;
    };
    Tensors together = start(), alone = start();
    const Tensor y = f(together), dy = randn(y.shape(), 98, dtype);
    y.backward(dy);
    for (std::int64_t r = 0; r < x.size(0); ++r) {
      Tensors in = alone;
      in[0] = row_of(alone[0], r);
      const Tensor one = f(in);
      check_close(row_of(y, r), one, reordered(dtype).value, "y");
      one.backward(row_of(dy, r));
    }
    for (size_t i = 0; i < alone.size(); ++i)
      check_close(together[i].grad(), alone[i].grad(), reordered(dtype).gradient, "gradient");
  }
}

}  // namespace

TEST_CASE("short rows: a row among others gives what it gives alone") {
  const std::vector<Function> ops = {
      [](const Tensors& in) { return softmax(in[0], {1}); },
      [](const Tensors& in) { return log_softmax(in[0], {1}); },
      [](const Tensors& in) { return l2_normalize(in[0], {1}); },
      [](const Tensors& in) { return sum(in[0], {.dim = {1}}); },
      [](const Tensors& in) { return mean(in[0], {.dim = {1}}); },
      [](const Tensors& in) { return max(in[0], {.dim = {1}}); },
      [](const Tensors& in) { return l2_norm(in[0], {.dim = {1}}); },
  };
  for (const Function& f : ops) {
    for (const std::int64_t n : {1, 2, 3, 7, 8, 9, 15, 16, 17, 33})
      check_rows_alone(f, randn({37, n}, std::uint64_t(n)));
    for (const Shape& shape :
         {Shape{19, 10, 3}, Shape{19, 1, 5}, Shape{19, 9, 7}, Shape{19, 13, 5}})
      check_rows_alone(f, randn(shape, 5));
  }
}

TEST_CASE("short rows: a normalised row among others gives what it gives alone") {
  for (const std::int64_t n : {1, 2, 3, 7, 8, 9, 15, 16, 17, 33}) {
    const Tensor x = randn({150, n}, 3), w = randn({n}, 4), b = randn({n}, 5);
    check_rows_alone([](const Tensors& in) { return layer_norm(in[0], in[1], in[2]); }, x, {w, b});
    check_rows_alone([](const Tensors& in) { return rms_norm(in[0], in[1]); }, x, {w});
    check_rows_alone([](const Tensors& in) { return rms_norm(in[0]); }, x);
  }
}

TEST_CASE("short rows: planes of any size are normalised as their elements are as rows") {
  const auto norm = [](const Tensors& in, const Tensor& x, bool training) {
    const std::int64_t channels = in[1].size(0);
    Tensor m = ones({channels}, in[1].options()), v = ones({channels}, in[1].options());
    return batch_norm(x, m, v, in[1], in[2], {.training = training});
  };
  const auto check = [&](const Shape& shape, bool training, Dtype dtype) {
    const std::int64_t samples = shape[0], channels = shape[1], plane = shape[2];
    const auto start = [&] {
      Tensors in;
      for (const Shape& s : {shape, Shape{channels}, Shape{channels}})
        in.push_back(leaf(randn(s, 1 + in.size(), dtype)));
      return in;
    };
    const Tensors in = start(), as_rows = start();
    const Tensor y = norm(in, in[0], training);
    const std::array<std::int64_t, 3> swap{0, 2, 1};
    const Tensor x = reshape(permute(as_rows[0], swap), {samples * plane, channels});
    const Tensor expected =
        permute(reshape(norm(as_rows, x, training), {samples, plane, channels}), swap);
    const Tensor dy = randn(shape, 97, dtype);
    y.backward(dy);
    expected.backward(dy);
    const TwinTolerance tolerance = reordered(dtype);
    check_close(y, expected, tolerance.value, "y");
    for (size_t i = 0; i < in.size(); ++i)
      check_close(in[i].grad(), as_rows[i].grad(), tolerance.gradient, "gradient");
  };
  for (const Dtype dtype : dtypes)
    for (const std::int64_t plane : {1, 2, 3, 4, 9, 15, 16, 17, 49})
      for (const bool training : {true, false})
        for (const Shape& shape : {Shape{5, 3, plane}, Shape{4, 70, plane}, Shape{40, 1, plane}})
          check(shape, training, dtype);
}

TEST_CASE("short rows: sums and maxima of rows of any length count every element once") {
  for (std::int64_t n = 1; n <= 140; ++n) {
    const std::int64_t rows = 5;
    std::vector<float> x(static_cast<size_t>(rows * n));
    std::vector<double> sums(5), maxima(5), places(x.size());
    for (std::int64_t r = 0; r < rows; ++r) {
      std::int64_t at = 0;
      const auto of = [&](std::int64_t k) -> float& { return x[static_cast<size_t>(r * n + k)]; };
      for (std::int64_t k = 0; k < n; ++k) {
        of(k) = float((k * 37 + r * 11) % 23 - 30);  // whole, all below 0, with equals
        if (r == 3 && k == n / 2) of(k) = NAN;
        sums[size_t(r)] += double(of(k));
        if (of(k) > of(at) || (of(k) != of(k) && of(at) == of(at))) at = k;
      }
      maxima[size_t(r)] = double(of(at));
      places[size_t(r * n + at)] = 1;
    }
    const Tensor in = leaf(tensor<float>(x, {rows, n}));
    const auto same = [](const Tensor& y, const std::vector<double>& expected) {
      const std::vector<double> v = values(y);
      REQUIRE(v.size() == expected.size());
      for (size_t i = 0; i < v.size(); ++i)
        CHECK((v[i] == expected[i] || (std::isnan(v[i]) && std::isnan(expected[i]))));
    };
    same(sum(in, {.dim = {1}}), sums);
    same(max(in.detach(), {.dim = {1}}), maxima);
    const Tensor y = max(in, {.dim = {1}});
    same(y, maxima);
    y.backward(ones({rows}, {Dtype::f32}));
    same(in.grad(), places);
  }
}
