#include <ebb/ebb.h>

#include <cstdio>

using namespace ebb;

int main() {
  manual_seed(1);
  const Tensor x = tensor<float>({0, 0, 0, 1, 1, 0, 1, 1}, {4, 2});
  const Tensor y = tensor<std::int32_t>({0, 1, 1, 0}, {4});  // exclusive or
  nn::Sequential net(nn::Linear(2, 16), nn::GELU(), nn::Linear(16, 2));
  nn::AdamW optimizer(net.parameters());
  Tensor loss;
  for (int step = 1; step <= 200; ++step) {
    loss = cross_entropy(net(x), y);
    loss.backward();
    optimizer.step(0.02);
    optimizer.zero_grad();
    if (step % 50 == 0) std::printf("step %3d  loss %.4f\n", step, loss.item());
  }
  return loss.item() <= 0.01 ? 0 : 1;
}
