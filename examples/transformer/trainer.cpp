#include "transformer/trainer.h"

#include <cmath>
#include <limits>

#include "common/text.h"
#include "transformer/model.h"
#include "transformer/peak.h"
#include "transformer/sampler.h"

namespace transformer {

using namespace ebb;
using example::shown;

namespace {

std::unique_ptr<nn::Transformer> seeded_model(const Config& config, const Task& task,
                                              bool recompute, Device device) {
  auto options = model_options(config, task.vocabulary().size(), task.context());
  options.recompute = recompute;
  options.check_tokens = false;  // the data has been
  manual_seed(static_cast<std::uint64_t>(config.seed));
  auto model = std::make_unique<nn::Transformer>(options);
  model->to(device);
  if (config.dtype == "bf16") model->to(Dtype::bf16);
  return model;
}

std::int64_t count(nn::Module& model) {
  std::int64_t n = 0;
  for (const Tensor& p : model.parameters()) n += p.numel();
  return n;
}

// Forward and backward, as usually counted: 6 operations a parameter, and attention's products.
// Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
double operations_a_token(nn::Transformer& model) {
  const nn::TransformerOptions& o = model.options();
  return static_cast<double>(6 * count(model) + 12 * o.layers * o.width * o.context);
}

example::Pace pace_of(const Config& config, const Task& task) {
  return {config.max_iters, std::min(config.eval_interval, config.max_iters),
          config.batch_size * config.grad_accum * task.context(), "tokens", 100};
}

nn::Schedule schedule(const Config& c) {
  const nn::Schedule down =
      nn::cosine({.peak = c.lr, .steps = c.max_iters - c.warmup_iters, .last = c.min_lr});
  return c.warmup_iters > 0 ? nn::warm_up(c.warmup_iters, down) : down;
}

}  // namespace

Trainer::Trainer(const Config& config, std::unique_ptr<Task> task, bool recompute, Device device)
    : example::Trainer(pace_of(config, *task), device),
      config_(config),
      task_(std::move(task)),
      model_(seeded_model(config, *task_, recompute, device)),
      parameters_(model_->parameters()),
      optimizer_(nn::decay_groups(*model_, config.weight_decay), {.beta2 = config.beta2}),
      rate_(schedule(config)),
      rates_(nn::tabulate(rate_, config.max_iters, device)),
      graph_(device, [this] { learn(); }),
      best_(task_->better(0, 1) ? std::numeric_limits<double>::infinity() : -1) {
  set_effort({operations_a_token(*model_), config.dtype == "bf16" ? peak_flops(device) : 0});
}

std::int64_t Trainer::parameters() const { return count(*model_); }

Tensors Trainer::train_step() {
  graph_.run();
  return {loss_.clone(), norm_.clone()};  // the next step writes over them
}

void Trainer::learn() {
  const auto parts = static_cast<double>(config_.grad_accum);
  Tensor sum;
  for (std::int64_t part = 0; part < config_.grad_accum; ++part) {
    const Batch batch = task_->batch(
        {.seed = static_cast<std::uint64_t>(config_.seed),
         .first = static_cast<std::uint64_t>(part * config_.batch_size),
         .count = config_.batch_size,
         .steps = optimizer_.count().data<std::int32_t>(),
         .a_step = static_cast<std::uint64_t>(config_.grad_accum * config_.batch_size)});
    Tensor loss = model_->loss(batch.x, batch.y, {.ignore_index = ignored, .check_targets = false});
    if (config_.grad_accum > 1) loss = loss / parts;
    loss.backward();
    sum = sum.defined() ? sum + loss.detach() : loss.detach();
  }
  const double clip =
      config_.grad_clip > 0 ? config_.grad_clip : std::numeric_limits<double>::max();
  norm_ = nn::clip_grad_norm(parameters_, clip);
  optimizer_.step(rates_);
  optimizer_.zero_grad();
  loss_ = sum;
}

std::string Trainer::stage() const { return "step " + shown(step()) + "/" + shown(total_steps()); }

example::Json Trainer::figures() const {
  return {{"gradient_norm", gradient_norm_}, {"rate", rate_(step() - 1)}};
}

Trainer::Report Trainer::end_section(const Section& section) {
  const std::int64_t peak = memory_stats(device()).peak;  // of training alone
  measured_ = task_->measure(*model_);
  improved_ = task_->better(measured_, best_);
  if (improved_) best_ = measured_;
  const double flops = section.rate * pace().effort.an_item;
  const std::string said = sample();
  reset_peak(device());
  return {{{task_->key(), measured_},
           {"seconds", section.seconds},
           {"tokens_per_second", section.rate},
           {"model_flops_per_second", flops},
           {"peak_bytes", peak}},
          stage() + ": " + task_->line(measured_) + ", " + example::with_commas(section.rate) +
              " tokens/s, " + example::flops_text(flops) + said};
}

// What a text model has to say by now.
std::string Trainer::sample() {
  if (config_.task != "text") return "";
  model_->eval();
  std::string out = "\n  | ";
  generate(*model_, {0}, 160,
           {.seed = static_cast<std::uint64_t>(step()), .known = task_->vocabulary().size()},
           [&](std::int32_t token) {
             const std::string character = task_->vocabulary().decode(token);
             out += character == "\n" ? "\n  | " : character;
           });
  model_->train();
  return out;
}

void Trainer::save(const example::OutputFolder& out) {
  // The best first: were the run killed in between, it would go on from before both.
  if (improved_) save_run(out / "best.safetensors", state());
  improved_ = false;
  save_run(out / "checkpoint.safetensors", state());
}

std::vector<example::Panel> Trainer::panels(const std::vector<example::Json>& records) const {
  using example::curve;
  const example::Curve loss = curve(records, "loss", "training", example::blue);
  const bool of_text = config_.task == "text";
  const example::Curve measured =
      curve(records, task_->key(), of_text ? "validation" : "unseen", example::orange, true);
  if (!of_text) return {{"loss", "step", {loss}}, {"exact answers, %", "step", {measured}}};
  return {{"loss", "step", {loss, measured}},
          {"learning rate", "step", {curve(records, "rate", "rate", example::blue)}}};
}

example::Run Trainer::state() {
  example::Description description = describe(config_);
  description.merge(task_->description());
  description.insert({{"format", checkpoint_format},
                      {"model", described(model_->options())},
                      {"vocabulary", task_->vocabulary().utf8()}});
  return {std::move(description),
          *model_,
          optimizer_,
          step(),
          {{"best", shown(best_)}, {"shown_loss", shown(shown_loss())}}};
}

void Trainer::resume(const std::filesystem::path& path) {
  example::Run run = state();
  load_run(path, run, total_steps());
  best_ = noted(run, "best", path);
  go_on_from(run.step, noted(run, "shown_loss", path));
  if (step() == total_steps()) measured_ = task_->measure(*model_);
}

}  // namespace transformer
