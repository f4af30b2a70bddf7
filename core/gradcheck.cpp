#include "ebb/core/gradcheck.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "ebb/core/autograd.h"
#include "ebb/core/basic.h"
#include "ebb/core/error.h"
#include "ebb/core/random.h"

namespace ebb {
namespace {

using Values = std::vector<double>;
using Function = std::function<Tensor(const Tensors&)>;

double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

Values gaussian(std::int64_t n, Generator& generator) {
  return normal({n}, 0, 1, generator, {.dtype = Dtype::f64}).to_vector<double>();
}

class Check {
 public:
  Check(const Function& f, const Tensors& inputs, const GradcheckOptions& options)
      : f_(f), options_(options), generator_(options.seed) {
    for (const Tensor& x : inputs) {
      const bool floating = x.defined() && is_floating(x.dtype());
      require(!floating || x.dtype() == Dtype::f64, Kind::dtype, "gradcheck",
              "finite differences need double precision", x, "f64 inputs");
      Tensor own =
          floating ? x.detach().clone() : x;  // perturbed below: the caller's stay as they are
      if (floating && x.requires_grad()) own.set_requires_grad(true);
      inputs_.push_back(own);
    }
  }

  GradcheckResult run() {
    require(std::ranges::any_of(inputs_, [](const Tensor& x) { return x.requires_grad(); }),
            Kind::state, "gradcheck", "nothing to check", "no input that requires a gradient",
            "at least one");
    const Tensor y = value();
    require(y.dtype() == Dtype::f64, Kind::dtype, "gradcheck", "the function's value", y.dtype(),
            "f64");
    shape_ = y.shape();
    device_ = y.device();
    for (size_t i = 0; i < inputs_.size() && result_.ok; ++i) {
      if (!inputs_[i].requires_grad()) continue;
      if (inputs_[i].numel() * shape_.numel() <= options_.full_limit) {
        full_jacobian(i);
      } else {
        projections(i);
      }
    }
    if (result_.ok) properties();
    return result_;
  }

 private:
  Tensor value() const {
    const NoGrad guard;
    return f_(inputs_);
  }
  Values values() const { return value().to_vector<double>(); }

  Tensor cotangent(const Values& u) const { return tensor(u, shape_, device_); }

  // Gradients of Σ u·f(x), one an input; empty where there is none.
  std::vector<Values> analytic(const Values& u) {
    for (Tensor& x : inputs_)
      if (x.requires_grad()) x.zero_grad();
    const Tensor y = f_(inputs_);
    if (y.requires_grad()) y.backward(cotangent(u));
    return gradients();
  }

  std::vector<Values> gradients() const {
    std::vector<Values> all;
    for (const Tensor& x : inputs_) {
      const bool has = x.defined() && x.requires_grad() && x.grad().defined();
      all.push_back(has ? x.grad().to_vector<double>() : Values{});
    }
    return all;
  }

  // Writes straight into the elements, so that no version changes, and puts back the same bits.
  Values difference_along(size_t i, const Values& x, const Values& direction, double h) {
    const auto at = [&](double t) {
      Values moved = x;
      for (size_t k = 0; k < x.size(); ++k) moved[k] += t * direction[k];
      write(i, moved);
      return values();
    };
    Values forward = at(h);
    const Values backward = at(-h);
    write(i, x);
    for (size_t k = 0; k < forward.size(); ++k) forward[k] = (forward[k] - backward[k]) / (2 * h);
    return forward;
  }

  void write(size_t i, const Values& x) {
    Tensor& to = inputs_[i];
    copy_bytes(to.raw(), to.device(), x.data(), cpu_device, to.bytes());
  }

  void full_jacobian(size_t i) {
    const auto outputs = shape_.numel();
    const Values x = inputs_[i].to_vector<double>();
    std::vector<Values> rows;  // row o: d y[o] / d x, by backward
    for (std::int64_t o = 0; o < outputs; ++o) {
      Values u(static_cast<size_t>(outputs));
      u[static_cast<size_t>(o)] = 1;
      rows.push_back(analytic(u)[i]);
    }
    for (size_t k = 0; k < x.size() && result_.ok; ++k) {
      Values direction(x.size());
      direction[k] = 1;
      const double h = options_.step * std::max(1.0, std::abs(x[k]));
      const Values column = difference_along(i, x, direction, h);
      for (size_t o = 0; o < column.size(); ++o) {
        const double slope = rows[o].empty() ? without_gradient(column[o]) : rows[o][k];
        compare(slope, column[o], i, text("x[", k, "] of output ", o));
      }
    }
  }

  void projections(size_t i) {
    const Values x = inputs_[i].to_vector<double>();
    for (int p = 0; p < options_.projections && result_.ok; ++p) {
      const Values u = gaussian(shape_.numel(), generator_);
      Values v = gaussian(static_cast<std::int64_t>(x.size()), generator_);
      const double numeric = dot(u, difference_along(i, x, v, options_.step));
      const Values dx = analytic(u)[i];
      // The sum's terms cancel: it is as precise as their size, not as its own.
      double size = 1;
      for (size_t k = 0; k < dx.size(); ++k) size += std::abs(dx[k] * v[k]);
      const double slope = dx.empty() ? without_gradient(numeric) : dot(dx, v);
      compare(slope / size, numeric / size, i, text("projection ", p));
    }
  }

  // No gradient is no small one: right only where the function does not change at all.
  static double without_gradient(double numeric) {
    return numeric == 0 ? 0 : std::numeric_limits<double>::quiet_NaN();
  }

  // What must hold for any right backward, whatever the function.
  void properties() {
    const Values u = gaussian(shape_.numel(), generator_);
    const std::vector<Values> once = analytic(u);
    expect_same(analytic(u), once, "a second run of the same backward gave other bits");
    const Tensor y = f_(inputs_);
    if (!y.requires_grad()) return;
    y.backward(cotangent(u));
    expect_doubled(gradients(), once);
    for (const Values& g : analytic(Values(u.size())))
      for (const double value : g)
        if (!(value == 0)) fail("a zero cotangent gave a gradient that is not zero");
    alone(u, once);
  }

  void alone(const Values& u, const std::vector<Values>& together) {
    const Tensors all = inputs_;
    for (size_t i = 0; i < all.size(); ++i) {
      if (!all[i].defined() || !all[i].requires_grad()) continue;
      for (size_t j = 0; j < all.size(); ++j)
        inputs_[j] = j != i && all[j].defined() ? all[j].detach() : all[j];
      if (analytic(u)[i] != together[i])
        fail(text("input ", i, " alone got another gradient than together with the others"));
    }
    inputs_ = all;
  }

  void expect_same(const std::vector<Values>& a, const std::vector<Values>& b, const char* what) {
    if (a != b) fail(what);
  }

  // Not to the bit: an input used twice gets (g₁ + g₂) + g₁ + g₂, added in that order.
  void expect_doubled(const std::vector<Values>& twice, const std::vector<Values>& once) {
    constexpr double rounding = 1e-14;
    for (size_t i = 0; i < once.size(); ++i) {
      double largest = 1;
      for (const double g : once[i]) largest = std::max(largest, std::abs(g));
      for (size_t k = 0; k < once[i].size(); ++k)
        if (!(std::abs(twice[i][k] - 2 * once[i][k]) <= rounding * largest))
          fail("a second backward did not add to the gradient");
    }
  }

  template <class Where>
  void compare(double a, double n, size_t input, const Where& where) {
    const double error = std::abs(a - n);
    result_.worst = std::max(result_.worst, error / (1 + std::abs(n)));
    if (error <= options_.atol + options_.rtol * std::abs(n)) return;
    fail(text("input ", input, ", ", where, ": backward says ", a, ", differences say ", n));
  }

  template <class What>
  void fail(const What& what) {
    if (!result_.ok) return;
    result_.ok = false;
    std::ostringstream out;
    out.precision(17);
    out << "gradcheck: " << what << "; inputs";
    for (const Tensor& x : inputs_) out << ' ' << x;
    out << ", seed " << options_.seed;
    result_.report = out.str();
  }

  const Function& f_;
  GradcheckOptions options_;
  Generator generator_;
  Tensors inputs_;
  Shape shape_;
  Device device_;
  GradcheckResult result_;
};

}  // namespace

GradcheckResult gradcheck(const std::function<Tensor(const Tensors&)>& f, const Tensors& inputs,
                          GradcheckOptions options) {
  return Check(f, inputs, options).run();
}

}  // namespace ebb
