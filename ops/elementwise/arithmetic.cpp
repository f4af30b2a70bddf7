#include "ebb/ops/elementwise/arithmetic.h"

#include "ebb/ops/elementwise/broadcast.h"
#include "ebb/ops/map.h"

namespace ebb {
namespace {

// Not recorded: the forward of all four, and steps of their gradients.
Tensor calculate(const char* op, Sign sign, const Tensor& a, const Tensor& b) {
  require_floating(op, "a", a);
  require_alike(op, "a", a, "b", b);
  Tensor y = empty(broadcast(op, a.shape(), b.shape()), a.options());
  run_as_is<cpu::arithmetic, gpu::arithmetic>(a.device(), sign, a, b, y);
  return y;
}

Tensor calculate(const char* op, Sign sign, const Tensor& x, double s, bool s_first = false) {
  require_floating(op, "x", x);
  Tensor y = empty_like(x);
  run_as_is<cpu::arithmetic_with_number, gpu::arithmetic_with_number>(x.device(), sign, x, s,
                                                                      s_first, y);
  return y;
}

Tensor negative(const Tensor& x) { return calculate("neg", Sign::mul, x, -1); }

// What a closure needs to know of an operand besides its elements.
struct Operand {
  Shape shape;
  bool needed;
  explicit Operand(const Tensor& x) : shape(x.shape()), needed(x.requires_grad()) {}
};

bool both_equal(const Operand& a, const Operand& b) {
  return a.needed && b.needed && a.shape == b.shape;
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) {
  const Tensor y = calculate("add", Sign::add, a, b);
  return record("add", y, {a, b}, [a = Operand(a), b = Operand(b)](const Tensor& dy) -> Gradients {
    return {a.needed ? sum_to(dy, a.shape) : Tensor(), b.needed ? sum_to(dy, b.shape) : Tensor()};
  });
}

Tensor sub(const Tensor& a, const Tensor& b) {
  const Tensor y = calculate("sub", Sign::sub, a, b);
  return record("sub", y, {a, b}, [a = Operand(a), b = Operand(b)](const Tensor& dy) -> Gradients {
    return {a.needed ? sum_to(dy, a.shape) : Tensor(),
            b.needed ? negative(sum_to(dy, b.shape)) : Tensor()};
  });
}

Tensor mul(const Tensor& a, const Tensor& b) {
  const Tensor y = calculate("mul", Sign::mul, a, b);
  const auto backward = [a = Saved(a), b = Saved(b), of_a = Operand(a),
                         of_b = Operand(b)](const Tensor& dy) -> Gradients {
    Tensor da;
    Tensor db;
    if (both_equal(of_a, of_b)) {
      da = empty_like(dy);
      db = empty_like(dy);
      run_as_is<cpu::mul_backward, gpu::mul_backward>(dy.device(), a.get(), b.get(), dy, da, db);
      return {da, db};
    }
    if (of_a.needed) da = sum_to(calculate("mul", Sign::mul, dy, b), of_a.shape);
    if (of_b.needed) db = sum_to(calculate("mul", Sign::mul, dy, a), of_b.shape);
    return {da, db};
  };
  return record("mul", y, {a, b}, backward);
}

Tensor div(const Tensor& a, const Tensor& b) {
  const Tensor y = calculate("div", Sign::div, a, b);
  const auto backward = [y = Saved(y), b = Saved(b), of_a = Operand(a),
                         of_b = Operand(b)](const Tensor& dy) -> Gradients {
    Tensor da;
    Tensor db;
    if (both_equal(of_a, of_b)) {
      da = empty_like(dy);
      db = empty_like(dy);
      run_as_is<cpu::div_backward, gpu::div_backward>(dy.device(), y.get(), b.get(), dy, da, db);
      return {da, db};
    }
    const Tensor q = calculate("div", Sign::div, dy, b);
    if (of_a.needed) da = sum_to(q, of_a.shape);
    if (of_b.needed) db = negative(sum_to(calculate("div", Sign::mul, q, y), of_b.shape));
    return {da, db};
  };
  return record("div", y, {a, b}, backward);
}

Tensor neg(const Tensor& x) {
  return record("neg", negative(x), {x},
                [](const Tensor& dy) -> Gradients { return {negative(dy)}; });
}

Tensor add(const Tensor& x, double s) {
  return record("add", calculate("add", Sign::add, x, s), {x},
                [](const Tensor& dy) -> Gradients { return {dy}; });
}

Tensor sub(const Tensor& x, double s) {
  return record("sub", calculate("sub", Sign::sub, x, s), {x},
                [](const Tensor& dy) -> Gradients { return {dy}; });
}

Tensor sub(double s, const Tensor& x) {
  return record("sub", calculate("sub", Sign::sub, x, s, true), {x},
                [](const Tensor& dy) -> Gradients { return {negative(dy)}; });
}

Tensor mul(const Tensor& x, double s) {
  return record("mul", calculate("mul", Sign::mul, x, s), {x}, [s](const Tensor& dy) -> Gradients {
    return {calculate("mul", Sign::mul, dy, s)};
  });
}

Tensor div(const Tensor& x, double s) {
  return record("div", calculate("div", Sign::div, x, s), {x}, [s](const Tensor& dy) -> Gradients {
    return {calculate("div", Sign::div, dy, s)};
  });
}

Tensor div(double s, const Tensor& x) {
  const Tensor y = calculate("div", Sign::div, x, s, true);
  return record("div", y, {x}, [x = Saved(x), y = Saved(y)](const Tensor& dy) -> Gradients {
    const Tensor q = calculate("div", Sign::div, dy, x);
    return {negative(calculate("div", Sign::mul, q, y))};
  });
}

namespace {

// f(g) for the formula g of that sign.
template <class F>
void with_formula(Sign sign, F&& f) {
  switch (sign) {
    case Sign::add:
      return f([](const auto& a, const auto& b) { return a + b; });
    case Sign::sub:
      return f([](const auto& a, const auto& b) { return a - b; });
    case Sign::mul:
      return f([](const auto& a, const auto& b) { return a * b; });
    case Sign::div:
      return f([](const auto& a, const auto& b) { return a / b; });
  }
}

// y's row r starts where in an operand? Rows are all dimensions but the last.
std::int64_t row_offset(const Layout& l, const std::int64_t* stride, std::int64_t r) {
  std::int64_t offset = 0;
  for (int d = l.rank - 2; d >= 0; r /= l.dims[d--]) offset += r % l.dims[d] * stride[d];
  return offset;
}

// f(r, where y's row r starts in a, and in b).
template <class F>
void for_rows(const Layout& l, std::int64_t begin, std::int64_t end, F&& f) {
  const int d = l.rank - 2;
  const std::int64_t many = d < 0 ? 1 : l.dims[d];  // at regular distances
  const std::int64_t step_a = d < 0 ? 0 : l.a[d], step_b = d < 0 ? 0 : l.b[d];
  for (std::int64_t r = begin; r < end;) {
    std::int64_t a = row_offset(l, l.a, r), b = row_offset(l, l.b, r);
    const std::int64_t stop = std::min(end, (r / many + 1) * many);
    for (; r < stop; ++r, a += step_a, b += step_b) f(r, a, b);
  }
}

// One row, of which each operand goes on by 1 or stays.
template <class T, class Formula>
void one_row(const Formula& f, const Layout& l, const T* a, const T* b, T* y) {
  const int last = l.rank - 1;
  const std::int64_t n = l.dims[last];
  using X = cpu::Simd<cpu::Wide<T>>;
  const auto wide = [](T x) { return static_cast<cpu::Wide<T>>(x); };
  if (l.a[last] == 0) {
    cpu::map_row(
        y, n, [f, a = X(wide(*a))](auto b) { return f(a, b); }, b);
  } else if (l.b[last] == 0) {
    cpu::map_row(
        y, n, [f, b = X(wide(*b))](auto a) { return f(a, b); }, a);
  } else {
    cpu::map_row(y, n, f, a, b);
  }
}

// Rows that are less than a register, as many of them at a time as these are.
constexpr std::int64_t near_numbers = 512;

// A short row of an operand, by a whole register: what is too much, the next row is laid over.
template <class T>
void lay(const T* x, bool stays, std::int64_t n, T* near) {
  using Register = cpu::Simd<cpu::Wide<T>>;
  (stays ? Register(static_cast<cpu::Wide<T>>(*x)) : Register::load(x, n)).store(near);
}

// An operand's short rows as they lie in y: where they are, if they do there, else near.
template <class T>
class NearRows {
 public:
  NearRows(const Layout& l, const std::int64_t* stride, const T* x)
      : l_(l), stride_(stride), x_(x) {
    std::int64_t step = 1;
    for (int d = l.rank - 1; d >= 0; step *= l.dims[d--]) whole_ = whole_ && stride[d] == step;
  }

  const T* rows(std::int64_t begin, std::int64_t end) {
    const int last = l_.rank - 1;
    const std::int64_t n = l_.dims[last];
    if (whole_) return x_ + begin * n;
    if (laid_) return near_;
    for_rows(l_, begin, end, [&](std::int64_t r, std::int64_t in_a, std::int64_t in_b) {
      const std::int64_t at = stride_ == l_.a ? in_a : in_b;
      lay(x_ + at, stride_[last] == 0, n, near_ + (r - begin) * n);
    });
    laid_ = last == 1 && stride_[0] == 0;  // all rows are the same
    return near_;
  }

 private:
  const Layout& l_;
  const std::int64_t* stride_;
  const T* x_;
  bool whole_ = true, laid_ = false;
  T near_[near_numbers + cpu::lanes<cpu::Wide<T>>];
};

// Some short rows together.
template <class T, class Formula>
void short_rows(const Formula& f, const Layout& l, std::int64_t begin, std::int64_t end, const T* a,
                const T* b, T* y) {
  const std::int64_t n = l.dims[l.rank - 1], some = near_numbers / n;
  NearRows<T> near_a(l, l.a, a), near_b(l, l.b, b);
  for (std::int64_t r = begin; r < end; r += some) {
    const std::int64_t stop = std::min(end, r + some);
    cpu::map_row(y + r * n, (stop - r) * n, f, near_a.rows(r, stop), near_b.rows(r, stop));
  }
}

}  // namespace

void cpu::arithmetic(Sign sign, const Tensor& a, const Tensor& b, Tensor& y) {
  const Layout l(y.shape(), a.shape(), b.shape());
  if (y.numel() == 0) return;
  if (a.numel() == 1 && !l.equal()) {
    return arithmetic_with_number(sign, b, a.item(), true, y);
  } else if (b.numel() == 1 && !l.equal()) {
    return arithmetic_with_number(sign, a, b.item(), false, y);
  }
  with_formula(sign, [&](auto f) {
    if (l.equal()) return map(y, a, b, f);
    visit<float, double, bf16>(y.dtype(), "arithmetic", [&](auto zero) {
      using T = decltype(zero);
      const std::int64_t n = l.dims[l.rank - 1];
      const T *from_a = a.data<T>(), *from_b = b.data<T>();
      T* to = y.data<T>();
      parallel_for(y.numel() / n, map_grain / (n + 16), [&](std::int64_t begin, std::int64_t end) {
        if (n < lanes<Wide<T>>) return short_rows(f, l, begin, end, from_a, from_b, to);
        for_rows(l, begin, end, [&](std::int64_t r, std::int64_t in_a, std::int64_t in_b) {
          one_row(f, l, from_a + in_a, from_b + in_b, to + r * n);
        });
      });
    });
  });
}

namespace {

// −x of bf16 is another bit: there is nothing to widen or to round.
void turn_over(const Tensor& x, Tensor& y) {
  const auto* from = static_cast<const std::uint16_t*>(x.raw());
  auto* to = static_cast<std::uint16_t*>(y.raw());
  parallel_for(x.numel(), cpu::map_grain, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) to[i] = from[i] ^ 0x8000u;
  });
}

}  // namespace

void cpu::arithmetic_with_number(Sign sign, const Tensor& x, double s, bool s_first, Tensor& y) {
  if (sign == Sign::mul && s == -1 && x.dtype() == Dtype::bf16) return turn_over(x, y);
  with_formula(sign, [&](auto f) {
    if (s_first)
      map(y, x, [f, s](auto x) { return f(decltype(x)(s), x); });
    else
      map(y, x, [f, s](auto x) { return f(x, decltype(x)(s)); });
  });
}

void cpu::mul_backward(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da, Tensor& db) {
  map(std::tie(da, db), a, b, dy, [](auto a, auto b, auto dy) {
    return std::array{dy * b, dy * a};
  });
}

void cpu::div_backward(const Tensor& y, const Tensor& b, const Tensor& dy, Tensor& da, Tensor& db) {
  map(std::tie(da, db), y, b, dy, [](auto y, auto b, auto dy) {
    const auto q = dy / b;
    return std::array{q, -(q * y)};
  });
}

}  // namespace ebb
