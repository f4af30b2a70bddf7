#include "transformer/task.h"

#include <algorithm>

#include "common/text.h"

namespace transformer {

using namespace ebb;
using example::formatted;
using example::shown;

namespace {

Tensor flat(const Tensor& logits) { return reshape(logits, {-1, logits.size(-1)}); }

// Evaluation is not recorded, and drops nothing.
class Evaluating {
 public:
  explicit Evaluating(nn::Module& model) : model_(model), before_(model.training()) {
    model.eval();
  }
  ~Evaluating() { model_.train(before_); }
  Evaluating(const Evaluating&) = delete;
  Evaluating& operator=(const Evaluating&) = delete;

 private:
  nn::Module& model_;
  bool before_;
  NoGrad guard_;
};

class TextTask : public Task {
 public:
  TextTask(Text text, std::int64_t context, Device device)
      : path_(text.path),
        vocabulary_(text.vocabulary),
        crc32_(text.crc32),
        context_(context),
        training_(on(text.training(), device)),
        validation_(on(text.validation(), device)) {
    require(training_.numel() > context, Kind::value, "text",
            ebb::text('"', path_, "\" is shorter than a context: nine tenths are to train on"),
            ebb::text(training_.numel(), " characters there"),
            ebb::text("more than --block-size ", context));
    require(validation_.numel() > 1, Kind::value, "text",
            ebb::text('"', path_, "\" leaves nothing to validate on"),
            ebb::text(validation_.numel(), " characters"), "2 or more");
  }

  const Vocabulary& vocabulary() const override { return vocabulary_; }
  std::int64_t context() const override { return context_; }
  Batch batch(Rows rows) const override { return draw_windows(training_, context_, rows); }
  bool better(double a, double b) const override { return a < b; }
  std::string key() const override { return "validation_loss"; }
  std::string line(double measured) const override {
    return formatted("validation loss %.4f", measured);
  }
  std::string about() const override {
    return path_ + ": " + shown(training_.numel()) + " characters to train on, " +
           shown(validation_.numel()) + " to validate, " + shown(vocabulary_.size()) +
           " different ones";
  }
  example::Description description() const override {
    return {{"data_crc32", shown(std::int64_t{crc32_})}};
  }

  double measure(nn::Module& model) const override {
    const Evaluating guard(model);
    const std::int64_t n = validation_.numel() - 1;
    constexpr std::int64_t together = 4096;  // tokens
    const std::int64_t rows = std::max<std::int64_t>(1, together / context_);
    double sum = 0;
    for (std::int64_t at = 0; at < n;) {
      const std::int64_t whole = std::min(rows, (n - at) / context_);
      const std::int64_t length = whole > 0 ? context_ : n - at;  // the rest is a shorter window
      const std::int64_t end = at + std::max<std::int64_t>(whole, 1) * length;
      const Tensor x = reshape(slice(validation_, 0, at, end), {-1, length});
      const Tensor logits = flat(model(x)).to(Dtype::f32);
      sum += cross_entropy(logits, slice(validation_, 0, at + 1, end + 1),
                           {.reduction = Reduction::sum, .check_targets = false})
                 .item();
      at = end;
    }
    return sum / static_cast<double>(n);
  }

 private:
  static Tensor on(const Tokens& tokens, Device device) {
    return tensor(tokens, {static_cast<std::int64_t>(tokens.size())}, device);
  }
  std::string path_;
  Vocabulary vocabulary_;
  std::uint32_t crc32_;
  std::int64_t context_;
  Tensor training_;
  Tensor validation_;
};

class ProblemTask : public Task {
 public:
  ProblemTask(Problems problems, Device device)
      : problems_(problems),
        vocabulary_(problems.vocabulary()),
        device_(device),
        unseen_(unseen(problems, problems.skill == Skill::addition ? 10000 : 5000)) {}

  const Vocabulary& vocabulary() const override { return vocabulary_; }
  std::int64_t context() const override { return problems_.length() - 1; }
  Batch batch(Rows rows) const override { return draw_problems(problems_, rows, device_); }
  bool better(double a, double b) const override { return a > b; }
  std::string key() const override { return "exact"; }
  std::string line(double measured) const override {
    return formatted("exact answers %.2f %% of ", measured) + shown(count()) + " unseen";
  }
  std::string about() const override {
    return std::string(problems_.skill == Skill::addition ? "addition" : "sort") + " of " +
           std::to_string(problems_.digits) + " digits: " + shown(count()) +
           " problems kept unseen to test on";
  }
  example::Description description() const override {
    return {{"digits", std::to_string(problems_.digits)}};
  }

  double measure(nn::Module& model) const override {
    const Evaluating guard(model);
    constexpr size_t together = 500;
    std::int64_t right = 0;
    for (size_t i = 0; i < unseen_.size(); i += together)
      right += exact(model, std::span(unseen_).subspan(i, std::min(together, unseen_.size() - i)));
    return 100 * static_cast<double>(right) / static_cast<double>(count());
  }

 private:
  std::int64_t count() const { return static_cast<std::int64_t>(unseen_.size()); }

  std::int64_t exact(nn::Module& model, std::span<const std::uint64_t> asked) const {
    const int length = problems_.length() - 1;
    Tokens x;
    for (const std::uint64_t problem : asked)
      for (int i = 0; i < length; ++i) x.push_back(problems_.token(problem, i));
    const Tensor tokens = tensor(x, {static_cast<std::int64_t>(asked.size()), length}, device_);
    const auto logits = model(tokens).to(Dtype::f32).to_vector<float>();
    const size_t classes = logits.size() / x.size();
    std::int64_t right = 0;
    for (size_t r = 0; r < asked.size(); ++r) {
      bool all = true;
      for (int i = problems_.question() - 1; i < length; ++i) {
        const auto at = (r * static_cast<size_t>(length) + static_cast<size_t>(i)) * classes;
        const auto row = std::span(logits).subspan(at, classes);
        const auto likeliest = std::max_element(row.begin(), row.end()) - row.begin();
        all = all && likeliest == problems_.token(asked[r], i + 1);
      }
      right += all;
    }
    return right;
  }

  Problems problems_;
  Vocabulary vocabulary_;
  Device device_;
  std::vector<std::uint64_t> unseen_;
};

}  // namespace

std::unique_ptr<Task> make_task(const Config& config, const std::string& text_path, Device device) {
  if (config.task == "text")
    return std::make_unique<TextTask>(load_text(text_path), config.block_size, device);
  const Skill skill = config.task == "sort" ? Skill::sort : Skill::addition;
  return std::make_unique<ProblemTask>(Problems{skill, static_cast<int>(config.digits)}, device);
}

}  // namespace transformer
