#include "ebb/core/gradcheck.h"

#include <cmath>
#include <filesystem>

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

using Formula = std::function<double(double)>;

// y = f(x), and what it claims to be its gradient.
Tensor apply(const Tensor& x, const Formula& f) {
  std::vector<double> v = values(x);
  for (double& e : v) e = f(e);
  return tensor(v, x.shape(), x.device());
}
Tensor op(const Tensor& x, const Formula& f, std::function<double(double x, double dy)> backward) {
  return record("op", apply(x, f), {x}, [x = Saved(x), backward](const Tensor& dy) -> Gradients {
    std::vector<double> dx = values(x);
    const std::vector<double> upstream = values(dy);
    for (size_t i = 0; i < dx.size(); ++i) dx[i] = backward(dx[i], upstream[i]);
    return {tensor(dx, dy.shape(), dy.device())};
  });
}
double cube(double x) { return x * x * x; }

GradcheckResult check(const Shape& shape, std::function<double(double x, double dy)> backward,
                      const Formula& f = cube) {
  return gradcheck([&](const Tensors& in) { return op(in[0], f, backward); },
                   {leaf(randn(shape, 1))});
}

}  // namespace

TEST_CASE("gradcheck: a right backward passes, in full and by projections") {
  for (const Shape& shape : {Shape{3, 4}, Shape{}, Shape{0}, Shape{1}, Shape{100}}) {
    const GradcheckResult r = check(shape, [](double x, double dy) { return 3 * x * x * dy; });
    CHECK_MESSAGE(r.ok, r.report);
    CHECK(r.worst <= 1e-8);
  }
}

TEST_CASE("gradcheck: works within NoGrad, and says when backward gives nothing") {
  const NoGrad guard;
  CHECK(check({3}, [](double x, double dy) { return 3 * x * x * dy; }));
  const GradcheckResult r =
      gradcheck([](const Tensors& in) { return apply(in[0], cube); }, {leaf(randn({3}, 1))});
  CHECK(r.report.find("backward says nan or nothing, differences say ") != std::string::npos);
}

TEST_CASE("gradcheck: planted mistakes are caught, in full and by projections") {
  for (const Shape& shape : {Shape{3, 4}, Shape{100}}) {
    const auto caught = [&](std::function<double(double, double)> backward) {
      const GradcheckResult r = check(shape, std::move(backward));
      CHECK(!r.ok);
      CHECK(r.report.find("gradcheck: ") == 0);
    };
    caught([](double x, double dy) { return 3.0001 * x * x * dy; });          // a constant
    caught([](double x, double dy) { return 3.000001 * x * x * dy; });        // by 3e-7
    caught([](double x, double) { return 3 * x * x; });                       // no upstream factor
    caught([](double x, double dy) { return (3 * x * x - 1e-3 * x) * dy; });  // a term
    caught([](double x, double dy) { return -3 * x * x * dy; });              // the sign
    caught([](double, double) { return 0.0; });                               // nothing at all
    caught([](double x, double dy) { return x > 1 ? NAN : 3 * x * x * dy; });
    caught([](double x, double dy) { return 3 * x * x * dy + 1e-6; });  // not linear in dy
    CHECK(std::isnan(check(shape, [](double, double) { return NAN; }).worst));
    int calls = 0;
    caught([&](double x, double dy) { return 3 * x * x * dy * (1 + 1e-15 * (++calls % 7)); });
  }
}

TEST_CASE("gradcheck: a gradient that depends on who else asks for one is caught") {
  const GradcheckResult r = gradcheck(
      [](const Tensors& in) {
        const bool both = in[0].requires_grad() && in[1].requires_grad();
        std::vector<double> sum = values(in[0]);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += values(in[1])[i];
        return record("sum", tensor(sum, in[0].shape()), {in[0], in[1]},
                      [both](const Tensor& dy) -> Gradients {
                        return {dy, both ? dy : Tensor()};
                      });
      },
      {leaf(randn({3}, 1)), leaf(randn({3}, 2))});
  CHECK(!r.ok);
  CHECK(r.report.find("input 1 alone") != std::string::npos);
}

TEST_CASE("gradcheck: a gradient that is lost where one tensor is two inputs is caught") {
  const auto product = [](bool careless) {
    return [careless](const Tensors& in) {
      const bool lost = careless && in[0].same_as(in[1]);
      return record("product", in[0].detach() * in[1].detach(), {in[0], in[1]},
                    [lost, a = in[0].detach(), b = in[1].detach()](const Tensor& dy) -> Gradients {
                      return {dy * b, lost ? Tensor() : dy * a};
                    });
    };
  };
  const Tensors inputs = {leaf(randn({3}, 1)), leaf(randn({3}, 2))};
  CHECK(gradcheck(product(false), inputs).ok);
  const GradcheckResult r = gradcheck(product(true), inputs);
  CHECK(!r.ok);
  CHECK(r.report.find("gradcheck: product: one tensor as inputs 0 and 1") == 0);
}

TEST_CASE("gradcheck: a missing gradient, and one lost by detaching, are caught") {
  const Tensor x = leaf(randn({3}, 1));
  CHECK(!gradcheck([](const Tensors& in) { return apply(in[0], cube); }, {x}).ok);
  CHECK(!gradcheck(
             [](const Tensors& in) {
               return record("none", apply(in[0], cube), {in[0]},
                             [](const Tensor&) { return Gradients{{}}; });
             },
             {x})
             .ok);
}

TEST_CASE("gradcheck: no gradient is not a gradient of nearly zero") {
  for (const Shape& shape : {Shape{3}, Shape{70}})  // in full, by projections
    for (const double slope : {0., 1e-9}) {
      const auto f = [&](const Tensors& in) {
        std::vector<double> y = values(in[0]);
        for (double& v : y) v *= slope;
        return record("none", tensor(y, shape), {in[0]},
                      [](const Tensor&) { return Gradients{{}}; });
      };
      CHECK(gradcheck(f, {leaf(randn(shape, 1))}).ok == (slope == 0));
    }
}

TEST_CASE("gradcheck: the report names input, element and both values") {
  const GradcheckResult r = check({2}, [](double x, double dy) { return 4 * x * x * dy; });
  for (const char* part :
       {"input 0", "x[0] of output 0", "backward says", "differences say", "f64 [2] cpu", "seed 0"})
    CHECK_MESSAGE(r.report.find(part) != std::string::npos, r.report);
}

TEST_CASE("gradcheck: a failure leaves its case behind, a success nothing") {
  const std::string path =
      std::filesystem::temp_directory_path() / "ebb_test_gradcheck.safetensors";
  std::filesystem::remove(path);
  const Tensor x = leaf(randn({2}, 1)), labels = tensor<std::int32_t>({3, 4}, {2});
  const auto check = [&](double factor, const Tensors& inputs, GradcheckOptions options) {
    options.file = path;
    return gradcheck(
        [&](const Tensors& in) {
          return op(in[0], cube, [factor](double x, double dy) { return factor * x * x * dy; });
        },
        inputs, options);
  };
  CHECK(check(3, {x}, {}).ok);
  CHECK(!std::filesystem::exists(path));
  CHECK(check(4, {x, {}, labels}, {}).report.find("; opcase --gradcheck " + path) !=
        std::string::npos);
  Checkpoint written = load_safetensors(path);
  CHECK(written.metadata == std::map<std::string, std::string>{{"op", "op"}, {"attrs", "{}"}});
  REQUIRE(written.tensors.size() == 3);
  CHECK(values(*written.find("in.0")) == values(x));
  CHECK(values(*written.find("in.2")) == values(labels));
  CHECK(values(*written.find("gout.0")) == std::vector<double>{1, 0});
  CHECK(!check(4, {x}, {.op = "cube", .attributes = R"({"n":3})", .names = {"x"}}).ok);
  written = load_safetensors(path);
  CHECK(written.metadata.at("op") == "cube");
  CHECK(written.metadata.at("attrs") == R"({"n":3})");
  CHECK(written.find("in.x"));
  std::filesystem::remove(path);
  GradcheckOptions nowhere{.file = "/proc/nowhere"};
  const auto wrong = [](const Tensors& in) {
    return op(in[0], cube, [](double, double) { return 0.0; });
  };
  const GradcheckResult r = gradcheck(wrong, {x}, nowhere);
  CHECK(r.report.find("backward says") < r.report.find("/proc/nowhere"));
  check_error(Kind::value, {"gradcheck: a name for each input"}, [&] {
    check(3, {x}, {.names = {"a", "b"}});
  });
}

TEST_CASE("gradcheck: inputs stay as they were; f32, and nothing to check, are refused") {
  const Tensor x = leaf(randn({5}, 1));
  const auto before = values(x);
  const auto f = [](const Tensors& in) {
    return op(in[0], cube, [](double x, double dy) { return 3 * x * x * dy; });
  };
  CHECK(gradcheck(f, {x}).ok);
  CHECK(values(x) == before);
  CHECK(!x.grad().defined());
  check_error(Kind::dtype, {"gradcheck", "f32"}, [&] { gradcheck(f, {leaf(ones({2}))}); });
  check_error(Kind::state, {"nothing to check"}, [&] { gradcheck(f, {randn({2}, 1)}); });
}
