// Trains a small transformer: to add, to sort, or to continue a text.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "common/exit.h"
#include "common/flags.h"
#include "common/text.h"
#include "transformer/model.h"
#include "transformer/trainer.h"

namespace {

using namespace transformer;
using example::above_zero;
using example::not_negative;
using example::probability;

struct Options {
  std::string text;
  std::string config;  // "": by the task
  std::string device = "auto";
  std::string out;  // "": out/ and the task
  std::string eval;
  double target = example::no_default;
  bool recompute = false;
  bool resume = false;
  bool dry_run = false;
  Config run;
};

void add_flags(example::Flags& flags, Options& o) {
  constexpr std::int64_t many = 1000000000;
  Config& c = o.run;
  flags.choice("--task", c.task, {"addition", "sort", "text"}, "what to learn");
  flags.text("--text", o.text,
             "file to learn (else tinyshakespeare/input.txt in $EBB_DATA, ./data, ~/.cache/ebb)");
  flags.choice("--config", o.config, {"tiny", "char", "gpt2"},
               "sizes and settings; those given by flags stand (default: tiny, for text char)");
  flags.device(o.device);
  flags.choice("--dtype", c.dtype, {"f32", "bf16"}, "of weights and activations");
  flags.choice("--architecture", c.architecture, {"gpt", "llama"},
               "learned positions, GELU, layer norm; or rotary ones, SwiGLU, RMS norm");
  flags.whole("--digits", c.digits, 2, 18, "of each number to add, or how many to sort");
  flags.whole("--block-size", c.block_size, 1, 1 << 20, "characters of text that are seen at once");
  flags.whole("--n-layer", c.n_layer, 1, 10000, "blocks");
  flags.whole("--n-head", c.n_head, 1, 10000, "heads of attention");
  flags.whole("--n-embd", c.n_embd, 1, 1 << 20, "width");
  flags.real("--dropout", c.dropout, probability, "share of activations dropped");
  flags.whole("--max-iters", c.max_iters, 1, 10000000, "steps");
  flags.whole("--batch-size", c.batch_size, 1, 1 << 20, "sequences in a step, or in each part");
  flags.whole("--grad-accum", c.grad_accum, 1, 1 << 20, "parts of a step, one after another");
  flags.real("--lr", c.lr, above_zero, "peak learning rate");
  flags.real("--min-lr", c.min_lr, not_negative, "the last step's");
  flags.whole("--warmup-iters", c.warmup_iters, 0, many, "steps up to the peak");
  flags.real("--weight-decay", c.weight_decay, not_negative, "of matrices and tables");
  flags.real("--beta2", c.beta2, probability, "AdamW's; beta1 is 0.9");
  flags.real("--grad-clip", c.grad_clip, not_negative, "longest gradient; 0: any");
  flags.whole("--eval-interval", c.eval_interval, 1, many, "steps between evaluations");
  flags.whole("--seed", c.seed, 0, many, "of weights, batches, dropout, samples");
  flags.toggle("--recompute", o.recompute, "less memory: activations are computed again");
  flags.text("--out", o.out,
             "folder for checkpoints, metrics, curves (default: out/ and the task)");
  flags.real("--target", o.target, not_negative,
             "percent exact, or validation loss, that must be reached (default: by the task)");
  flags.toggle("--resume", o.resume, "go on from the checkpoint in --out");
  flags.text("--eval", o.eval, "only measure this checkpoint");
  flags.toggle("--dry-run", o.dry_run, "one step, nothing written");
  flags.apart({"--eval", "--resume", "--dry-run"});
}

void require_flags(bool ok, const std::string& message) {
  if (!ok) throw example::Stop(example::exit_code::usage, message);
}

// What no flag tells of itself.
void check_together(const example::Flags& flags, const Config& c) {
  const bool of_text = c.task == "text";
  for (const char* flag : {"--text", "--block-size", "--digits"})
    require_flags(!flags.given(flag) || of_text != (std::string(flag) == "--digits"),
                  std::string(flag) + ": not for --task " + c.task);
  const int most = Problems::most_digits(c.task == "sort" ? Skill::sort : Skill::addition);
  require_flags(of_text || c.digits <= most,
                example::formatted("--digits: at most %d for this task", most));
  const auto heads = static_cast<long long>(c.n_head), width = static_cast<long long>(c.n_embd);
  require_flags(width % heads == 0, example::formatted("--n-head: does not divide --n-embd; got "
                                                       "%lld heads of %lld",
                                                       heads, width));
  require_flags(c.architecture != "llama" || width / heads % 2 == 0,
                example::formatted("--n-head: llama's rotary positions turn pairs of numbers; got "
                                   "heads of %lld; expected an even width of each",
                                   width / heads));
  require_flags(c.warmup_iters < c.max_iters,
                "--warmup-iters: leaves no step after it; got " + example::shown(c.warmup_iters) +
                    "; expected fewer than --max-iters " + example::shown(c.max_iters));
}

// Reads twice: first for what names a configuration, then what is given over its settings.
bool parse(int argc, char** argv, Options& o, ebb::Device& device) {
  example::Flags flags("train_transformer",
                       "Trains a transformer to add (the default, whose settings stand here), to "
                       "sort, or to continue a text.");
  add_flags(flags, o);
  if (!flags.parse(argc, argv)) return false;
  device = example::choose_device(o.device);
  if (o.config.empty()) o.config = o.run.task == "text" ? "char" : "tiny";
  o.run = preset(o.run.task, o.config, device.is_cuda());
  const double last_share = o.run.min_lr / o.run.lr;
  flags.parse(argc, argv);
  if (flags.given("--lr") && !flags.given("--min-lr")) o.run.min_lr = o.run.lr * last_share;
  if (!flags.given("--warmup-iters"))
    o.run.warmup_iters = std::min(o.run.warmup_iters, o.run.max_iters / 10);
  if (!flags.given("--target"))
    o.target = default_target(o.run, o.text.empty() ? o.config : "another text", device.is_cuda());
  if (o.out.empty()) o.out = "out/" + o.run.task;
  check_together(flags, o.run);
  return true;
}

int report(const Task& task, double measured, double target) {
  std::string line = task.line(measured);
  if (std::isnan(target)) return example::report_target(true, line);
  line += example::formatted(" (target %.2f", target) + (task.better(0, 1) ? ")" : " %)");
  return example::report_target(!task.better(target, measured) && !std::isnan(measured), line);
}

int train(const Options& o, std::unique_ptr<Task> task, ebb::Device device) {
  Trainer trainer(o.run, std::move(task), o.recompute, device);
  const std::int64_t sequences = o.run.batch_size * o.run.grad_accum;
  std::printf("%s parameters, %lld steps of %lld sequences\n",
              example::with_commas(static_cast<double>(trainer.parameters())).c_str(),
              static_cast<long long>(trainer.total_steps()), static_cast<long long>(sequences));
  if (const auto code = trainer.carry_out({o.out, o.resume, o.dry_run})) return *code;
  return report(trainer.task(), o.run.task == "text" ? trainer.best() : trainer.measured(),
                o.target);
}

// A checkpoint's model on the task's data, if it is of the same characters.
int evaluate(const Options& o, ebb::Device device) {
  const Loaded loaded = load_model(o.eval, device);
  Config config = o.run;
  const bool of_text = config.task == "text";
  config.block_size = loaded.model->options().context;
  if (loaded.problems) config.digits = loaded.problems->digits;
  const auto task = make_task(config, o.text, device);
  ebb::require(task->vocabulary().utf8() == loaded.vocabulary.utf8() && of_text == !loaded.problems,
               ebb::Kind::format, "eval", ebb::text(o.eval, " is of another task or text"),
               ebb::text(loaded.vocabulary.size(), " characters"),
               ebb::text("the ", task->vocabulary().size(), " of --task ", config.task));
  std::printf("%s\n", task->about().c_str());
  return report(*task, task->measure(*loaded.model), o.target);
}

int body(int argc, char** argv) {
  Options o;
  ebb::Device device;
  if (!parse(argc, argv, o, device)) return example::exit_code::ok;
  std::printf("device: %s, %s, seed %lld\n", device.is_cuda() ? "cuda" : "cpu", o.run.dtype.c_str(),
              static_cast<long long>(o.run.seed));
  if (!o.eval.empty()) return evaluate(o, device);
  auto task = make_task(o.run, o.text, device);
  std::printf("%s\n", task->about().c_str());
  return train(o, std::move(task), device);
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, body); }
