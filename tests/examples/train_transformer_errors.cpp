// What train_transformer and generate refuse: each with one line on stderr that names the thing,
// and its exit code.
#include <nlohmann/json.hpp>

#include "ebb/core/safetensors.h"
#include "tiny_text.h"

using namespace transformer::test;
namespace fs = std::filesystem;

namespace {

// A checkpoint as it was, but for what `change` does.
template <class F>
void rewrite(const fs::path& path, F change) {
  ebb::Checkpoint checkpoint = ebb::load_safetensors(path);
  change(checkpoint);
  ebb::save_safetensors(path, checkpoint);
}

}  // namespace

TEST_CASE("train_transformer: a text that will not do is refused by its name") {
  const TinyText tiny;
  const auto refused = [&](const std::string& bytes, int code, Words parts) {
    write(tiny.path / "bad", bytes);
    parts.emplace_back("bad");
    check_run_refused(tiny, {"--text", "bad"}, code, parts);
  };
  refused("", 3, {"is empty"});
  refused("to be", 3, {"shorter than a context", "4 characters", "--block-size 16"});
  refused(std::string(17, 'x'), 3, {"shorter than a context"});
  refused("fine so far \xff and so on, for some time", 3, {"not UTF-8", "byte 12"});
  check_run_refused(tiny, {"--text", "nowhere"}, 7, {"nowhere"});
  check_run_refused(tiny, {"--text", tiny.path.string()}, 7, {"a directory"});
  check_refused(run_program("train_transformer", {"--task", "text"}, tiny.around()), 7,
                {"data/tinyshakespeare/input.txt", "/.cache/ebb/tinyshakespeare/input.txt",
                 "examples/transformer/download.sh"});
  CHECK_FALSE(fs::exists(tiny.path / "out"));
}

TEST_CASE("train_transformer: the text is found where data is kept") {
  const TinyText tiny;
  fs::create_directories(tiny.path / "kept/tinyshakespeare");
  fs::copy(tiny.text, tiny.path / "kept/tinyshakespeare/input.txt");
  auto around = tiny.around();
  around.environment = {"EBB_DATA=kept"};
  const Ended ended =
      run_program("train_transformer",
                  {"--task", "text", "--config", "tiny", "--dry-run", "--device", "cpu"}, around);
  CHECK(ended.code == 0);
  CHECK(ended.out.find("kept/tinyshakespeare/input.txt: ") != std::string::npos);
}

TEST_CASE("train_transformer: flags that do not fit each other are refused") {
  const TinyText tiny;
  check_run_refused(tiny, {"--n-head", "3"}, 2, {"--n-head", "3 heads of 16"});
  check_run_refused(tiny, {"--n-head", "16", "--architecture", "llama"}, 2,
                    {"rotary", "heads of 1"});
  check_run_refused(tiny, {"--warmup-iters", "24"}, 2,
                    {"--warmup-iters", "got 24", "--max-iters 24"});
  CHECK_FALSE(fs::exists(tiny.path / "out"));
}

TEST_CASE("train_transformer: unknown flags and values are refused by name") {
  const TinyText tiny;
  check_flags_refused(tiny, {{"--task", {"poetry"}},
                             {"--config", {"huge"}},
                             {"--dtype", {"f16"}},
                             {"--architecture", {"rnn"}},
                             {"--device", {"tpu"}},
                             {"--digits", {"1", "10"}},
                             {"--n-layer", {"0"}},
                             {"--n-embd", {"-4"}},
                             {"--n-head", {"four"}},
                             {"--dropout", {"1", "nan"}},
                             {"--max-iters", {"0", "10000001"}},
                             {"--batch-size", {"1e9"}},
                             {"--grad-accum", {"0"}},
                             {"--lr", {"0"}},
                             {"--min-lr", {"-1"}},
                             {"--warmup-iters", {"-1"}},
                             {"--weight-decay", {"inf"}},
                             {"--beta2", {"1"}},
                             {"--grad-clip", {"-1"}},
                             {"--eval-interval", {"0"}},
                             {"--seed", {"-1"}},
                             {"--out", {""}},
                             {"--eval", {""}},
                             {"--text", {"x"}},        // of the other task
                             {"--block-size", {"8"}},  // too
                             {"--iters", {"3"}}});
  check_refused(tiny.train({"--lr", "1", "--lr", "2"}), 2, {"--lr"});
  check_refused(tiny.train({"--resume=maybe"}), 2, {"--resume"});
  check_refused(tiny.train({"--digits", "3"}), 2, {"--digits"});
  check_refused(tiny.train({"--resume", "--dry-run"}), 2, {"--resume", "--dry-run"});
  check_refused(tiny.train({"--resume", "--eval", "x"}), 2, {"--resume", "--eval"});
  check_refused(tiny.train({"--dry-run", "--eval", "x"}), 2, {"--dry-run", "--eval"});
  CHECK_FALSE(fs::exists(tiny.path / "out"));
}

TEST_CASE("train_transformer: a device that is not there is refused with exit code 4") {
  const TinyText tiny;
  auto around = tiny.around();
  around.environment = {"CUDA_VISIBLE_DEVICES="};
  for (const std::string program : {"train_transformer", "generate"})
    check_refused(run_program(program, {"--device", "cuda"}, around), 4, {"cuda"});
}

TEST_CASE("train_transformer: an --out that cannot be written, or is in use, is refused") {
  const TinyText tiny;
  write(tiny.path / "file", "mine");
  check_run_refused(tiny, {"--out", "file"}, 7, {"file"});
  check_run_refused(tiny, {"--out", "/proc/nowhere"}, 7, {"/proc/nowhere"});
  CHECK(read(tiny.path / "file") == "mine");
  Program first("train_transformer", tiny.words({"--max-iters", "1000000"}), tiny.around());
  REQUIRE(first.shows("step 8/1000000: "));
  check_refused(tiny.train(), 7, {"out", "in use", "process"});
  first.send(SIGTERM);
  CHECK(first.end().code == 143);
}

TEST_CASE("train_transformer: a full disk ends the run with the old checkpoint intact") {
  const TinyText tiny;
  REQUIRE(tiny.train().code == 0);
  check_full_disk_refused(tiny, {"--seed", "1"}, {0, 5000, read(tiny.checkpoint()).size() - 1});
}

TEST_CASE("train_transformer: a loss that is not a number ends the run with exit code 6") {
  const TinyText tiny;
  REQUIRE(tiny.train().code == 0);
  check_run_refused(tiny, {"--lr", "1e30", "--warmup-iters", "0"}, 6, {"step 2 is", "--lr"});
  // Too large a step at the end: the loss was sound, what the step made of the weights is not.
  check_run_refused(tiny, {"--lr", "1e300", "--max-iters", "1"}, 6, {"model.", "not finite"});
}

TEST_CASE("train_transformer: a checkpoint of another run does not resume") {
  const TinyText tiny;
  REQUIRE(tiny.train().code == 0);
  const std::vector<std::pair<Words, std::string>> others = {{{"--seed", "1"}, "seed"},
                                                             {{"--batch-size", "5"}, "batch_size"},
                                                             {{"--max-iters", "25"}, "max_iters"},
                                                             {{"--lr", "0.001"}, "lr"},
                                                             {{"--dropout", "0.1"}, "dropout"},
                                                             {{"--n-layer", "2"}, "model"},
                                                             {{"--block-size", "15"}, "model"},
                                                             {{"--architecture", "llama"}, "model"},
                                                             {{"--dtype", "bf16"}, "dtype"},
                                                             {{"--grad-accum", "2"}, "grad_accum"},
                                                             {{"--beta2", "0.9"}, "beta2"},
                                                             {{"--task", "sort"}, "task"}};
  for (const auto& [flags, key] : others) {
    CAPTURE(key);
    check_run_refused(tiny, joined(flags, {"--resume"}), 3,
                      {"of another run", "its " + key + " differs"});
  }
  std::string text = read(tiny.text);
  std::swap(text[0], text[1]);
  write(tiny.text, text);
  check_run_refused(tiny, {"--resume"}, 3, {"of another run", "data_crc32"});
}

TEST_CASE("train_transformer and generate: a damaged or foreign checkpoint is refused") {
  const TinyText tiny;
  REQUIRE(tiny.train({"--max-iters", "2"}).code == 0);
  const std::string path = tiny.checkpoint();
  const std::string good = read(path);
  const auto all_refuse = [&](int code, const Words& parts) {
    check_refused(tiny.generate({"--checkpoint", path}), code, parts);
    check_refused(tiny.train({"--eval", path}), code, parts);
  };
  for (const std::string& bad : {std::string(), std::string("not a checkpoint"), good + "x",
                                 good.substr(0, 1000), good.substr(0, good.size() - 1)}) {
    write(path, bad);
    all_refuse(3, {"checkpoint.safetensors"});
    check_run_refused(tiny, {"--max-iters", "2", "--resume"}, 3, {"checkpoint.safetensors"});
  }
  const auto with_metadata = [&](const std::string& key, const std::string& value) {
    write(path, good);
    rewrite(path, [&](ebb::Checkpoint& c) { c.metadata[key] = value; });
  };
  ebb::save_safetensors(path, {{{"w", ebb::ones({2})}}, {}});
  all_refuse(3, {"no checkpoint of train_transformer"});
  with_metadata("format", "ebb mnist 1");
  all_refuse(3, {path, "no checkpoint of this train_transformer"});
  with_metadata("format", "ebb transformer 2");
  all_refuse(3, {path, "got ebb transformer 2; expected ebb transformer 1"});
  check_run_refused(tiny, {"--max-iters", "2", "--resume"}, 3, {"got ebb transformer 2"});
  with_metadata("model", "default");
  all_refuse(3, {"no checkpoint of train_transformer"});
  with_metadata("model", R"({"vocabulary":1000000000})");
  all_refuse(3, {"bad vocabulary"});
  const auto with_net = [&](const std::string& key, const nlohmann::json& value) {
    write(path, good);
    rewrite(path, [&](ebb::Checkpoint& c) {
      auto net = nlohmann::json::parse(c.metadata.at("model"));
      net[key] = value;
      c.metadata["model"] = net.dump();
    });
  };
  with_net("width", 1 << 24);
  all_refuse(3, {"other weights than it describes", "tok.weight"});
  for (const std::string key : {"positions", "feed_forward", "norm"})
    for (const nlohmann::json& value : {nlohmann::json(3), nlohmann::json("odd"),
                                        nlohmann::json(nullptr), nlohmann::json::array({key})}) {
      with_net(key, value);
      all_refuse(3, {"bad " + key + "; got " + (value.is_array() ? "array" : value.dump())});
    }
  with_net("heads", nlohmann::json::array({1}));
  all_refuse(3, {"bad heads; got array"});
  with_metadata("task", "poetry");
  all_refuse(3, {"no digits in its metadata"});
  with_metadata("vocabulary", "aab");
  all_refuse(3, {"vocabulary"});
  write(path, good);
  rewrite(path, [](ebb::Checkpoint& c) {
    std::erase_if(c.tensors, [](const auto& t) { return t.first == "model.norm.weight"; });
  });
  all_refuse(3, {"norm.weight"});
  write(path, good);
  rewrite(path, [](ebb::Checkpoint& c) { c.tensors.front().second.fill_(INFINITY); });
  all_refuse(3, {"tok.weight", "infinity"});
  check_run_refused(tiny, {"--max-iters", "2", "--resume"}, 3, {"tok.weight", "infinity"});
  fs::remove(path);
  all_refuse(7, {"checkpoint.safetensors"});
  check_run_refused(tiny, {"--resume"}, 7, {"checkpoint.safetensors", "start without --resume"});
}

TEST_CASE("generate: a small checkpoint cannot ask for a large net") {
  const TinyText tiny;
  const std::string path = tiny.path / "forged";
  const auto forged = [&](std::int64_t layers, std::int64_t width) {
    const nlohmann::json net = {{"vocabulary", 1}, {"context", 1},          {"layers", layers},
                                {"heads", 1},      {"width", width},        {"positions", "rotary"},
                                {"norm", "rms"},   {"feed_forward", "gelu"}};
    const std::string last = "model.blocks." + std::to_string(layers - 1) + ".norm1.weight";
    const ebb::Checkpoint checkpoint = {
        {{"model.tok.weight", ebb::ones({1, width})}, {last, ebb::ones({width})}},
        {{"format", "ebb transformer 1"},
         {"model", net.dump()},
         {"task", "text"},
         {"vocabulary", "a"}}};
    ebb::save_safetensors(path, checkpoint);
    check_refused(tiny.generate({"--checkpoint", path, "--device", "cpu"}), 3,
                  {"other weights than it describes; got"});
  };
  forged(1 << 24, 1), forged(1, 1 << 16), forged(3, 1);
}

TEST_CASE("train_transformer: --eval refuses a model of another task or other characters") {
  const TinyText tiny;
  REQUIRE(tiny.train({"--max-iters", "2"}).code == 0);
  const std::string path = tiny.checkpoint();
  check_refused(tiny.train({"--task", "sort", "--eval", path}), 3, {"another task or text"});
  write(tiny.path / "other", "a completely different set of characters; " + read(tiny.text));
  check_refused(tiny.train({"--text", "other", "--eval", path}), 3, {"another task or text"});
}

TEST_CASE("generate: a prompt that will not do is refused") {
  const TinyText tiny;
  REQUIRE(tiny.train({"--max-iters", "2"}).code == 0);
  const auto refused = [&](const Words& more, int code, const Words& parts) {
    const Ended ended = tiny.generate(joined({"--checkpoint", tiny.checkpoint().string()}, more));
    check_refused(ended, code, parts);
    CHECK(ended.out == "");
  };
  refused({"--prompt", "the ¿"}, 3, {"does not know", "'¿' at place 4"});
  refused({"--prompt", "the \xff"}, 3, {"not UTF-8", "byte 4"});
  refused({"--prompt", "the tide ebbs, no"}, 3, {"too long", "17 tokens", "at most 16"});
  refused({"--prompt", ""}, 2, {"--prompt"});
  refused({"--temperature", "-1"}, 2, {"--temperature"});
  refused({"--top-k", "x"}, 2, {"--top-k"});
  refused({"--max-new-tokens", "0"}, 2, {"--max-new-tokens"});
  refused({"--attention", "/proc/nowhere.png"}, 7, {"/proc/nowhere.png"});
  refused({"stray"}, 2, {"stray"});
  const Words problem = {"--task", "addition", "--max-iters", "2", "--target", "0"};
  REQUIRE(tiny.train(problem).code == 0);
  refused({"--prompt", "1+2+3"}, 3, {"addition: ", "12+7"});
  refused({"--prompt", "1234+1"}, 3, {"1234"});
  refused({}, 3, {"addition: "});
}
