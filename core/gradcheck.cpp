#include "ebb/core/gradcheck.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "ebb/core/autograd.h"
#include "ebb/core/basic.h"
#include "ebb/core/error.h"
#include "ebb/core/random.h"
#include "ebb/core/safetensors.h"

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

// The operation that made y of leaves alone; empty when there were several.
std::string only_op(const Tensor& y) {
  if (!y.defined() || !y.node()) return {};
  const auto is_result = [](const Edge& edge) { return edge.node != nullptr; };
  return std::ranges::any_of(y.node()->inputs, is_result) ? "" : y.node()->op;
}

Values unit(std::int64_t n, size_t at) {
  Values u(static_cast<size_t>(n));
  u[at] = 1;
  return u;
}

class Check {
 public:
  Check(const Function& f, const Tensors& inputs, GradcheckOptions options)
      : f_(f), options_(std::move(options)), generator_(options_.seed) {
    require(options_.names.empty() || options_.names.size() == inputs.size(), Kind::value,
            "gradcheck", "a name for each input", options_.names.size(), inputs.size());
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
    const WithGrad recording;  // the caller may be in a NoGrad
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
    if (options_.op.empty()) options_.op = only_op(y);
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

  // f(x + t · direction) − f(x − t · direction). Writes straight into the elements, so that no
  // version changes, and puts back the same bits.
  Values difference(size_t i, const Values& x, const Values& direction, double t) {
    const auto at = [&](double t) {
      Values moved = x;
      for (size_t k = 0; k < x.size(); ++k) moved[k] += t * direction[k];
      write(i, moved);
      return values();
    };
    Values forward = at(t);
    const Values backward = at(-t);
    write(i, x);
    for (size_t k = 0; k < forward.size(); ++k) forward[k] -= backward[k];
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
    for (size_t o = 0; o < static_cast<size_t>(outputs); ++o)
      rows.push_back(analytic(unit(outputs, o))[i]);
    for (size_t k = 0; k < x.size() && result_.ok; ++k) {
      const double h = options_.step * std::max(1.0, std::abs(x[k]));
      Values column = difference(i, x, unit(inputs_[i].numel(), k), h);
      for (double& slope : column) slope /= 2 * h;
      for (size_t o = 0; o < column.size() && result_.ok; ++o) {
        const double slope = rows[o].empty() ? without_gradient(column[o]) : rows[o][k];
        compare(slope, column[o], i, text("x[", k, "] of output ", o), unit(outputs, o));
      }
    }
  }

  // By four points, whose error is of fourth order, with a step that suits them: a direction has
  // components of several steps, and what they err by adds up.
  void projections(size_t i) {
    const double h = 10 * options_.step;
    const Values x = inputs_[i].to_vector<double>();
    for (int p = 0; p < options_.projections && result_.ok; ++p) {
      const Values u = gaussian(shape_.numel(), generator_);
      const Values v = gaussian(static_cast<std::int64_t>(x.size()), generator_);
      const double near = dot(u, difference(i, x, v, h)), far = dot(u, difference(i, x, v, 2 * h));
      const double numeric = (8 * near - far) / (12 * h);
      const Values dx = analytic(u)[i];
      const double slope = dx.empty() ? without_gradient(numeric) : dot(dx, v);
      compare(slope, numeric, i, text("projection ", p), u);
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
    if (analytic(u) != once) fail("a second run of the same backward gave other bits", u);
    const Tensor y = f_(inputs_);
    if (!y.requires_grad()) return;
    y.backward(cotangent(u));
    for (size_t i = 0; i < once.size(); ++i)
      if (!is_sum(gradients()[i], once[i], once[i]))
        fail(text("a second backward did not add to the gradient of input ", i), u);
    const Values zero(u.size());
    for (const Values& g : analytic(zero))
      for (const double value : g)
        if (!(value == 0)) fail("a zero cotangent gave a gradient that is not zero", zero);
    alone(u, once);
    in_two_places(u);
  }

  void alone(const Values& u, const std::vector<Values>& together) {
    const Tensors all = inputs_;
    for (size_t i = 0; i < all.size(); ++i) {
      if (!all[i].defined() || !all[i].requires_grad()) continue;
      for (size_t j = 0; j < all.size(); ++j)
        inputs_[j] = j != i && all[j].defined() ? all[j].detach() : all[j];
      if (analytic(u)[i] != together[i])
        fail(text("input ", i, " alone got another gradient than together with the others"), u);
    }
    inputs_ = all;
  }

  void in_two_places(const Values& u) {
    const Tensors all = inputs_;
    const auto alike = [](const Tensor& a, const Tensor& b) {
      return a.requires_grad() && b.requires_grad() && a.shape() == b.shape();
    };
    for (size_t i = 0; i < all.size(); ++i) {
      for (size_t j = i + 1; j < all.size(); ++j) {
        if (!alike(all[i], all[j])) continue;
        inputs_[j] = all[i].detach().clone().set_requires_grad(true);
        const std::vector<Values> apart = analytic(u);
        inputs_[j] = all[i];
        if (!is_sum(analytic(u)[i], apart[i], apart[j]))
          fail(text("one tensor as inputs ", i, " and ", j, " got no sum of gradients"), u);
        inputs_ = all;
      }
    }
  }

  // Not to the bit: the terms may be added in another order.
  static bool is_sum(const Values& sum, const Values& a, const Values& b) {
    constexpr double rounding = 1e-14;
    double largest = 1;
    for (const Values* g : {&a, &b})
      for (const double value : *g) largest = std::max(largest, std::abs(value));
    const auto at = [](const Values& g, size_t k) { return g.empty() ? 0 : g[k]; };
    for (size_t k = 0; k < std::max(a.size(), b.size()); ++k) {
      const double expected = at(a, k) + at(b, k);
      const bool both_nan = std::isnan(expected) && std::isnan(at(sum, k));
      if (!(std::abs(at(sum, k) - expected) <= rounding * largest) && !both_nan) return false;
    }
    return true;
  }

  template <class Where>
  void compare(double a, double n, size_t input, const Where& where, const Values& u) {
    const double error = std::abs(a - n), share = error / (1 + std::abs(n));
    if (!(share <= result_.worst) && !std::isnan(result_.worst)) result_.worst = share;
    if (error <= options_.atol + options_.rtol * std::abs(n)) return;
    fail(text("input ", input, ", ", where, ": backward says ", a,
              std::isnan(a) ? " or nothing" : "", ", differences say ", n),
         u);
  }

  template <class What>
  void fail(const What& what, const Values& u) {
    if (!result_.ok) return;
    result_.ok = false;
    std::ostringstream out;
    out.precision(17);
    out << "gradcheck: " << options_.op << (options_.op.empty() ? "" : ": ") << what << "; inputs";
    for (const Tensor& x : inputs_) out << ' ' << x;
    out << ", seed " << options_.seed;
    if (!options_.file.empty()) out << "; " << written_case(u);
    result_.report = out.str();
  }

  // What opcase replays.
  std::string written_case(const Values& u) const {
    Checkpoint c;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const std::string name = options_.names.empty() ? std::to_string(i) : options_.names[i];
      if (inputs_[i].defined()) c.tensors.emplace_back("in." + name, inputs_[i].detach());
    }
    c.tensors.emplace_back("gout.0", cotangent(u));
    c.metadata = {{"op", options_.op}, {"attrs", options_.attributes}};
    try {
      save_safetensors(options_.file, c);
      return "opcase --gradcheck " + options_.file;
    } catch (const Error& error) {
      return error.what();
    }
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
  return Check(f, inputs, std::move(options)).run();
}

}  // namespace ebb
