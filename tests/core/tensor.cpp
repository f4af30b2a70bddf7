#include "ebb/core/tensor.h"

#include <cmath>

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("tensor: elements go in and come out unchanged") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({1, 2, 3, 4, 5, 6}, {2, 3}, device);
    CHECK(x.shape() == Shape{2, 3});
    CHECK(x.to_vector<float>() == std::vector<float>{1, 2, 3, 4, 5, 6});
    CHECK(tensor<std::int32_t>({-7}, {}, device).item() == -7);
    CHECK(values(full({3}, 2.5, {Dtype::bf16, device})) == std::vector<double>{2.5, 2.5, 2.5});
    CHECK(values(zeros({0, 3}, {Dtype::f64, device})).empty());
    CHECK(x.clone().to(cpu_device).to_vector<float>() == x.to_vector<float>());
  }
}

TEST_CASE("tensor: handles share elements; clone does not; detach drops the history") {
  const Tensor x = tensor<float>({1, 2}, {2});
  Tensor same = x;
  same.fill_(5);
  CHECK(x.to_vector<float>() == std::vector<float>{5, 5});
  x.clone().fill_(1);
  CHECK(x.to_vector<float>() == std::vector<float>{5, 5});
  const Tensor y = leaf(x.clone());
  CHECK(y.detach().storage() == y.storage());
  CHECK(!y.detach().requires_grad());
  CHECK(x.size(-1) == 2);
}

TEST_CASE("tensor: gradients flow through copies, in the type and on the device of their origin") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor x = leaf(tensor<float>({1, 2, 3}, {3}).to(dtype).to(device));
      const Tensor y = x.to(Dtype::f64).to(cpu_device).clone();
      y.backward(tensor<double>({0.5, -2, 4}, {3}));
      CHECK(x.grad().dtype() == dtype);
      CHECK(x.grad().device() == device);
      CHECK(values(x.grad()) == std::vector<double>{0.5, -2, 4});
      CHECK(!x.to(Dtype::i32).requires_grad());
      const NoGrad guard;
      CHECK(!x.clone().requires_grad());
    }
}

TEST_CASE("tensor: sizes that cannot be are refused before memory is asked for") {
  const std::int64_t large = std::int64_t{1} << 31;
  const MemoryStats before = memory_stats(cpu_device);
  check_error(Kind::limit, {"overflow"}, [&] { empty({large, 4 * large}); });
  check_error(Kind::limit, {"overflow"}, [] { empty({std::int64_t{1} << 62}); });
  check_error(Kind::oom, {"4398046511104 bytes wanted on cpu", "free", "cached"},
              [] { empty({std::int64_t{1} << 40}); });
  check_error(Kind::oom, {"wanted"}, [] { empty({INT64_MAX}, {.dtype = Dtype::u8}); });
  check_error(Kind::shape, {"negative dimension 0"}, [] { empty({-1, 3}); });
  check_error(Kind::shape, {"rank 9", "at most 8"}, [] { zeros({1, 1, 1, 1, 1, 1, 1, 1, 1}); });
  CHECK(memory_stats(cpu_device).live == before.live);
}

TEST_CASE("tensor: one that is undefined refuses whatever is asked of it, but for whether it is") {
  using Use = void(Tensor & x);
  Use* const uses[] = {
      [](Tensor& x) { x.shape(); },
      [](Tensor& x) { x.size(0); },
      [](Tensor& x) { x.dtype(); },
      [](Tensor& x) { x.device(); },
      [](Tensor& x) { x.raw(); },
      [](Tensor& x) { x.data<float>(); },
      [](Tensor& x) { x.to_vector<float>(); },
      [](Tensor& x) { x.item(); },
      [](Tensor& x) { x.set_requires_grad(true); },
      [](Tensor& x) { x.set_requires_grad(false); },
      [](Tensor& x) { x.grad(); },
      [](Tensor& x) { x.set_grad(ones({2})); },
      [](Tensor& x) { x.zero_grad(); },
      [](Tensor& x) { x.backward(); },
      [](Tensor& x) { (void)x.detach(); },
      [](Tensor& x) { (void)x.clone(); },
      [](Tensor& x) { (void)x.to(cpu_device); },
      [](Tensor& x) { (void)x.to(Dtype::f64); },
      [](Tensor& x) { x.move_to(cpu_device); },
      [](Tensor& x) { x.convert_to(Dtype::f64); },
      [](Tensor& x) { x.fill_(1); },
      [](Tensor& x) { x.copy_(ones({2})); },
      [](Tensor& x) { ones({2}).copy_(x); },
      [](Tensor& x) { x.version(); },
      [](Tensor& x) { x.bump_version(); },
      [](Tensor& x) { x.require_writable("test"); },
      [](Tensor& x) { x.storage(); },
      [](Tensor& x) { x.node(); },
      [](Tensor& x) { x.set_node({}); },
  };
  for (size_t i = 0; i < std::size(uses); ++i) {
    CAPTURE(i);
    Tensor x;
    check_error(Kind::state, {}, [&] { uses[i](x); });
    CHECK_FALSE(x.requires_grad());
    CHECK_FALSE(x.defined());
  }
}

TEST_CASE("tensor: what does not fit is refused, with what came and what was wanted") {
  const Tensor x = tensor<float>({1, 2}, {2});
  check_error(Kind::shape, {"5 values", "6 values", "[2,3]"}, [] {
    tensor<float>({1, 2, 3, 4, 5}, {2, 3});
  });
  check_error(Kind::shape, {"item", "2 elements", "[2]"}, [&] { x.item(); });
  check_error(Kind::index, {"size", "3", "[-1, 0]"}, [&] { x.size(3); });
  check_error(Kind::index, {"size", "scalar"}, [] { ones({}).size(0); });
  check_error(Kind::dtype, {"to_vector", "f64", "f32"}, [&] { x.to_vector<double>(); });
  check_error(Kind::dtype, {"data", "i32", "f32"}, [&] { x.data<std::int32_t>(); });
  check_error(Kind::state, {"undefined tensor"}, [] { Tensor().shape(); });
  check_error(Kind::shape, {"copy_", "[3]", "[2]"}, [&] { x.clone().copy_(ones({3})); });
  check_error(Kind::shape, {"storage"}, [&] { Tensor(x.storage(), {200}, Dtype::f32); });
  check_error(Kind::value, {"fill_", "300", "u8"}, [] { full({1}, 300, {.dtype = Dtype::u8}); });
  check_error(Kind::value, {"fill_", "0.5", "i32"}, [] { full({1}, 0.5, {.dtype = Dtype::i32}); });
  CHECK(full({1}, 255, {.dtype = Dtype::u8}).item() == 255);
  CHECK(full({1}, -0x1p31, {.dtype = Dtype::i32}).item() == INT32_MIN);
}

TEST_CASE("tensor: devices that are not there are named") {
  check_error(Kind::device, {"cuda:7"}, [] { parse_device("cuda:7"); });
  for (const char* text :
       {"", "gpu", "cuda:", "cuda:x", "cuda:1x", "cuda1", "CPU", "cuda:99999999999"})
    check_error(Kind::device, {"device: "}, [&] { parse_device(text); });
  CHECK(parse_device("cpu") == cpu_device);
  const Device negative{Device::Type::cuda, -1};
  check_error(Kind::device, {"cuda:-1"}, [&] { empty({0}, {.device = negative}); });
  check_error(Kind::device, {"cuda:-1"}, [&] { empty({1}, {.device = negative}); });
  check_error(Kind::device, {"cuda:-1"}, [&] { synchronize(negative); });
  check_error(Kind::device, {"cuda:-1"}, [&] { static_cast<void>(ones({1}).to(negative)); });
}

TEST_CASE("tensor: only floating leaves can require a gradient") {
  check_error(Kind::dtype, {"requires_grad", "i32"},
              [] { leaf(zeros({1}, {.dtype = Dtype::i32})); });
  Tensor x = leaf(ones({1}));
  Tensor y = silu(x);
  check_error(Kind::state, {"requires_grad", "the result of an op"},
              [&] { y.set_requires_grad(false); });
  check_error(Kind::state, {"set_grad: only leaves"}, [&] { y.set_grad(ones_like(y)); });
  y.zero_grad();  // none to drop
  check_error(Kind::state, {"move_to"}, [&] { y.move_to(cpu_device); });
  check_error(Kind::state, {"set_grad", "[2]"}, [&] { x.set_grad(ones({2})); });
}

TEST_CASE("tensor: tensors that require a gradient change in place under NoGrad only") {
  Tensor x = leaf(ones({2}));
  Tensor y = silu(x);
  check_error(Kind::state, {"fill_", "a leaf", "NoGrad"}, [&] { x.fill_(3); });
  check_error(Kind::state, {"copy_", "the result of an op"}, [&] { y.copy_(x); });
  Tensor plain = zeros_like(y);
  check_error(Kind::state, {"copy_: no gradient would flow back"}, [&] { plain.copy_(y); });
  plain.copy_(y.detach());
  const std::uint64_t before = x.version();
  {
    const NoGrad guard;
    x.fill_(3);
    x.copy_(x);
  }
  CHECK(x.version() == before + 2);
  CHECK(x.detach().version() == x.version());
  CHECK(values(x) == std::vector<double>{3, 3});
}

TEST_CASE("tensor: a moved parameter is moved for every handle, gradient included") {
  for (const Device device : devices()) {
    Tensor x = leaf(ones({2}));
    x.set_grad(full({2}, 4));
    const Tensor other = x;
    x.move_to(device);
    CHECK(other.device() == device);
    CHECK(other.grad().device() == device);
    CHECK(values(other.grad()) == std::vector<double>{4, 4});
  }
}
