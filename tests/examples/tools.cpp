// opcase and opbench from outside, where they are asked what makes no sense.
#include <sys/stat.h>

#include <chrono>

#include "ebb/core/safetensors.h"
#include "folder.h"
#include "program.h"
#include "twins.h"

using namespace ebb::test;

namespace {

using Words = std::vector<std::string>;

const std::string deep = std::string(100000, '[') + std::string(100000, ']');

struct Tools : Folder {
  Surroundings around{path.string(), {}};

  Ended run(const char* program, const Words& words) const {
    return run_program(program, words, around);
  }
  void make_case(const std::string& op, const std::string& attrs) const {
    const ebb::Tensor x = ebb::ones({2});
    ebb::save_safetensors(path / "case",
                          {{{"in.x", x}, {"gout.0", x}}, {{"op", op}, {"attrs", attrs}}});
  }
  void check_case_refused(int code, const Words& parts) const {
    const Ended ended = run("opcase", {"--case", "case", "--out", "answer", "--backward"});
    CAPTURE(ended.err);
    CHECK(ended.code == code);
    CHECK(ended.err.find('\n') == ended.err.size() - 1);
    CHECK(ended.err.size() < 500);
    for (const std::string& part : parts) CHECK(ended.err.find(part) != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(path / "answer"));
  }
  Ended bench(const std::string& lines) const {
    write(path / "cases", lines);
    return run("opbench", {"--cases", "cases"});
  }
};

}  // namespace

TEST_CASE("opcase: what is no case is refused in one short line, without an answer") {
  const Tools tools;
  tools.make_case("si\nlu\x1b", "{}");
  tools.check_case_refused(5, {"si lu : no such op"});
  tools.make_case(std::string(100000, 'x'), "{}");
  tools.check_case_refused(5, {"xxx: no such op"});
  tools.make_case("silu", R"({"dim":)");
  tools.check_case_refused(3, {"silu: attrs is not JSON"});
  tools.make_case("softmax", R"({"dim":)" + deep + "}");
  tools.check_case_refused(3, {"softmax: attrs is nested too deeply", "at most 8 levels"});
  tools.make_case("softmax", R"({"dim":")" + std::string(100000, 'x') + "\"}");
  tools.check_case_refused(3, {"softmax: attribute dim is not of its type"});
  tools.make_case("reshape", "{}");
  tools.check_case_refused(3, {"reshape: attribute shape is missing; got none"});
  tools.make_case("silu", R"({"dim":0})");
  tools.check_case_refused(5, {"silu: no attribute `dim`"});
  tools.make_case("sum", R"({"dim":1e300})");
  tools.check_case_refused(3, {"sum: attribute dim"});
  tools.make_case("gelu", R"({"approximate":""})");
  tools.check_case_refused(3, {"gelu: attribute approximate", "got \"\""});
  std::filesystem::remove(tools.path / "case");
  tools.check_case_refused(3, {"case: cannot be opened"});
  REQUIRE(::mkfifo((tools.path / "case").c_str(), 0600) == 0);
  tools.check_case_refused(3, {"case: not a regular file"});
  const Ended gradcheck = tools.run("opcase", {"--gradcheck", "case"});
  CHECK(gradcheck.code == 3);
}

TEST_CASE(
    "opcase: an answer of an earlier run does not outlive a refusal, and a case is no answer") {
  const Tools tools;
  tools.make_case("silu", "{}");
  CHECK(tools.run("opcase", {"--case", "case", "--out", "case"}).code == 2);
  CHECK(tools.run("opcase", {"--case", "case", "--out", "answer"}).code == 0);
  CHECK(std::filesystem::exists(tools.path / "answer"));
  tools.make_case("silu", R"({"dim":0})");
  tools.check_case_refused(5, {"silu: no attribute `dim`"});
}

TEST_CASE("opcase: inputs count by place only where none has a name") {
  const Tools tools;
  const ebb::Tensor x = ebb::ones({1, 2}), w = ebb::ones({3, 2}), b = ebb::ones({3});
  const auto first = [&](const ebb::Checkpoint& of) {
    ebb::save_safetensors(tools.path / "case", of);
    CHECK(tools.run("opcase", {"--case", "case", "--out", "answer"}).code == 0);
    return ebb::load_safetensors(tools.path / "answer").find("out.0")->to_vector<float>()[0];
  };
  const std::map<std::string, std::string> op{{"op", "linear"}};
  CHECK(first({{{"in.x", x}, {"in.weight", w}, {"in.2", b}}, op}) == 2);
  CHECK(first({{{"in.0", x}, {"in.1", w}, {"in.2", b}}, op}) == 3);
}

TEST_CASE("opcase: what belongs to no case may be of any type; a list without a gap is a case") {
  const Tools tools;
  const std::string junk = R"("junk":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]})";
  const std::string x = R"("in.x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]})";
  const std::string gout = R"("gout.0":{"dtype":"BOOL","shape":[1],"data_offsets":[2,3]})";
  const std::string other = R"("in.other":{"dtype":"BOOL","shape":[1],"data_offsets":[3,4]})";
  const std::string header = R"({"__metadata__":{"op":"invert_colors"},)" + junk + "," + x + "," +
                             gout + "," + other + "}";
  const std::uint64_t length = header.size();
  write(tools.path / "case",
        std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + "\1\2\1\1");
  CHECK(tools.run("opcase", {"--case", "case", "--out", "answer"}).code == 0);
  const ebb::Checkpoint answer = ebb::load_safetensors(tools.path / "answer");
  CHECK(answer.find("out.0")->item() == 253);
  std::filesystem::remove(tools.path / "answer");
  const ebb::Tensor one = ebb::ones({1});
  ebb::save_safetensors(tools.path / "case", {{{"in.xs.0", one}, {"in.xs.2", one}, {"gout.0", one}},
                                              {{"op", "concat"}}});
  tools.check_case_refused(3, {"concat: input xs.1 is missing"});
}

TEST_CASE("opcase: a header of many tensors, or of many levels, takes no time to speak of") {
  const Tools tools;
  const auto refused_soon = [&](const Words& parts) {
    const auto start = std::chrono::steady_clock::now();
    tools.check_case_refused(3, parts);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(2));
  };
  const std::string header = R"({"x":)" + std::string(20'000'000, '[');
  const std::uint64_t size = header.size();
  write(tools.path / "case",
        std::string(reinterpret_cast<const char*>(&size), sizeof size) + header);
  refused_soon({"opcase: ", "case, byte "});
  ebb::Checkpoint many{{}, {{"op", "silu"}, {"attrs", "{}"}}};
  for (int i = 0; i < 65'000; ++i)
    many.tensors.emplace_back("t" + std::to_string(i), ebb::zeros({0}));
  ebb::save_safetensors(tools.path / "case", many);
  refused_soon({"silu: input x is missing"});
}

TEST_CASE("opcase: in a folder each file that is a case is run, whatever lies beside it") {
  const Tools tools;
  const std::filesystem::path folder = tools.path / "cases";
  std::filesystem::create_directories(folder / "below" / "folder.safetensors");
  tools.make_case("silu", "{}");
  for (const char* name :
       {"a.safetensors", "below/line\nbreak.safetensors", "below/\xff.safetensors"})
    std::filesystem::copy(tools.path / "case", folder / name);
  write(folder / "empty.safetensors", "");
  std::filesystem::create_symlink("loop.safetensors", folder / "loop.safetensors");
  std::filesystem::create_symlink("nowhere", folder / "nowhere.safetensors");
  std::filesystem::create_symlink(folder, folder / "below/up");
  REQUIRE(::mkfifo((folder / "fifo.safetensors").c_str(), 0600) == 0);
  for (int time = 0; time < 2; ++time) {  // answers below the cases are none themselves
    const Ended ended = tools.run("opcase", {"--dir", "cases", "--out", "cases/answers"});
    CHECK(ended.code == 0);
    CHECK(ended.err == "");
    std::istringstream status(read(folder / "answers/status.jsonl"));
    std::string line;
    for (const char* exit : {"0", "0", "0", "3"}) {
      REQUIRE(std::getline(status, line));
      CAPTURE(line);
      CHECK(line.find(std::string("\"exit\":") + exit) != std::string::npos);
    }
    CHECK_FALSE(std::getline(status, line));
  }
}

TEST_CASE("opbench: a case that makes no sense is a row with an error, and the next one runs") {
  const Tools tools;
  const Words bad = {R"({"op":"outer","shape":[]})",
                     R"({"op":"add_broadcast","shape":[]})",
                     R"({"op":"layer_norm","shape":[]})",
                     R"({"op":"batch_norm","shape":[2]})",
                     R"({"op":"cross_entropy","shape":[3]})",
                     R"({"op":"linear","shape":[2,2],"weight":[]})",
                     R"({"op":"conv1d","shape":[1,1,4],"weight":[]})",
                     R"({"op":"embedding","shape":[2],"weight":[0,2]})",
                     R"({"op":"feed_forward","shape":[2,2],"up":[3]})",
                     R"({"op":"linear_cross_entropy","shape":[2],"weight":[3,2]})",
                     R"({"op":"silu","shape":[1.5]})",
                     R"({"op":"silu","shape":[1e30]})",
                     R"({"op":"silu","shape":[18446744073709551615]})",
                     R"({"op":"silu","shape":"x"})",
                     R"({"op":"permute","shape":[2]})",
                     R"({"op":"sum","shape":[2],"keepdim":3})",
                     R"({"op":"dropout","shape":[2],"p":"x"})",
                     R"({"op":"gelu","shape":[2],"approximate":1})",
                     R"({"op":"silu","shape":)" + deep + "}",
                     R"([])",
                     R"({)"};
  std::string lines;
  for (const std::string& line : bad) lines += line + "\n";
  const Ended ended = tools.bench(lines + R"({"op":"silu","shape":[2]})");
  CHECK(ended.code == 0);
  CHECK(ended.err == "");
  std::istringstream rows(ended.out);
  std::string row;
  for (const std::string& line : bad) {
    CAPTURE(line);
    REQUIRE(std::getline(rows, row));
    CAPTURE(row);
    CHECK(row.find("\"error\"") != std::string::npos);
    CHECK(row.find("out of memory") == std::string::npos);
  }
  REQUIRE(std::getline(rows, row));
  CHECK(row.find("gbps_bwd") != std::string::npos);
}

TEST_CASE("opcase and opbench: what cannot be read or written is said") {
  Tools tools;
  CHECK(tools.run("opbench", {"--cases", "nowhere"}).code == 7);
  CHECK(tools.run("opbench", {"--cases", "."}).code == 7);
  CHECK(tools.bench("").code == 3);
  CHECK(tools.bench("# none\n\n").code == 3);
  write(tools.path / "cases", R"({"op":"silu","shape":[2]})");
  tools.make_case("silu", "{}");
  tools.around.file_limit = 0;
  tools.check_case_refused(3, {"silu: ", "File too large"});
  tools.around.file_limit = RLIM_INFINITY;
  const std::string list = tools.run("opcase", {"--list"}).out;
  const size_t invert = list.find("\ninvert_colors(x)");
  CHECK(list.substr(invert, list.find('\n', invert + 1) - invert).find("u8") != std::string::npos);
  for (const char* folder : {"case", "case/below"}) {
    const Ended unmade = tools.run("opcase", {"--dir", ".", "--out", folder});
    CHECK(unmade.code == 3);
    CHECK(unmade.err.find("opcase: --out cannot be made; got case") == 0);
  }
  tools.around.output = "/dev/full";
  CHECK(tools.run("opbench", {"--cases", "cases"}).code == 7);
  CHECK(tools.run("opcase", {"--list"}).code == 3);
}
