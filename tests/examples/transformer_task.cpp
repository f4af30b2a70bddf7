// How the transformer example learns: choosing characters, measuring tasks, training, and targets.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "folder.h"
#include "transformer/batch.h"
#include "transformer/config.h"
#include "transformer/peak.h"
#include "transformer/sampler.h"
#include "transformer/task.h"
#include "transformer/trainer.h"
#include "twins.h"
#include "written.h"

using namespace transformer;
using ebb::Tensor;
using transformer::test::written;

namespace {

// What is printed meanwhile goes nowhere.
class Silence {
 public:
  Silence() : kept_(dup(1)) {
    std::fflush(stdout);
    const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(nowhere, 1);
    close(nowhere);
  }
  ~Silence() {
    std::fflush(stdout);
    dup2(kept_, 1);
    close(kept_);
  }
  Silence(const Silence&) = delete;
  Silence& operator=(const Silence&) = delete;

 private:
  int kept_;
};

}  // namespace

TEST_CASE("choose: the likeliest, the likely, and never what has no character") {
  const std::vector<float> logits = {0, 2, 1, 2, -1, 50};
  CHECK(choose(logits, {.temperature = 0, .known = 5}, 0) == 1);  // of equal ones the first
  std::vector<double> share(6);
  constexpr int draws = 20000;
  for (std::uint64_t i = 0; i < draws; ++i)
    share[static_cast<std::size_t>(choose(logits, {.temperature = 0.5, .known = 5}, i))] +=
        1.0 / draws;
  double sum = 0;
  for (std::size_t i = 0; i < 5; ++i) sum += std::exp(logits[i] / 0.5);
  for (std::size_t i = 0; i < 5; ++i) {
    const double p = std::exp(logits[i] / 0.5) / sum;
    CHECK(std::abs(share[i] - p) <= 5 * std::sqrt(p * (1 - p) / draws));
  }
  CHECK(share[5] == 0);
  std::set<std::int32_t> chosen;
  for (std::uint64_t i = 0; i < 1000; ++i)
    chosen.insert(choose(logits, {.temperature = 9, .top_k = 3, .known = 5}, i));
  CHECK(chosen == std::set<std::int32_t>{1, 2, 3});
  for (std::uint64_t i = 0; i < 10; ++i)
    CHECK(choose(logits, {.seed = 4, .known = 5}, i) == choose(logits, {.seed = 4, .known = 5}, i));
}

TEST_CASE("task: validation is over the whole split, whatever the windows") {
  const ebb::test::Folder folder;
  const std::string path = folder.path / "text";
  std::string text;
  for (int i = 0; i < 4000; ++i) text += static_cast<char>('a' + (i * i + i / 7) % 13);
  ebb::test::write(path, text);
  Config config = preset("text", "tiny", false);
  config.block_size = 48;  // 399 predictions: 8 windows and one of 15
  const auto task = make_task(config, path, ebb::cpu_device);
  CHECK(task->context() == 48);
  ebb::manual_seed(0);
  ebb::nn::Transformer model(model_options(config, task->vocabulary().size(), task->context()));
  double sum = 0;
  const Text whole = load_text(path);
  const Tokens validation = whole.validation();
  for (std::size_t at = 0; at + 1 < validation.size(); at += 48) {
    const std::size_t n = std::min<std::size_t>(48, validation.size() - 1 - at);
    const Tokens part(validation.begin() + static_cast<std::ptrdiff_t>(at),
                      validation.begin() + static_cast<std::ptrdiff_t>(at + n));
    const auto scores =
        model(ebb::tensor(part, {1, static_cast<std::int64_t>(n)})).to_vector<float>();
    const std::size_t classes = scores.size() / n;
    for (std::size_t i = 0; i < n; ++i) {
      double total = 0;
      for (std::size_t c = 0; c < classes; ++c) total += std::exp(double{scores[i * classes + c]});
      const auto right = static_cast<std::size_t>(validation[at + i + 1]);
      sum += std::log(total) - scores[i * classes + right];
    }
  }
  const double expected = sum / static_cast<double>(validation.size() - 1);
  CHECK(std::abs(task->measure(model) - expected) <= 1e-5 * expected);
  CHECK(model.training());
  CHECK(task->better(1, 2));
}

TEST_CASE("task: exact answers are those that greedy decoding gives") {
  Config config;
  config.digits = 2;
  const auto task = make_task(config, "", ebb::cpu_device);
  ebb::manual_seed(1);
  ebb::nn::Transformer model(model_options(config, task->vocabulary().size(), task->context()));
  ebb::nn::AdamW optimizer(model.parameters());
  for (std::int64_t step = 0; step < 120; ++step) {
    const Batch batch = task->batch({0, static_cast<std::uint64_t>(64 * step), 64});
    const Tensor logits = model(batch.x);
    ebb::cross_entropy(ebb::reshape(logits, {-1, logits.size(2)}), ebb::flatten(batch.y),
                       {.ignore_index = ignored})
        .backward();
    optimizer.step(5e-3);
    optimizer.zero_grad();
  }
  const Problems problems{Skill::addition, 2};
  const auto all = unseen(problems, 10000);
  model.eval();
  std::size_t right = 0;
  for (const std::uint64_t problem : all) {
    const std::string whole = written(problems, problem);
    const std::string asked = whole.substr(0, static_cast<std::size_t>(problems.question()));
    Tokens answer;
    generate(model, question(problems, asked), problems.answer(), {.temperature = 0, .known = 12},
             [&](std::int32_t token) { answer.push_back(token); });
    right += asked + problems.vocabulary().decode(answer) == whole;
  }
  CHECK(right > 0);
  CHECK(right < all.size());
  CHECK(task->measure(model) ==
        doctest::Approx(100.0 * static_cast<double>(right) / static_cast<double>(all.size())));
  CHECK(task->better(2, 1));
}

TEST_CASE("trainer: a thousand steps use no more memory than a hundred") {
  const auto peak_of = [](std::int64_t steps) {
    Config config = preset("addition", "tiny", false);
    config.n_embd = 16, config.batch_size = 4, config.dropout = 0.1;
    config.max_iters = steps, config.warmup_iters = 10;
    const ebb::test::Folder folder;
    ebb::reset_peak(ebb::cpu_device);
    const std::int64_t before = ebb::memory_stats(ebb::cpu_device).live;
    {
      Trainer trainer(config, make_task(config, "", ebb::cpu_device), false, ebb::cpu_device);
      const Silence silence;
      CHECK(trainer.run(example::OutputFolder(folder.path)));
    }
    CHECK(ebb::memory_stats(ebb::cpu_device).live == before);
    return ebb::memory_stats(ebb::cpu_device).peak - before;
  };
  constexpr std::int64_t rate = 9;  // in the table of rates, rounded up by an eighth at most
  CHECK(peak_of(1000) - peak_of(100) <= 1000 * rate);
}

TEST_CASE("config: targets belong to the settings they were stated for") {
  CHECK(default_target(preset("addition", "tiny", false), "tiny", false) == 99);
  CHECK(default_target(preset("sort", "char", true), "char", true) == 100);
  Config config = preset("text", "char", false);
  config.seed = 7;
  CHECK(default_target(config, "char", false) == 1.90);
  CHECK(default_target(preset("text", "char", true), "char", true) == 1.48);
  config.max_iters = 100;
  CHECK(std::isnan(default_target(config, "char", false)));
  CHECK(std::isnan(default_target(preset("text", "gpt2", true), "gpt2", true)));
  const auto gpt2 = model_options(preset("text", "gpt2", true), 65, 1024);
  CHECK(gpt2.vocabulary == 50304);
  CHECK(gpt2.layers == 12);
  CHECK(gpt2.width == 768);
  CHECK(peak_flops(ebb::cpu_device) == 0);
}
