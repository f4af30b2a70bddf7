// What train_mnist refuses: each with one line on stderr that names the thing, and its exit code.
#include <sys/stat.h>

#include <functional>

#include "tiny_mnist.h"

using namespace mnist::test;
namespace fs = std::filesystem;

namespace {

using Change = std::function<std::string(std::string)>;

void replace(const fs::path& path, const Change& change) { write(path, change(read(path))); }

std::string with_byte(std::string bytes, std::size_t at, char value) {
  bytes.at(at) = value;
  return bytes;
}
Change byte(std::size_t at, char value) {
  return [=](const std::string& s) { return with_byte(s, at, value); };
}
Change cut(std::size_t n) {
  return [=](const std::string& s) { return s.substr(0, n); };
}

std::string gzipped(const std::string& bytes) { return text_of(zipped(bytes_of(bytes))); }
Change gzip(const Change& change) {
  return [=](const std::string& s) { return change(gzipped(s)); };
}

struct Damage {
  const char* name;
  const char* file;
  Change change;
  std::string part = "";  // of the message, beside the file's name
};

const Damage damages[] = {
    {"empty", train_images, cut(0)},
    {"header cut", train_images, cut(9)},
    {"data cut", train_images, cut(5000)},
    {"a byte too many", train_labels, [](const std::string& s) { return s + "x"; }},
    {"wrong magic", train_images, byte(0, 7)},
    {"floats", train_images, byte(2, 13)},
    {"lying", train_images, byte(4, 127)},
    {"one label fewer", train_labels,
     [](const std::string& s) { return with_byte(s, 7, '\xa9').substr(0, s.size() - 1); },
     "170 images, 169 labels"},
    {"label 10", train_labels, byte(8 + 17, 10), "label 10 at item 17"},
    {"27 columns", train_images,
     [](const std::string& s) { return with_byte(s, 15, 27).substr(0, 16 + 170 * 28 * 27); },
     "28x27"},
    {"gz cut", train_images, gzip([](auto s) { return s.substr(0, s.size() / 2); })},
    {"gz with a wrong CRC", train_images,
     gzip([](auto s) { return with_byte(s, s.size() - 8, static_cast<char>(~s[s.size() - 8])); })},
    {"gz that holds more", train_images,
     [](const std::string& s) { return gzipped(s + std::string(99, 0)); }},
};

// A checkpoint with a header of our choice.
std::string safetensors(const std::string& header, std::size_t data) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> (8 * i));
  return out + header + std::string(data, '\0');
}

std::string two_tensors(const char* first, const char* second) {
  return std::string(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)") + first +
         R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)" + second + "}}";
}

}  // namespace

TEST_CASE("train_mnist: each damage to the data is refused by the name of the file") {
  for (const Damage& damage : damages) {
    CAPTURE(damage.name);
    const Tiny tiny;
    replace(tiny.data / damage.file, damage.change);
    check_run_refused(tiny, {}, 3, {damage.file, damage.part});
    CHECK_FALSE(fs::exists(tiny.path / "out"));
  }
  const Tiny tiny;
  fs::rename(tiny.data / train_labels, tiny.data / "x");
  check_run_refused(tiny, {}, 7, {"training labels"});
  fs::create_directory(tiny.data / train_labels);
  check_run_refused(tiny, {}, 7, {train_labels});
  fs::remove(tiny.data / train_labels);
  fs::rename(tiny.data / train_images, tiny.data / train_labels);
  fs::rename(tiny.data / "x", tiny.data / train_images);
  check_run_refused(tiny, {}, 3, {train_images});  // swapped
  CHECK_FALSE(fs::exists(tiny.path / "out"));
  check_run_refused(tiny, {"--data", "nowhere"}, 7, {"nowhere", "download.sh"});
  check_run_refused(Tiny(), {"--batch-size", "171"}, 3, {"--batch-size", "171 of 170"});
}

TEST_CASE("train_mnist: packed files train to the same bytes") {
  const Tiny tiny;
  CHECK(tiny.train({"--out", "raw"}).code == 0);
  for (const char* file : {train_images, train_labels}) {
    write((tiny.data / file).string() + ".gz", gzipped(read(tiny.data / file)));
    fs::remove(tiny.data / file);
  }
  CHECK(tiny.train().code == 0);
  CHECK(read(tiny.checkpoint()) == read(tiny.checkpoint("raw")));
}

TEST_CASE("train_mnist: a damaged checkpoint is refused, by --resume and by --eval") {
  const Tiny tiny;
  REQUIRE(tiny.train({"--epochs", "1"}).code == 0);
  const std::string good = read(tiny.checkpoint());
  REQUIRE(good.size() > 100000);
  std::vector<std::string> bad = {"not a checkpoint",
                                  safetensors("{}", 8),
                                  safetensors("[1]", 0),
                                  safetensors(two_tensors("[0,4]", "[8,12]"), 12),  // a hole
                                  safetensors(two_tensors("[0,4]", "[2,6]"), 6),    // an overlap
                                  good + "x"};
  for (const std::size_t size : {std::size_t{0}, std::size_t{7}, std::size_t{8}, std::size_t{1000},
                                 good.size() / 2, good.size() - 1})
    bad.push_back(good.substr(0, size));
  for (const std::size_t at : {std::size_t{20}, good.size() / 2, good.size() - 1})
    bad.push_back(with_byte(good, at, static_cast<char>(good[at] ^ 4)));
  for (std::size_t i = 0; i < bad.size(); ++i) {
    CAPTURE(i);
    write(tiny.checkpoint(), bad[i]);
    check_run_refused(tiny, {"--epochs", "1", "--resume"}, 3, {"checkpoint.safetensors"});
    check_run_refused(tiny, {"--eval", tiny.checkpoint().string()}, 3, {"checkpoint.safetensors"});
  }
  fs::remove(tiny.checkpoint());
  check_run_refused(tiny, {"--resume"}, 7,
                    {"there is no out/checkpoint.safetensors", "start without --resume"});
  check_run_refused(tiny, {"--eval", "none"}, 7, {"there is no none", "train_mnist has written"});
}

TEST_CASE("train_mnist: a checkpoint of another run or another net does not resume") {
  const Tiny tiny;
  REQUIRE(tiny.train().code == 0);
  const std::vector<std::pair<Words, std::string>> others = {
      {{"--seed", "1"}, "seed"},     {{"--batch-size", "32"}, "batch_size"},
      {{"--epochs", "3"}, "epochs"}, {{"--lr", "0.001"}, "lr"},
      {{"--no-augment"}, "augment"}, {{"--model", "reference"}, "model"}};
  for (const auto& [flags, key] : others) {
    check_run_refused(tiny, joined(flags, {"--resume"}), 3,
                      {"of another run", "its " + key + " differs"});
  }
  replace(tiny.data / train_images, [](auto s) { return with_byte(s, 16, 1); });
  check_run_refused(tiny, {"--resume"}, 3, {"of another run", "data_crc32"});
  // Of a program to come.
  const std::string path = tiny.checkpoint().string();
  const std::string good = read(path);
  ebb::Checkpoint newer = ebb::load_safetensors(path);
  newer.metadata["format"] = "ebb mnist 2";
  ebb::save_safetensors(path, newer);
  check_run_refused(tiny, {"--resume"}, 3, {"got ebb mnist 2; expected ebb mnist 1"});
  check_run_refused(tiny, {"--eval", path}, 3, {path, "got ebb mnist 2; expected ebb mnist 1"});
  write(path, good);
  // The right description around weights of another net.
  ebb::Checkpoint other = ebb::load_safetensors(path);
  std::erase_if(other.tensors, [](const auto& t) { return t.first == "model.fc2.bias"; });
  ebb::save_safetensors(path, other);
  check_run_refused(tiny, {"--eval", path}, 3, {"fc2.bias"});
}

TEST_CASE("train_mnist: unknown flags and values are refused by name") {
  const Tiny tiny;
  check_flags_refused(tiny, {{"--epochs", {"abc", "1e99", "-1", "0", "", "1.5", "a\nb"}},
                             {"--batch-size", {"0"}},
                             {"--lr", {"nan", "inf", "-1", "0", "1e999", "0,1"}},
                             {"--seed", {"-1", "99999999999999999999"}},
                             {"--out", {""}},
                             {"--data", {""}},
                             {"--model", {"resnet", ""}},
                             {"--device", {"tpu", "", "cuda:x", "cuda:-1"}},
                             {"--target", {"101"}},
                             {"--eval", {""}},
                             {"--epoch", {"3"}}});
  for (const Words& words :
       {Words{"--epochs"}, Words{"--epochs", "2", "--epochs", "3"}, Words{"--resume", "--resume"},
        Words{"--resume=maybe"}, Words{"--unknown\nflag"}, Words{"stray"}}) {
    CAPTURE(words);
    const std::string name = words[0].substr(0, words[0].find_first_of("=\n"));
    check_refused(run_program("train_mnist", words, tiny.around()), 2, {name});
  }
  check_refused(tiny.train({"--dry-run", "--resume"}), 2, {"--resume excludes --dry-run"});
  CHECK_FALSE(fs::exists(tiny.path / "out"));
}

TEST_CASE("train_mnist: a device that is not there is refused with exit code 4") {
  const Tiny tiny;
  check_run_refused(tiny, {"--device", "cuda:9"}, 4, {"cuda"});
  if (ebb::cuda_device_count() == 0) check_run_refused(tiny, {"--device", "cuda"}, 4, {"cuda"});
  auto around = tiny.around();
  around.environment = {"CUDA_VISIBLE_DEVICES="};
  check_refused(tiny.train({"--device", "cuda"}, around), 4, {"cuda"});
  CHECK_FALSE(fs::exists(tiny.path / "out"));
}

TEST_CASE("train_mnist: an --out that cannot be written is refused before the first step") {
  const Tiny tiny;
  write(tiny.path / "file", "mine");
  check_run_refused(tiny, {"--out", "file"}, 7, {"file"});
  check_run_refused(tiny, {"--out", "file/below"}, 7, {"file"});
  CHECK(read(tiny.path / "file") == "mine");
  check_run_refused(tiny, {"--out", "/proc/nowhere"}, 7, {"/proc/nowhere"});
  check_run_refused(tiny, {"--out", std::string(5000, 'x')}, 7,
                    {"out: ", "(5000 bytes)", "too long"});
  check_run_refused(tiny, {"--out", "/dev/full/a\nb"}, 7, {"/dev/full"});
}

TEST_CASE("train_mnist: what others put into --out is neither waited for nor written through") {
  const Tiny tiny;
  REQUIRE(tiny.train().code == 0);
  const fs::path log = tiny.path / "out/metrics.jsonl", lock = tiny.path / "out/run.lock";
  fs::remove(log);
  REQUIRE(::mkfifo(log.c_str(), 0600) == 0);
  check_run_refused(tiny, {"--resume"}, 7, {"metrics.jsonl", "not a regular file"});
  fs::remove(log);
  write(tiny.path / "letter", "mine");
  fs::create_symlink(tiny.path / "letter", lock);
  check_refused(tiny.train(), 7, {"out", "symbolic links"});
  CHECK(read(tiny.path / "letter") == "mine");
  fs::remove(lock);
  for (const char* name : {"curves.png", "best.safetensors"}) {
    fs::remove(tiny.path / "out" / name);
    fs::create_directories(tiny.path / "out" / name / "full");
    check_run_refused(tiny, {}, 7, {"out: cannot remove", name});
    fs::remove_all(tiny.path / "out" / name);
  }
}

TEST_CASE("train_mnist: with stdout and the like closed, its files hold what they always hold") {
  const Tiny tiny;
  REQUIRE(tiny.train({"--out", "open"}).code == 0);
  auto around = tiny.around();
  around.closed = true;
  CHECK(tiny.train({}, around).code == 0);
  CHECK(same_bytes(tiny.checkpoint(), tiny.checkpoint("open")));
  CHECK(names_in(tiny.path / "out") == names_in(tiny.path / "open"));
  CHECK(read(tiny.path / "out/metrics.jsonl").starts_with("{\"step\":"));
  check_run_refused(tiny, {"--resume", "--lr", "1"}, 3, {"of another run"});
  CHECK(tiny.train({"--resume", "--lr", "1"}, around).code == 3);
  CHECK(same_bytes(tiny.checkpoint(), tiny.checkpoint("open")));
}

TEST_CASE("train_mnist: a second run in the same --out is refused, the first goes on") {
  const Tiny tiny;
  Program first("train_mnist", tiny.words({"--epochs", "10000"}), tiny.around());
  REQUIRE(first.shows("epoch 1/10000: "));
  check_refused(tiny.train(), 7, {"out", "in use", "process"});
  first.send(SIGTERM);
  CHECK(first.end().code == 143);
  CHECK(tiny.train().code == 0);
}

TEST_CASE("train_mnist: a full disk ends the run with the old checkpoint intact") {
  const Tiny tiny;
  REQUIRE(tiny.train({"--epochs", "1"}).code == 0);
  check_full_disk_refused(tiny, {}, {0, 100, 50000, read(tiny.checkpoint()).size() - 1});
}

TEST_CASE("train_mnist: a loss that is not a number ends the run, the last checkpoint stays") {
  for (const ebb::Device device : devices()) {
    const Tiny tiny;
    REQUIRE(tiny.train({"--epochs", "1"}).code == 0);
    const std::string name = device.is_cuda() ? "cuda" : "cpu";
    check_run_refused(tiny, {"--device", name, "--lr", "1e30"}, 6, {"step 2 is", "--lr"});
    // One step an epoch: the loss is still sound, what the step made of the weights is not.
    check_run_refused(tiny, {"--device", name, "--lr", "1e300", "--batch-size", "170"}, 6,
                      {"step 1", "model.", "not finite"});
  }
}
