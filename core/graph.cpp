#include "ebb/core/graph.h"

#include "ebb/core/error.h"
#include "ebb/core/random.h"
#include "ebb/core/run.h"

namespace ebb {

Graph::Graph(Device device, std::function<void()> step, int warm_up)
    : device_(device), step_(std::move(step)), ordinary_runs_left_(warm_up) {
  require_available("graph", device);
  require(warm_up >= 1, Kind::value, "graph", "bad number of ordinary runs", warm_up, "1 or more");
}

Graph::~Graph() {
  if constexpr (has_cuda) {
    if (replay_) gpu::destroy_replay(replay_);
  }
}

void Graph::run() {
  if (!device_.is_cuda() || ordinary_runs_left_ > 0) {
    step_();
    if (device_.is_cuda()) --ordinary_runs_left_;
    return;
  }
  if constexpr (has_cuda) {
    gpu::use(device_);
    if (!replay_) capture();
    Generator& generator = default_generator();
    require(generator.seed() == generator_.seed(), Kind::state, "graph",
            "the seed is not what it was when the step was captured", generator.seed(),
            generator_.seed());
    const std::uint64_t gone = generator.drawn() - generator_.drawn();
    if (gone != moved_) gpu::set_shift(static_cast<std::uint64_t*>(shift_.raw()), gone);
    gpu::replay(replay_);
    moved_ = gone + draws_;
    generator.restore(generator.seed(), generator_.drawn() + moved_);
  }
}

// Nothing runs while the step is captured: the generator stands where it stood, and the first
// replay is the step.
void Graph::capture() {
  if constexpr (has_cuda) {
    shift_ = zeros({2}, {Dtype::i32, device_});
    auto* const shift = static_cast<std::uint64_t*>(shift_.raw());
    pool_ = std::make_shared<MemoryPool>(device_);
    Generator& generator = default_generator();
    generator_ = generator;
    moved_ = 0;
    gpu::begin_capture();
    try {
      {
        const MemoryPool::Use use(*pool_);
        const ShiftedStreams shifted(shift);
        step_();
      }
      draws_ = generator.drawn() - generator_.drawn();
      replay_ = gpu::end_capture(shift, draws_);
    } catch (...) {
      gpu::abandon_capture();
      generator = generator_;
      throw;
    }
    generator = generator_;
  }
}

}  // namespace ebb
