// The lowest point of silu, found by following its gradient.
#include <ebb/ebb.h>

#include <cmath>
#include <cstdio>

ebb::Tensor loss(const ebb::Tensor& x);

int main() {
  ebb::Tensor x = ebb::zeros({1}).set_requires_grad(true);
  for (int step = 0; step < 200; ++step) {
    loss(x).backward();
    const double next = x.item() - x.grad().item();
    x.zero_grad();
    const ebb::NoGrad pause;
    x.fill_(next);
  }
  std::printf("silu is lowest at %.5f\n", x.item());
  return std::abs(x.item() + 1.27846) <= 1e-4 ? 0 : 1;  // where 1 + x (1 − σ(x)) = 0
}
