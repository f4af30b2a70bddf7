// What the transformer example learns from: characters, texts, windows, problems, and choosing.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "folder.h"
#include "transformer/batch.h"
#include "transformer/config.h"
#include "transformer/peak.h"
#include "transformer/sampler.h"
#include "transformer/task.h"
#include "transformer/trainer.h"
#include "twins.h"

using namespace transformer;
using ebb::Tensor;
using ebb::test::check_error;

namespace {

std::vector<std::int32_t> ints(const Tensor& x) { return x.to_vector<std::int32_t>(); }

// A problem as one would write it, by another way than Problems::token.
std::string written(const Problems& problems, std::uint64_t problem) {
  const auto n = static_cast<std::size_t>(problems.digits);
  const auto padded = [](std::uint64_t number, std::size_t width) {
    std::string s = std::to_string(number);
    return std::string(width - s.size(), '0') + s;
  };
  if (problems.skill == Skill::sort) {
    const std::string question = padded(problem, n);
    std::string answer = question;
    std::sort(answer.begin(), answer.end());
    return question + ">" + answer;
  }
  const std::string both = padded(problem, 2 * n);
  const std::uint64_t sum = std::stoull(both.substr(0, n)) + std::stoull(both.substr(n));
  std::string answer = padded(sum, n + 1);
  std::reverse(answer.begin(), answer.end());
  return both.substr(0, n) + "+" + both.substr(n) + "=" + answer;
}

std::string told(const Problems& problems, std::uint64_t problem) {
  Tokens tokens;
  for (int i = 0; i < problems.length(); ++i) tokens.push_back(problems.token(problem, i));
  return problems.vocabulary().decode(tokens);
}

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

TEST_CASE("vocabulary: a text's characters in order, there and back") {
  const std::u32string text = code_points("héllo\n世界 héé", "it");
  const Vocabulary vocabulary = Vocabulary::of(text);
  CHECK(vocabulary.utf8() == "\n hloé世界");
  CHECK(vocabulary.size() == 8);
  const Tokens tokens = vocabulary.encode(text, "it");
  CHECK(tokens.front() == 2);
  CHECK(vocabulary.decode(tokens) == "héllo\n世界 héé");
  CHECK(vocabulary.decode(5) == "é");
  check_error(ebb::Kind::value, {"the prompt has a character", "'ß' at place 1"},
              [&] { vocabulary.encode(U"hß", "the prompt"); });
  check_error(ebb::Kind::value, {"'character 7' at place 0"},
              [&] { vocabulary.encode(U"\a", "the prompt"); });
  check_error(ebb::Kind::format, {"vocabulary: "}, [] { Vocabulary(U"aba"); });
  check_error(ebb::Kind::format, {"vocabulary: "}, [] { Vocabulary(U""); });
}

TEST_CASE("code_points: what is not UTF-8 is refused with its byte") {
  const std::vector<std::pair<std::string, std::string>> bad = {{"ab\xff", "byte 2"},
                                                                {"\xc3", "byte 0"},
                                                                {"é\xc0\xaf", "byte 2"},
                                                                {"\xed\xa0\x80", "byte 0"},
                                                                {"a\xf5\x80\x80\x80", "byte 1"},
                                                                {"x\x80", "byte 1"}};
  for (const auto& [text, place] : bad)
    check_error(ebb::Kind::format, {"T is not UTF-8", place}, [&] { code_points(text, "T"); });
  CHECK(code_points(std::string("a\0b", 3), "it").size() == 3);
  CHECK(code_points("\xef\xbb\xbf\r\n", "it") == U"\ufeff\r\n");  // kept as they are
}

TEST_CASE("text: nine tenths to train on, the rest to validate") {
  const ebb::test::Folder folder;
  const std::string path = folder.path / "text";
  ebb::test::write(path, "abcabcabcabcabcabcabcabcab");
  const Text text = load_text(path);
  CHECK(text.vocabulary.utf8() == "abc");
  CHECK(text.training().size() == 23);
  CHECK(text.validation() == Tokens{2, 0, 1});
  CHECK(text.crc32 != 0);
  ebb::test::write(path, "");
  check_error(ebb::Kind::value, {"text: ", "is empty"}, [&] { load_text(path); });
  ebb::test::write(path, std::string("é\0b\0", 5));
  check_error(ebb::Kind::format, {"text: ", "U+0000 at byte 2"}, [&] { load_text(path); });
  check_error(ebb::Kind::io, {"text: ", "a directory"}, [&] { load_text(folder.path); });
}

TEST_CASE("windows: rows of the text, and the same shifted by one") {
  Tokens tokens(1000);
  std::iota(tokens.begin(), tokens.end(), 0);
  for (const ebb::Device device : ebb::test::devices()) {
    const Tensor text = ebb::tensor(tokens, {1000}, device);
    const Batch batch = draw_windows(text, 7, {5, 40, 3000});
    const auto x = ints(batch.x), y = ints(batch.y);
    std::set<std::int32_t> starts;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (i % 7 != 0) CHECK(x[i] == x[i - 1] + 1);
      CHECK(y[i] == x[i] + 1);
      if (i % 7 == 0) starts.insert(x[i]);
    }
    // Each of the 993 places is as likely as another: 3,000 draws leave about 48 of them out.
    CHECK(*starts.begin() == 0);
    CHECK(*starts.rbegin() == 992);
    CHECK(std::abs(static_cast<double>(starts.size()) - 945) <= 40);
    // A row depends on its number only.
    const auto later = ints(draw_windows(text, 7, {5, 1040, 2}).x);
    CHECK(std::equal(later.begin(), later.end(), x.begin() + 7000));
    CHECK(ints(draw_windows(text, 7, {6, 40, 3000}).x) != x);
    check_error(ebb::Kind::value, {"text: "}, [&] { draw_windows(text, 1000, {0, 0, 1}); });
    CHECK(ints(draw_windows(text, 999, {0, 0, 1}).y).back() == 999);
  }
}

TEST_CASE("problems: what is asked, and its answer") {
  const Problems addition{Skill::addition, 3};
  CHECK(told(addition, 123456) == "123+456=9750");
  CHECK(told(addition, 999999) == "999+999=8991");
  CHECK(told(addition, 0) == "000+000=0000");
  const Problems sort{Skill::sort, 10};
  CHECK(told(sort, 3141592653) == "3141592653>1123345569");
  for (const Problems& problems :
       {addition, sort, Problems{Skill::addition, 2}, Problems{Skill::addition, 9},
        Problems{Skill::sort, 2}, Problems{Skill::sort, 18}})
    for (std::uint64_t i = 0; i < 1000; ++i) {
      const std::uint64_t problem = drawn(problems, {3, 0}, i, i % 2 == 0);
      CHECK(problem < problems.count());
      CHECK(told(problems, problem) == written(problems, problem));
    }
}

TEST_CASE("problems: batches hold what is not held out, and ask for answers only") {
  for (const ebb::Device device : ebb::test::devices())
    for (const Problems& problems : {Problems{Skill::addition, 3}, Problems{Skill::sort, 4}}) {
      const Batch batch = draw_problems(problems, {1, 9, 2000}, device);
      const auto x = ints(batch.x), y = ints(batch.y);
      const auto length = static_cast<std::size_t>(problems.length() - 1);
      const auto asked = static_cast<std::size_t>(problems.question() - 1);
      REQUIRE(batch.x.shape() == ebb::Shape{2000, problems.length() - 1});
      for (std::size_t r = 0; r < 2000; ++r) {
        const std::uint64_t problem = problem_of(problems, {1, 9, 2000}, static_cast<int>(r));
        CHECK_FALSE(held_out(problem));
        const Tokens row(x.begin() + static_cast<std::ptrdiff_t>(r * length),
                         x.begin() + static_cast<std::ptrdiff_t>((r + 1) * length));
        const std::string whole = written(problems, problem);
        CHECK(problems.vocabulary().decode(row) == whole.substr(0, length));
        for (std::size_t i = 0; i < length; ++i) {
          const std::int32_t wanted = i < asked ? ignored : whole[i + 1] - '0';
          CHECK(y[r * length + i] == wanted);
        }
      }
    }
}

TEST_CASE("problems: the unseen are distinct, as many as asked, and never drawn to train on") {
  for (const auto& [problems, expected] :
       std::vector<std::pair<Problems, std::size_t>>{{{Skill::addition, 3}, 10000},
                                                     {{Skill::addition, 5}, 10000},
                                                     {{Skill::sort, 10}, 10000},
                                                     {{Skill::addition, 2}, 0},
                                                     {{Skill::sort, 2}, 0}}) {
    const auto all = unseen(problems, 10000);
    const std::set<std::uint64_t> different(all.begin(), all.end());
    CHECK(different.size() == all.size());
    if (expected > 0) CHECK(all.size() == expected);
    CHECK(all.size() > 0);  // there is something to test on, however few there are
    CHECK(std::all_of(all.begin(), all.end(), held_out));
    CHECK(unseen(problems, 10000) == all);
    std::int64_t trained = 0;
    for (std::uint64_t i = 0; i < 20000; ++i)
      trained += different.contains(drawn(problems, {7, batch_stream}, i, false));
    CHECK(trained == 0);
  }
  std::int64_t held = 0;
  for (std::uint64_t p = 0; p < 1000000; ++p) held += held_out(p);
  CHECK(std::abs(static_cast<double>(held) - 62500) <= 1000);  // a sixteenth, 4 deviations
}

TEST_CASE("problems: questions are read as people write them") {
  const Problems addition{Skill::addition, 3}, sort{Skill::sort, 5};
  const auto asked = [](const Problems& problems, const std::string& text) {
    return problems.vocabulary().decode(question(problems, text));
  };
  CHECK(asked(addition, "12+7") == "012+007=");
  CHECK(asked(addition, "999+000=") == "999+000=");
  CHECK(asked(sort, "52431") == "52431>");
  CHECK(asked(sort, "52431>") == "52431>");
  CHECK(readable(addition, {9, 1, 0, 0}) == "19");
  CHECK(readable(addition, {0, 0, 0, 0}) == "0");
  CHECK(readable(addition, {0, 0, 0, 1}) == "1000");
  CHECK(readable(sort, {0, 1, 1, 2, 3}) == "01123");
  for (const std::string bad : {"", "12", "12+", "+7", "1234+1", "1+2+3", "a+1", "1 + 1", "1=1"})
    check_error(ebb::Kind::value, {"addition: "}, [&] { question(addition, bad); });
  for (const std::string bad : {"", "5243", "524310", "5243a"})
    check_error(ebb::Kind::value, {"sort: "}, [&] { question(sort, bad); });
}

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
