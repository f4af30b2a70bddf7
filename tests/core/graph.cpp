#include "ebb/core/graph.h"

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// x ← x + 0.1 · dropout(u · x), u uniform: two streams a step, temporaries of several sizes.
void walk(Tensor& x, Tensor& size) {
  const Tensor u = uniform(x.shape(), -1, 1, default_generator(), x.options());
  const Tensor step = dropout(mul(u, x), {.p = 0.3});
  x.copy_(add(x, mul(step, full({}, 0.1, x.options()))));
  size = l2_norm(x);
}

struct Walked {
  std::vector<double> x;
  std::vector<double> sizes;
  std::uint64_t drawn;
  friend bool operator==(const Walked&, const Walked&) = default;
};

Walked walked(Device device, bool captured, int steps) {
  manual_seed(7);
  Tensor x = randn({3, 1001}, 1, Dtype::f32, device);
  Tensor size;
  Graph graph(device, [&] { walk(x, size); });
  Walked result;
  for (int i = 0; i < steps; ++i) {
    if (captured)
      graph.run();
    else
      walk(x, size);
    result.sizes.push_back(size.item());
  }
  CHECK(graph.captured() == (captured && device.is_cuda() && steps > 3));
  result.x = values(x);
  result.drawn = default_generator().drawn();
  return result;
}

}  // namespace

TEST_CASE(
    "graph: replays give the bytes of ordinary steps, and leave the generator where they do") {
  for (const Device device : devices()) {
    const Walked ordinary = walked(device, false, 20);
    CHECK(walked(device, true, 20) == ordinary);
    CHECK(ordinary.sizes[18] != ordinary.sizes[19]);
    CHECK(ordinary.drawn == 40);
  }
}

TEST_CASE("graph: others may draw between the steps, but not change the seed") {
  for (const Device device : devices()) {
    const auto sizes = [&](bool captured) {
      manual_seed(7);
      Tensor x = randn({100}, 1, Dtype::f32, device);
      Tensor size;
      Graph graph(device, [&] { walk(x, size); });
      std::vector<double> all;
      for (int i = 0; i < 12; ++i) {
        if (captured)
          graph.run();
        else
          walk(x, size);
        all.push_back(size.item());
        if (i % 3 == 1) all.push_back(uniform({}, 0, 1, default_generator()).item());
      }
      manual_seed(8);
      if (captured && device.is_cuda())
        check_error(Kind::state, {"graph: the seed", "got 8"}, [&] { graph.run(); });
      return all;
    };
    CHECK(sizes(true) == sizes(false));
  }
}

TEST_CASE("graph: what is allocated between replays is nobody else's memory") {
  for (const Device device : devices()) {
    const Walked ordinary = walked(device, false, 12);
    manual_seed(7);
    Tensor x = randn({3, 1001}, 1, Dtype::f32, device);
    Tensor size;
    Graph graph(device, [&] { walk(x, size); });
    std::vector<Tensor> others;
    for (int i = 0; i < 12; ++i) {
      graph.run();
      others.push_back(full({3, 1001}, i, x.options()));
    }
    CHECK(values(x) == ordinary.x);
    for (int i = 0; i < 12; ++i)
      CHECK(values(others[static_cast<size_t>(i)]) == std::vector<double>(3003, i));
  }
}

TEST_CASE("graph: a steady run allocates nothing, and a graph that ends gives its memory back") {
  for (const Device device : devices()) {
    const MemoryStats before = memory_stats(device);
    {
      Tensor x = randn({500}, 1, Dtype::f32, device);
      Tensor size;
      Graph graph(device, [&] { walk(x, size); });
      for (int i = 0; i < 5; ++i) graph.run();
      const MemoryStats steady = memory_stats(device);
      for (int i = 0; i < 100; ++i) graph.run();
      CHECK(memory_stats(device).live == steady.live);
      CHECK(memory_stats(device).cached == steady.cached);
    }
    CHECK(memory_stats(device).live == before.live);
  }
}

TEST_CASE("graph: an error in a step reaches the caller, and the next good step works") {
  for (const Device device : devices()) {
    Tensor x = zeros({4}, {Dtype::f32, device});
    bool bad = false;
    Graph graph(device, [&] {
      if (bad) add(x, zeros({3}, x.options()));
      x.copy_(add(x, ones({4}, x.options())));
    });
    for (int i = 0; i < 3; ++i) graph.run();
    bad = true;
    check_error(Kind::shape, {"add: "}, [&] { graph.run(); });
    bad = false;
    for (int i = 0; i < 3; ++i) graph.run();
    CHECK(values(x) == std::vector<double>(4, 6));
  }
}

TEST_CASE("graph: what a replay cannot repeat is refused while a step is captured") {
  check_error(Kind::value, {"graph: bad number of ordinary runs", "0"}, [] {
    Graph(
        cpu_device, [] {}, 0);
  });
  for (const Device device : devices()) {
    if (!device.is_cuda()) continue;
    Tensor x = zeros({4}, {Dtype::f32, device});
    const auto refused = [&](Kind kind, const std::string& part, std::function<void()> step) {
      Graph graph(device, std::move(step), 1);
      graph.run();
      check_error(kind, {part}, [&] { graph.run(); });
      CHECK(values(add(x, x)) == std::vector<double>(4, 0));
    };
    Generator own(1);
    refused(Kind::state, "while a step is captured", [&] {
      uniform({4}, 0, 1, own, {Dtype::f32, device});
    });
    refused(Kind::state, "normal: numbers drawn on the CPU", [&] {
      normal({4}, 0, 1, default_generator(), {Dtype::f32, device});
    });
    refused(Kind::cuda, "operation", [&] { l2_norm(x).item(); });
  }
}
