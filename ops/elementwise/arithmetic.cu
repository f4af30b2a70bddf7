#include "ebb/ops/elementwise/arithmetic.h"

#include "ebb/ops/broadcast.cuh"

namespace ebb {
namespace {

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Sub {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a - b;
  }
};
struct Mul {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a * b;
  }
};
struct Div {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a / b;
  }
};

template <class F, class C>
struct WithNumber {
  F f;
  C s;
  bool s_first;
  __device__ C operator()(C x) const { return s_first ? f(s, x) : f(x, s); }
};

struct MulBackward {
  template <class T>
  __device__ gpu::Values<T, 2> operator()(T a, T b, T dy) const {
    return {{dy * b, dy * a}};
  }
};

struct DivBackward {
  template <class T>
  __device__ gpu::Values<T, 2> operator()(T y, T b, T dy) const {
    const T q = dy / b;
    return {{q, -(q * y)}};
  }
};

template <class F>
void with_formula(Sign sign, F&& f) {
  switch (sign) {
    case Sign::add:
      return f(Add{});
    case Sign::sub:
      return f(Sub{});
    case Sign::mul:
      return f(Mul{});
    case Sign::div:
      return f(Div{});
  }
}

}  // namespace

void gpu::arithmetic(Sign sign, const Tensor& a, const Tensor& b, Tensor& y) {
  const Layout layout(y.shape(), a.shape(), b.shape());
  visit<float, double, bf16>(y.dtype(), "arithmetic", [&](auto zero) {
    using T = decltype(zero);
    with_formula(sign, [&](auto f) {
      broadcast<T>("arithmetic", f, layout, y.numel(), y.data<T>(), a.data<T>(), b.data<T>());
    });
  });
}

void gpu::arithmetic_with_number(Sign sign, const Tensor& x, double s, bool s_first, Tensor& y) {
  with_formula(sign, [&](auto f) {
    const auto make = [&](auto zero) {
      using C = Compute<decltype(zero)>;
      return WithNumber<decltype(f), C>{f, static_cast<C>(s), s_first};
    };
    map_tensors("arithmetic", make, std::tie(y), x);
  });
}

void gpu::mul_backward(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da, Tensor& db) {
  map("mul", MulBackward{}, std::tie(da, db), a, b, dy);
}

void gpu::div_backward(const Tensor& y, const Tensor& b, const Tensor& dy, Tensor& da, Tensor& db) {
  map("div", DivBackward{}, std::tie(da, db), y, b, dy);
}

}  // namespace ebb
