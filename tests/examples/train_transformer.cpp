// train_transformer from outside: what runs leave behind, and that the same run gives the same
// bytes, however often it is stopped. See train_transformer_errors.cpp for what it refuses.
#include "metrics.h"
#include "tiny_text.h"

using namespace transformer::test;

namespace {

// Stops each run once it has shown that line, and goes on with the next.
void train_in_parts(const TinyText& tiny, const Words& more, const Words& lines) {
  bool first = true;
  for (const std::string& line : lines) {
    Words words = tiny.words(more);
    if (!first) words.emplace_back("--resume");
    first = false;
    Program program("train_transformer", words, tiny.around());
    CHECK(program.shows(line));
    program.send(SIGINT);
    const Ended ended = program.end();
    CHECK(ended.err == "");
    if (ended.code == 0) return;
    CHECK(ended.code == 130);
    CHECK(ended.out.find("stopped at step ") != std::string::npos);
  }
  check_success(tiny.train(joined(more, {"--resume"})));
}

}  // namespace

TEST_CASE("train_transformer: a run on a text leaves checkpoints, metrics and curves") {
  for (const std::string& device : device_names()) {
    CAPTURE(device);
    const TinyText tiny;
    const Ended ended = tiny.train({"--device", device, "--max-iters", "100"});
    check_success(ended);
    for (const std::string part :
         {"characters to train on", "parameters, 100 steps of 4 sequences", "tokens/s", "FLOP/s",
          "step 8/100: validation loss ", "\n  | ", "\nvalidation loss "})
      CHECK_MESSAGE(ended.out.find(part) != std::string::npos, part << " in " << ended.out);
    CHECK(ended.out.find("(target") == std::string::npos);
    CHECK(names_in(tiny.path / "out") ==
          Words{"best.safetensors", "checkpoint.safetensors", "curves.png", "metrics.jsonl"});
    CHECK(read(tiny.path / "out/curves.png").starts_with("\x89PNG\r\n\x1a\n"));
    int evaluations = 0, losses = 0;
    double first = 0, last = 0;
    for (const auto& record : metrics(tiny.path / "out/metrics.jsonl")) {
      if (record.contains("validation_loss")) {
        last = record.at("validation_loss");
        if (evaluations++ == 0) first = last;
        CHECK(record.at("tokens_per_second").get<double>() > 0);
        CHECK(record.at("model_flops_per_second").get<double>() > 0);
      } else {
        ++losses;
        CHECK(record.at("step") == 50 * losses);
        CHECK(record.at("loss").get<double>() > 0);
        CHECK(record.at("gradient_norm").get<double>() > 0);
        CHECK(record.at("rate").get<double>() > 0);
      }
    }
    CHECK(evaluations == 13);  // every 8 steps, and at the end
    CHECK(losses == 2);
    CHECK(last < first);
  }
}

TEST_CASE("train_transformer: the same seed gives the same bytes, another seed others") {
  for (const std::string& device : device_names()) {
    CAPTURE(device);
    const TinyText tiny;
    const auto train = [&](const std::string& out, const std::string& seed) {
      check_success(
          tiny.train({"--device", device, "--out", out, "--seed", seed, "--dropout", "0.2"}));
    };
    train("a", "0"), train("b", "0"), train("c", "1");
    CHECK(same_bytes(tiny.checkpoint("a"), tiny.checkpoint("b")));
    CHECK(same_bytes(tiny.path / "a/best.safetensors", tiny.path / "b/best.safetensors"));
    CHECK_FALSE(same_bytes(tiny.checkpoint("a"), tiny.checkpoint("c")));
  }
}

TEST_CASE("train_transformer: the number of threads and recomputation do not change a bit") {
  const TinyText tiny;
  for (const std::string threads : {"1", "2"}) {
    auto around = tiny.around();
    around.environment = {"OMP_NUM_THREADS=" + threads};
    check_success(tiny.train({"--out", threads, "--dropout", "0.1", "--batch-size", "16"}, around));
  }
  check_success(
      tiny.train({"--out", "again", "--dropout", "0.1", "--batch-size", "16", "--recompute"}));
  CHECK(same_bytes(tiny.checkpoint("1"), tiny.checkpoint("2")));
  CHECK(same_bytes(tiny.checkpoint("1"), tiny.checkpoint("again")));
}

TEST_CASE("train_transformer: interrupted and resumed, a run reaches the same bytes") {
  for (const std::string& device : device_names())
    for (const Words& more :
         {Words{"--dropout", "0.2"}, Words{"--dropout", "0.1", "--architecture", "llama"},
          Words{"--grad-accum", "2", "--dtype", "bf16"},
          Words{"--task", "addition", "--target", "0"}}) {
      CAPTURE(device);
      CAPTURE(more);
      const TinyText tiny;
      const auto words = [&](const std::string& out) {
        return joined(
            {"--out", out, "--device", device, "--max-iters", "3000", "--eval-interval", "700"},
            more);
      };
      check_success(tiny.train(words("whole")));
      // In the middle of the first interval, and of a later one.
      train_in_parts(tiny, words("parts"), {"step 1/", "step 1400/3000: "});
      CHECK(same_bytes(tiny.checkpoint("whole"), tiny.checkpoint("parts")));
      CHECK(same_bytes(tiny.path / "whole/best.safetensors", tiny.path / "parts/best.safetensors"));
      CHECK(same_bytes(tiny.path / "whole/curves.png", tiny.path / "parts/curves.png"));
      const auto records = computed(tiny.path / "whole/metrics.jsonl");
      CHECK(records.front().contains("loss"));
      CHECK(records == computed(tiny.path / "parts/metrics.jsonl"));
    }
}

TEST_CASE("train_transformer: a new run leaves nothing of an older one, a resumed one all") {
  const TinyText tiny;
  check_success(tiny.train());
  const Words all = {"best.safetensors", "checkpoint.safetensors", "curves.png", "metrics.jsonl"};
  check_success(tiny.train({"--resume"}));
  CHECK(names_in(tiny.path / "out") == all);
  const Words longer = {"--max-iters", "1000000", "--eval-interval", "1000000"};
  Program program("train_transformer", tiny.words(longer), tiny.around());
  CHECK(program.shows("step 1/"));
  program.send(SIGINT);
  CHECK(program.end().code == 130);
  CHECK(names_in(tiny.path / "out") == Words{"checkpoint.safetensors", "metrics.jsonl"});
}

TEST_CASE("train_transformer: killed and resumed, a run reaches the same bytes") {
  const TinyText tiny;
  const Words more = {"--max-iters", "600", "--eval-interval", "100", "--dropout", "0.2"};
  check_success(tiny.train(joined(more, {"--out", "whole"})));
  Program program("train_transformer", tiny.words(more), tiny.around());
  CHECK(program.shows("step 200/600: "));
  program.send(SIGKILL);
  const int code = program.end().code;
  CHECK((code == -SIGKILL || code == 0));
  check_success(tiny.train(joined(more, {"--resume"})));
  CHECK(same_bytes(tiny.checkpoint("whole"), tiny.checkpoint()));
}

TEST_CASE("train_transformer: problems are measured, and a missed target is exit code 1") {
  for (const std::string task : {"addition", "sort"}) {
    CAPTURE(task);
    const TinyText tiny;
    const Words more = {"--task", task, "--digits", "2", "--eval-interval", "20"};
    const Ended missed = tiny.train(more);
    check_refused(missed, 1, {"the target was missed"});
    CHECK(missed.out.find("exact answers ") != std::string::npos);
    CHECK(missed.out.find(task == "sort" ? "(target 100.00 %)" : "(target 99.00 %)") !=
          std::string::npos);
    check_success(tiny.train(joined(more, {"--target", "0", "--resume"})));
  }
}

TEST_CASE("train_transformer: --eval measures a checkpoint as its run did, and writes nothing") {
  const auto last_line = [](const std::string& out) {
    return out.substr(out.rfind('\n', out.size() - 2) + 1);
  };
  const TinyText tiny;
  check_success(tiny.train({"--target", "9"}));
  const std::string bytes = read(tiny.checkpoint());
  const Words before = names_in(tiny.path);
  const Words eval = {"--eval", tiny.checkpoint().string(), "--out", "unused", "--target", "9"};
  const Ended measured = tiny.train(eval);
  check_success(measured);
  CHECK(measured.out.find("(target 9.00)") != std::string::npos);
  CHECK(last_line(measured.out) == last_line(tiny.train({"--resume", "--target", "9"}).out));
  CHECK(names_in(tiny.path) == before);
  CHECK(read(tiny.checkpoint()) == bytes);
  check_refused(tiny.train({"--eval", tiny.checkpoint().string(), "--target", "0.1"}), 1,
                {"target"});
}

TEST_CASE("train_transformer: --dry-run takes one step and writes nothing") {
  for (const Words& more : {Words{}, Words{"--task", "addition"}, Words{"--task", "sort"},
                            Words{"--grad-accum", "3", "--grad-clip", "0"}}) {
    const TinyText tiny;
    const Ended ended = tiny.train(joined(more, {"--dry-run"}));
    check_success(ended);
    CHECK(ended.out.find("one step: loss ") != std::string::npos);
    CHECK(names_in(tiny.path) == Words{"text.txt"});
  }
}

TEST_CASE("train_transformer: parts of a step add up to the step") {
  const TinyText tiny;
  const auto loss = [&](const Words& more) {
    check_success(tiny.train(more));
    return metrics(tiny.path / "out/metrics.jsonl").back().at("validation_loss").get<double>();
  };
  const double whole = loss({"--batch-size", "8", "--max-iters", "12"});
  const double parts = loss({"--batch-size", "2", "--grad-accum", "4", "--max-iters", "12"});
  CHECK(std::abs(whole - parts) <= 1e-4 * whole);
}

TEST_CASE("train_transformer: --help shows the defaults, but no number where the task decides") {
  const Ended ended = run_program("train_transformer", {"--help"});
  check_success(ended);
  CHECK(ended.out.find("--lr X=0.003 ") != std::string::npos);
  CHECK(ended.out.find("--target X ") != std::string::npos);
}
