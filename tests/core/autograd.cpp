#include "ebb/core/autograd.h"

#include <pthread.h>

#include <thread>

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// Small ops in f64, written through record() as any op is.
Tensor map2(const Tensor& a, const Tensor& b, double (*f)(double, double)) {
  std::vector<double> x = values(a);
  const std::vector<double> y = values(b);
  for (size_t i = 0; i < x.size(); ++i) x[i] = f(x[i], y[i]);
  return tensor(x, a.shape(), a.device());
}
Tensor plus(const Tensor& a, const Tensor& b) {
  return map2(a, b, [](double x, double y) { return x + y; });
}
Tensor times(const Tensor& a, const Tensor& b) {
  return map2(a, b, [](double x, double y) { return x * y; });
}

// Both inputs get the same handle, as a real addition gives them.
Tensor sum_of(const Tensor& a, const Tensor& b) {
  return record("sum_of", plus(a, b), {a, b}, [](const Tensor& dy) -> Gradients {
    return {dy, dy};
  });
}
Tensor product(const Tensor& a, const Tensor& b) {
  return record("product", times(a, b), {a, b},
                [a = Saved(a), b = Saved(b)](const Tensor& dy) -> Gradients {
                  return {times(dy, b), times(dy, a)};
                });
}
// Costs nothing, so that chains can be long.
Tensor link(const Tensor& x) {
  return record("link", x.detach(), {x}, [](const Tensor& dy) -> Gradients { return {dy}; });
}
Tensor three() { return leaf(tensor<double>({3, 5}, {2})); }
Tensor two() { return tensor<double>({2, 2}, {2}); }
using V = std::vector<double>;

}  // namespace

TEST_CASE("autograd: gradients flow, and a second backward adds to them") {
  for (const Device device : devices()) {
    const Tensor x = leaf(tensor<double>({3, 5}, {2}, device));
    for (const double times_run : {1.0, 2.0}) {
      product(x, x).backward(tensor<double>({2, 2}, {2}, device));
      CHECK(values(x.grad()) == V{12 * times_run, 20 * times_run});
    }
  }
  const Tensor x = three();
  x.backward(two());
  CHECK(values(x.grad()) == V{2, 2});
}

TEST_CASE("autograd: a tensor used twice gets both gradients, however its uses are arranged") {
  const Tensor x = three();
  sum_of(x, x).backward(two());
  CHECK(values(x.grad()) == V{4, 4});
  Tensor(x).zero_grad();
  const Tensor y = product(x, x);
  sum_of(sum_of(y, x), y).backward(two());
  CHECK(values(x.grad()) == V{26, 42});
}

TEST_CASE("autograd: gradients that arrive as one tensor do not stay one") {
  const Tensor a = three();
  const Tensor b = three();
  sum_of(a, b).backward(two());
  a.grad().fill_(100);
  CHECK(values(b.grad()) == V{2, 2});

  const Tensor p = three();
  const Tensor q = three();
  const Tensor m = link(p);
  const Tensor n = link(q);
  const Tensor early = product(m, two());
  sum_of(sum_of(m, n), early).backward(two());  // m and n get one handle, then m gets more
  CHECK(values(p.grad()) == V{6, 6});
  CHECK(values(q.grad()) == V{2, 2});

  const Tensor dy = two();
  const Tensor r = three();
  link(r).backward(dy);
  r.backward(dy);
  CHECK(values(r.grad()) == V{4, 4});
  CHECK(values(dy) == V{2, 2});
  r.grad().fill_(7);
  CHECK(values(dy) == V{2, 2});
}

TEST_CASE("autograd: a gradient that was handed out is not changed by the next backward") {
  const Tensor x = three();
  link(x).backward(two());
  const Tensor held = x.grad();
  link(x).backward(two());
  CHECK(values(held) == V{2, 2});
  CHECK(values(x.grad()) == V{4, 4});
  const Tensor given = two();
  Tensor y = three();
  y.set_grad(given);
  link(y).backward(two());
  CHECK(values(given) == V{2, 2});
}

TEST_CASE("autograd: the graph is freed unless it is retained") {
  const Tensor x = three();
  const Tensor y = product(x, x);
  y.backward(two(), true);
  y.backward(two());
  CHECK(values(x.grad()) == V{24, 40});
  check_error(Kind::state, {"backward: the graph through `product` was already freed"},
              [&] { y.backward(two()); });
  check_error(Kind::state, {"`product` was already freed"}, [&] { link(y).backward(two()); });
  CHECK(values(x.grad()) == V{24, 40});
}

TEST_CASE("autograd: backward names what it lacks") {
  const Tensor x = three();
  check_error(Kind::state, {"shape [2] needs a gradient"}, [&] { link(x).backward(); });
  check_error(Kind::shape, {"[3]", "[2]"}, [&] { link(x).backward(ones({3}, {Dtype::f64})); });
  check_error(Kind::dtype, {"f32", "f64"}, [&] { link(x).backward(ones({2})); });
  check_error(Kind::state, {"no input requires a gradient"}, [] { link(two()).backward(two()); });
  check_error(Kind::state, {"second-order"},
              [&] { backward(link(x), two(), {.create_graph = true}); });
  check_error(Kind::dtype, {"argmax", "i32"}, [&] {
    record("argmax", zeros({2}, {.dtype = Dtype::i32}), {x},
           [](const Tensor&) { return Gradients{}; });
  });
  check_error(Kind::state, {"none: no backward"}, [&] { record("none", two(), {x}, nullptr); });
  CHECK(!x.grad().defined());
}

TEST_CASE("autograd: branches that lead nowhere get nothing, and cost nothing") {
  const Tensor x = three();
  const Tensor unused = product(x, x);
  const Tensor y = record("drop", two(), {x, unused}, [](const Tensor& dy) -> Gradients {
    return {dy, {}};
  });
  y.backward(two());
  CHECK(values(x.grad()) == V{2, 2});
  const Tensor z = three();
  const Tensor frozen = two();
  product(z, frozen).backward(two());
  CHECK(!frozen.grad().defined());
}

TEST_CASE("autograd: a saved tensor that was changed in place is noticed, by every handle") {
  for (const bool through_other : {false, true}) {
    const Tensor x = three();
    Tensor c = two();
    const Tensor y = link(product(x, c));
    if (through_other) {
      c.detach().fill_(9);
    } else {
      c.fill_(9);
    }
    check_error(Kind::state, {"product: ", "changed in place", "version 1", "version 0"},
                [&] { y.backward(two()); });
    CHECK(!x.grad().defined());
    link(x).backward(two());  // and all is well afterwards
    CHECK(values(x.grad()) == V{2, 2});
  }
}

TEST_CASE("autograd: under NoGrad nothing is recorded, on this thread alone") {
  const Tensor x = three();
  const NoGrad guard;
  CHECK(!link(x).requires_grad());
  { const NoGrad inner; }
  CHECK(!grad_enabled());
  bool elsewhere = false;
  std::thread([&] { elsewhere = link(x).requires_grad(); }).join();
  CHECK(elsewhere);
}

TEST_CASE("autograd: wrong closures are named") {
  const Tensor x = three();
  const auto wrong = [&](Kind kind, const std::string& text, const Gradients& answer) {
    for (const Tensor& input : {x, link(x)}) {
      const Tensor y = record("wrong", two(), {input}, [answer](const Tensor&) { return answer; });
      check_error(kind, {"wrong: ", text}, [&] { y.backward(two()); });
    }
  };
  wrong(Kind::state, "number of gradients", {});
  wrong(Kind::state, "got 2; expected 1", {two(), two()});
  wrong(Kind::shape, "got [3]; expected [2]", {ones({3}, {Dtype::f64})});
  wrong(Kind::dtype, "got f32; expected f64", {ones({2})});
  CHECK(!x.grad().defined());
}

TEST_CASE("autograd: an exception in a closure reaches the caller and leaves things usable") {
  const Tensor x = three();
  const MemoryStats before = memory_stats(cpu_device);
  for (int i = 0; i < 20; ++i) {
    const Tensor y = record("thrower", two(), {link(x)}, [](const Tensor&) -> Gradients {
      throw std::runtime_error("from the closure");
    });
    CHECK_THROWS_WITH_AS(sum_of(y, product(x, x)).backward(two()), "from the closure",
                         std::runtime_error);
    CHECK(grad_enabled());
  }
  Tensor(x).zero_grad();
  CHECK(memory_stats(cpu_device).live == before.live);
  product(x, x).backward(two());
  CHECK(values(x.grad()) == V{12, 20});
}

TEST_CASE("autograd: a closure may run backward itself, even through the graph that it is in") {
  for (const bool retain : {true, false}) {
    const Tensor x = three(), y = link(x);
    const Tensor z = record("inner", two(), {y}, [y, retain](const Tensor& dy) -> Gradients {
      y.backward(dy, retain);
      return {dy};
    });
    if (retain) {
      sum_of(y, z).backward(two());
      CHECK(values(x.grad()) == V{6, 6});
    } else {
      check_error(Kind::state, {"link: the graph was freed while backward ran through it"},
                  [&] { sum_of(y, z).backward(two()); });
      CHECK(grad_enabled());
      link(x).backward(two());
    }
  }
}

TEST_CASE("autograd: a leaf that is frozen after the forward pass gets nothing") {
  Tensor x = three();
  const Tensor y = three();
  const Tensor z = product(x, y);
  x.set_requires_grad(false);
  z.backward(two());
  CHECK(!x.grad().defined());
  CHECK(values(y.grad()) == V{6, 10});
}

TEST_CASE("autograd: what was on its way when a closure failed is not in the next gradient") {
  const Tensor x = three(), y = link(x);
  const Tensor thrown = record("thrower", two(), {y}, [](const Tensor&) -> Gradients {
    throw std::runtime_error("from the closure");
  });
  CHECK_THROWS_AS(sum_of(thrown, y).backward(two()), std::runtime_error);
  link(y).backward(two());
  CHECK(values(x.grad()) == V{2, 2});
}

TEST_CASE("autograd: closures, outputs saved by themselves and histories on gradients are freed") {
  const MemoryStats before = memory_stats(cpu_device);
  {
    const Tensor x = three();
    Tensor y = times(x, x);
    y = record("own", y, {x}, [y = Saved(y)](const Tensor& dy) -> Gradients { return {dy}; });
    const Tensor z = record("itself", x, {x}, [](const Tensor& dy) -> Gradients { return {dy}; });
    CHECK(!z.same_as(x));
    Tensor w = x;
    w.set_grad(product(x, x));
    product(y, z).backward(two(), true);
    CHECK(memory_stats(cpu_device).live > before.live);
  }
  CHECK(memory_stats(cpu_device).live == before.live);
}

TEST_CASE("autograd: a leaf that moved before backward is an error, not a wrong address") {
  for (const Device device : devices()) {
    if (!device.is_cuda()) continue;
    Tensor x = three();
    const Tensor y = link(x);
    x.move_to(device);
    check_error(Kind::device, {"link: gradient on wrong device; got cpu; expected cuda:0"},
                [&] { y.backward(two()); });
  }
}

namespace {

constexpr int long_chain = 1'000'000;

Tensor chain(const Tensor& x, int n) {
  Tensor y = x;
  for (int i = 0; i < n; ++i) y = link(y);
  return y;
}

// Runs f on a thread with this much stack.
void with_stack(size_t bytes, std::function<void()> f) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  REQUIRE(pthread_attr_setstacksize(&attributes, bytes) == 0);
  pthread_t thread;
  const auto call = [](void* g) -> void* {
    (*static_cast<std::function<void()>*>(g))();
    return nullptr;
  };
  REQUIRE(pthread_create(&thread, &attributes, call, &f) == 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

}  // namespace

TEST_CASE("autograd: a chain of 1,000,000 ops fits any stack, built, run backward and freed") {
  const MemoryStats before = memory_stats(cpu_device);
  for (const size_t stack : {size_t{8} << 20, size_t{256} << 10}) {
    const Stopwatch watch;
    with_stack(stack, [] {
      const Tensor x = three();
      chain(x, long_chain).backward(two());
      CHECK(values(x.grad()) == V{2, 2});
    });
    CHECK(watch.seconds() <= 5);
  }
  CHECK(memory_stats(cpu_device).live == before.live);
}

TEST_CASE("autograd: a long chain is freed without backward, and by another thread") {
  const MemoryStats before = memory_stats(cpu_device);
  with_stack(size_t{256} << 10, [] { chain(three(), long_chain); });
  Tensor y = chain(three(), long_chain);
  with_stack(size_t{256} << 10, [&] { y = Tensor(); });
  const Tensor x = three();
  y = chain(x, long_chain / 10);
  Tensor kept = y;
  y.backward(two(), true);
  with_stack(size_t{256} << 10, [&] { y = kept = Tensor(); });
  CHECK(memory_stats(cpu_device).live == before.live + 2 * 512);  // x and its gradient
}

TEST_CASE("autograd: eight threads with graphs of their own get a single thread's bits") {
  const Tensor weights = randn({64}, 1);
  const auto train = [&](std::uint64_t seed) {
    Tensor x = leaf(randn({64}, seed));
    for (int step = 0; step < 20; ++step) {
      Tensor y = x;
      for (int i = 0; i < 10; ++i) y = product(sum_of(y, x), weights);
      y.backward(weights);
    }
    return values(x.grad());
  };
  std::vector<V> alone;
  for (std::uint64_t t = 0; t < 8; ++t) alone.push_back(train(t));
  std::vector<V> together(8);
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 8; ++t) threads.emplace_back([&, t] { together[t] = train(t); });
  for (std::thread& thread : threads) thread.join();
  CHECK(together == alone);
}
