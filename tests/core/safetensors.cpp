#include "ebb/core/safetensors.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "ebb/core/crc32.h"
#include "ebb/core/file.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;
namespace fs = std::filesystem;

namespace {

// A directory of this test's own, removed at the end.
struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "ebb-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()));
    path = name;
  }
  ~Folder() {
    fs::permissions(path, fs::perms::owner_all);
    fs::remove_all(path);
  }
  std::string file(const std::string& name = "c.safetensors") const { return path / name; }
  size_t files() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(path), {}));
  }
};

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void spit(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

std::string length_prefix(std::uint64_t n) {
  return {reinterpret_cast<const char*>(&n), sizeof(n)};
}

// A file with this header and that many bytes of data.
std::string with_header(const std::string& json, size_t data) {
  return length_prefix(json.size()) + json + std::string(data, '\1');
}

Checkpoint sample() {
  return {{{"u", tensor<std::uint8_t>({1, 2, 255}, {3})},
           {"layer/é.\"w\"", tensor<float>({1, -2, 3e38f, 4, 5, -0.0f}, {2, 3})},
           {"d", tensor<double>({1e300}, {})},
           {"none", zeros({0, 3})},
           {"h", tensor<float>({1, -2.5f}, {2}).to(Dtype::bf16)},
           {"i", tensor<std::int32_t>({-7, INT32_MAX}, {2, 1})}},
          {{"step", "100"}, {"text", "two\nlines, \"quotes\", \\, \x01 and ü"}, {"", ""}}};
}

std::vector<std::byte> bytes_of(const Tensor& x) {
  const Tensor here = x.to(cpu_device);
  const auto* p = static_cast<const std::byte*>(here.raw());
  return {p, p + here.bytes()};
}

bool same(const Checkpoint& a, const Checkpoint& b) {
  return a.metadata == b.metadata &&
         std::ranges::equal(a.tensors, b.tensors, [](const auto& p, const auto& q) {
           return p.first == q.first && p.second.dtype() == q.second.dtype() &&
                  p.second.shape() == q.second.shape() && bytes_of(p.second) == bytes_of(q.second);
         });
}

// Whether loading raises one of the kinds that a bad file may raise.
bool refused(const std::string& path) {
  try {
    load_safetensors(path);
    return false;
  } catch (const Error& error) {
    return error.kind() == Kind::format || error.kind() == Kind::limit ||
           error.kind() == Kind::dtype;
  }
}

}  // namespace

TEST_CASE("safetensors: what was saved is loaded, for every dtype, rank 0 and empty tensors") {
  const Folder folder;
  for (const Device device : devices()) {
    Checkpoint there = sample();
    for (auto& [name, x] : there.tensors) x = x.to(device);
    save_safetensors(folder.file(), there);
    CHECK(same(load_safetensors(folder.file()), sample()));
    CHECK(folder.files() == 1);
  }
  save_safetensors(folder.file(), {});
  CHECK(same(load_safetensors(folder.file()), {}));
  const Checkpoint c = sample();
  REQUIRE(c.find("d"));
  CHECK(c.find("d")->item() == 1e300);
  CHECK(!c.find("D"));
}

TEST_CASE("safetensors: the same checkpoint gives the same bytes, aligned, with its checksum") {
  const Folder folder;
  save_safetensors(folder.file("a"), sample());
  save_safetensors(folder.file("b"), sample());
  const std::string bytes = slurp(folder.file("a"));
  CHECK(bytes == slurp(folder.file("b")));
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof(header));
  CHECK(header % 8 == 0);
  CHECK(bytes.substr(8, header).find(R"("d":{"dtype":"F64","shape":[],"data_offsets":[0,8]})") !=
        std::string::npos);
  const std::string check = "123456789";
  CHECK(crc32(0, std::as_bytes(std::span(check))) == 0xCBF43926u);
  CHECK(crc32(crc32(0, std::as_bytes(std::span(check).first(4))),
              std::as_bytes(std::span(check).subspan(4))) == 0xCBF43926u);
}

TEST_CASE("safetensors: a file as Python writes it loads, spaces and escapes included") {
  const Folder folder;
  spit(folder.file(),
       with_header(
           "{ \"__metadata__\" : {\"format\":\"pt\"},\n\t\"w\\u00e9\\ud83d\\ude00\":{\"shape\":"
           "[1, 2],\"dtype\":\"U8\",\"data_offsets\":[0,2]}}   ",
           2));
  const Checkpoint c = load_safetensors(folder.file());
  CHECK(c.metadata.at("format") == "pt");
  CHECK(c.tensors.at(0).first == "wé😀");
  CHECK(c.tensors.at(0).second.to_vector<std::uint8_t>() == std::vector<std::uint8_t>{1, 1});
}

TEST_CASE("safetensors: I64 is refused, or narrowed when asked and every number fits") {
  const Folder folder;
  const auto file = [](std::int64_t value) {
    const std::string json = R"({"l":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}})";
    return length_prefix(json.size()) + json + length_prefix(5) +
           length_prefix(static_cast<std::uint64_t>(value));
  };
  spit(folder.file(), file(-6));
  check_error(Kind::dtype, {"load_safetensors", "`l`", "I64"},
              [&] { load_safetensors(folder.file()); });
  const Checkpoint c = load_safetensors(folder.file(), {.narrow_i64 = true});
  CHECK(c.find("l")->to_vector<std::int32_t>() == std::vector<std::int32_t>{5, -6});
  for (const std::int64_t far : {std::int64_t{INT32_MAX} + 1, std::int64_t{INT32_MIN} - 1}) {
    spit(folder.file(), file(far));
    check_error(Kind::value, {"element 1 of `l`", std::to_string(far)},
                [&] { load_safetensors(folder.file(), {.narrow_i64 = true}); });
  }
}

TEST_CASE("safetensors: every single lie in a header is refused") {
  const Folder folder;
  struct Lie {
    const char* what;
    Kind kind;
    std::string json;
  };
  const auto one = [](const std::string& fields) { return "{\"w\":{" + fields + "}}"; };
  const auto numbers = [&](const std::string& shape, const std::string& offsets) {
    return one("\"dtype\":\"F32\",\"shape\":" + shape + ",\"data_offsets\":" + offsets);
  };
  const std::string good = numbers("[2]", "[0,8]");
  const std::string w = good.substr(1, good.size() - 2);
  const auto named = [&](const std::string& name) {
    return "{\"" + name + "\":" + w.substr(4) + "}";
  };
  const auto two = [](const std::string& a, const std::string& b) {
    return R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)" + a +
           R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)" + b + "}}";
  };
  spit(folder.file(), with_header(good, 8));
  CHECK_NOTHROW(load_safetensors(folder.file()));
  spit(folder.file(), with_header(two("[4,8]", "[0,4]"), 8));
  CHECK_NOTHROW(load_safetensors(folder.file()));

  const Kind format = Kind::format;
  const Kind limit = Kind::limit;
  const std::vector<Lie> lies = {
      {"empty header", format, ""},
      {"only spaces", format, "   "},
      {"leading space", format, " " + good},
      {"byte order mark", format, "\xEF\xBB\xBF" + good},
      {"array", format, "[" + good + "]"},
      {"number", format, "1"},
      {"string", format, "\"w\""},
      {"unclosed", format, good.substr(0, good.size() - 1)},
      {"trailing junk", format, good + "x"},
      {"trailing newline", format, good + "\n"},
      {"trailing NUL", format, good + std::string(1, '\0')},
      {"two headers", format, good + good},
      {"trailing comma", format, "{" + w + ",}"},
      {"leading comma", format, "{," + w + "}"},
      {"no colon", format, "{\"w\"" + w.substr(4) + "}"},
      {"single quotes", format, "{'w':" + w.substr(4) + "}"},
      {"comment", format, "{/**/" + w + "}"},
      {"unquoted name", format, "{w:" + w.substr(4) + "}"},
      {"value is null", format, "{\"w\":null}"},
      {"value is an array", format, "{\"w\":[]}"},
      {"value is true", format, "{\"w\":true}"},
      {"deep arrays", format, "{\"w\":" + std::string(10'000, '[')},
      {"deep objects", format,
       [] {
         std::string s;
         for (int i = 0; i < 10'000; ++i) s += "{\"a\":";
         return s;
       }()},
      {"deep shape", format, numbers("[[2]]", "[0,8]")},
      {"NUL in a name", format, named("a\\u0000b")},
      {"raw NUL in a name", format, named(std::string("a\0b", 3))},
      {"raw newline in a name", format, named("a\nb")},
      {"newline in a name", format, named("a\\nb")},
      {"escape character in a name", format, named("\\u001b[31m")},
      {"right-to-left override in a name", format, named("a\\u202eb")},
      {"lone high surrogate", format, named("\\ud800")},
      {"lone low surrogate", format, named("\\udc00")},
      {"two high surrogates", format, named("\\ud800\\ud800")},
      {"bad hexadecimal", format, named("\\u00g0")},
      {"short \\u", format, "{\"\\u00"},
      {"bad escape", format, named("\\x41")},
      {"escape at the end", format, "{\"\\"},
      {"stray continuation byte", format, named("\x80")},
      {"overlong UTF-8", format, named("\xC0\xAF")},
      {"overlong in three bytes", format, named("\xE0\x80\xAF")},
      {"surrogate in UTF-8", format, named("\xED\xA0\x80")},
      {"cut UTF-8", format, named("\xE2\x82")},
      {"beyond Unicode", format, named("\xF4\x90\x80\x80")},
      {"empty name", format, named("")},
      {"long name", format, named(std::string(256, 'a'))},
      {"duplicate name", format, "{" + w + "," + w + "}"},
      {"same name by escape", format, "{" + w + ",\"\\u0077\":" + w.substr(4) + "}"},
      {"duplicate metadata", format, R"({"__metadata__":{},"__metadata__":{},)" + w + "}"},
      {"duplicate metadata key", format, R"({"__metadata__":{"a":"1","a":"1"},)" + w + "}"},
      {"metadata is a string", format, R"({"__metadata__":"x",)" + w + "}"},
      {"metadata number", format, R"({"__metadata__":{"a":1},)" + w + "}"},
      {"metadata null", format, R"({"__metadata__":{"a":null},)" + w + "}"},
      {"metadata object", format, R"({"__metadata__":{"a":{}},)" + w + "}"},
      {"metadata by array", format, R"({"__metadata__":["a"],)" + w + "}"},
      {"NUL in metadata", format, R"({"__metadata__":{"a":"\u0000"},)" + w + "}"},
      {"NUL in a metadata key", format, R"({"__metadata__":{"\u0000":"a"},)" + w + "}"},
      {"metadata of 17 MiB", limit,
       R"({"__metadata__":{"a":")" + std::string(17 << 20, 'x') + "\"}," + w + "}"},
      {"duplicate dtype", format,
       one(R"("dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8])")},
      {"duplicate shape", format,
       one(R"("dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8])")},
      {"duplicate offsets", format,
       one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,8])")},
      {"unknown field", format,
       one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"strides":[1])")},
      {"missing dtype", format, one(R"("shape":[2],"data_offsets":[0,8])")},
      {"missing shape", format, one(R"("dtype":"F32","data_offsets":[0,8])")},
      {"missing offsets", format, one(R"("dtype":"F32","shape":[2])")},
      {"nothing in the tensor", format, one("")},
      {"unknown dtype", format, one(R"("dtype":"F33","shape":[2],"data_offsets":[0,8])")},
      {"lower-case dtype", format, one(R"("dtype":"f32","shape":[2],"data_offsets":[0,8])")},
      {"dtype of ours", Kind::dtype, one(R"("dtype":"F16","shape":[4],"data_offsets":[0,8])")},
      {"dtype number", format, one(R"("dtype":32,"shape":[2],"data_offsets":[0,8])")},
      {"dtype null", format, one(R"("dtype":null,"shape":[2],"data_offsets":[0,8])")},
      {"shape of strings", format, numbers("[\"2\"]", "[0,8]")},
      {"shape number", format, numbers("2", "[0,8]")},
      {"shape null", format, numbers("null", "[0,8]")},
      {"shape negative", format, numbers("[-2]", "[0,8]")},
      {"shape fractional", format, numbers("[2.0]", "[0,8]")},
      {"shape with exponent", format, numbers("[2e0]", "[0,8]")},
      {"shape with leading zero", format, numbers("[02]", "[0,8]")},
      {"shape with plus", format, numbers("[+2]", "[0,8]")},
      {"shape hexadecimal", format, numbers("[0x2]", "[0,8]")},
      {"shape true", format, numbers("[true]", "[0,8]")},
      {"shape trailing comma", format, numbers("[2,]", "[0,8]")},
      {"shape wraps", limit, numbers("[4294967296,4294967296]", "[0,8]")},
      {"shape times size wraps", limit, numbers("[4611686018427387904]", "[0,8]")},
      {"shape beyond 64 bits", limit, numbers("[18446744073709551618]", "[0,8]")},
      {"shape wraps to zero beside a zero", limit,
       numbers("[281474976710656,281474976710656,0]", "[0,0]")},
      {"rank 9", limit, numbers("[1,1,1,1,1,1,1,1,2]", "[0,8]")},
      {"size too large for the shape", format, numbers("[1]", "[0,8]")},
      {"size too small for the shape", format, numbers("[3]", "[0,8]")},
      {"offsets reversed", format, numbers("[2]", "[8,0]")},
      {"offset negative", format, numbers("[2]", "[-8,0]")},
      {"offset fractional", format, numbers("[2]", "[0,8.0]")},
      {"offset with exponent", format, numbers("[250]", "[0,1e3]")},
      {"offset string", format, numbers("[2]", "[0,\"8\"]")},
      {"offset beyond the file", format, numbers("[4]", "[0,16]")},
      {"offset beyond 2^48", limit, numbers("[2]", "[0,281474976710657]")},
      {"one offset", format, numbers("[2]", "[8]")},
      {"no offsets", format, numbers("[2]", "[]")},
      {"three offsets", format, numbers("[2]", "[0,8,8]")},
      {"offsets object", format, numbers("[2]", "{}")},
      {"first not 0", format, numbers("[1]", "[4,8]")},
      {"trailing data", format, numbers("[1]", "[0,4]")},
      {"data without tensors", format, "{}"},
      {"overlap", format, R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)" + w + "}"},
      {"partial overlap", format,
       R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},)"
       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})"},
      {"hole", format,
       R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})"},
      {"empty tensor inside another", format,
       R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("e":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})"},
      {"newer version", format,
       R"({"__metadata__":{"ebb.version":"2","ebb.crc32":"00000000"},)" + w + "}"},
      {"version without checksum", format, R"({"__metadata__":{"ebb.version":"1"},)" + w + "}"},
      {"checksum without version", format,
       R"({"__metadata__":{"ebb.crc32":"00000000"},)" + w + "}"},
      {"short checksum", format,
       R"({"__metadata__":{"ebb.version":"1","ebb.crc32":"000"},)" + w + "}"},
      {"escaped checksum", format,
       R"({"__metadata__":{"ebb.version":"1","ebb.crc32":"\u0030\u0030000000"},)" + w + "}"},
      {"wrong checksum", format,
       R"({"__metadata__":{"ebb.version":"1","ebb.crc32":"00000000"},)" + w + "}"},
  };
  CHECK(lies.size() >= 100);
  for (const Lie& lie : lies) {
    INFO(lie.what);
    spit(folder.file(), with_header(lie.json, 8));
    check_error(lie.kind, {"load_safetensors: " + folder.file()},
                [&] { load_safetensors(folder.file()); });
  }
}

TEST_CASE("safetensors: a lying length is refused before memory is asked for") {
  const Folder folder;
  const std::string good = with_header("{}", 0);
  const auto check = [&](const std::string& bytes, Kind kind) {
    spit(folder.file(), bytes);
    check_error(kind, {folder.file()}, [&] { load_safetensors(folder.file()); });
  };
  check("", Kind::format);
  check(good.substr(0, 7), Kind::format);
  check(good.substr(0, 8), Kind::format);
  check(length_prefix(0), Kind::format);
  check(length_prefix(3) + "{}", Kind::format);
  check(length_prefix(~std::uint64_t{0}) + "{}", Kind::limit);
  check(length_prefix(std::uint64_t{1} << 63) + "{}", Kind::limit);
  check(length_prefix(100'000'001) + "{}", Kind::limit);
  check(length_prefix(100'000'000) + "{}", Kind::format);
}

TEST_CASE("safetensors: a million tensors on the same bytes are refused at once") {
  const Folder folder;
  std::string json = "{";
  for (int i = 0; i < 1'000'000; ++i)
    json += '"' + std::to_string(i) + R"(":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)";
  json.back() = '}';
  spit(folder.file(), with_header(json, 8));
  const Stopwatch watch;
  check_error(Kind::limit, {"too many tensors", "65536"}, [&] { load_safetensors(folder.file()); });
  CHECK(watch.seconds() <= 2);
}

namespace {

// A saved file with several tensors, and where its data starts.
struct Victim {
  Folder folder;
  std::string path = folder.file();
  std::string bytes;
  size_t data = 8;
  Victim() {
    Checkpoint c = sample();
    c.tensors.emplace_back("large", randn({1000}, 1));
    save_safetensors(path, c);
    bytes = slurp(path);
    std::uint64_t header = 0;
    std::memcpy(&header, bytes.data(), sizeof(header));
    data += header;
  }
  // Whether the file loads with one bit turned over.
  bool loads_with(size_t byte, int bit) const {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    const auto put = [&](char c) {
      file.seekp(static_cast<std::streamoff>(byte));
      file.put(c).flush();
    };
    put(static_cast<char>(bytes[byte] ^ (1 << bit)));
    const bool loads = !refused(path);
    put(bytes[byte]);
    return loads;
  }
};

}  // namespace

TEST_CASE("safetensors: a file cut anywhere, or with a byte too many, is refused") {
  const Victim victim;
  int loaded = 0;
  fs::resize_file(victim.path, victim.bytes.size() + 1);
  loaded += !refused(victim.path);
  for (size_t k = 100; k-- > 0;) {
    fs::resize_file(victim.path, victim.data + (victim.bytes.size() - victim.data) * k / 100);
    loaded += !refused(victim.path);
  }
  for (size_t n = victim.data; n-- > 0;) {
    fs::resize_file(victim.path, n);
    loaded += !refused(victim.path);
  }
  CHECK(loaded == 0);
}

TEST_CASE("safetensors: one damaged bit is noticed, wherever it is") {
  const Victim victim;
  int unnoticed = 0;
  for (size_t byte = 0; byte < victim.data; ++byte)
    for (int bit = 0; bit < 8; ++bit) unnoticed += victim.loads_with(byte, bit);
  CHECK(unnoticed == 0);
  for (size_t k = 0; k < 1000; ++k) {
    const Philox random = philox(7, k, 0);
    const size_t byte = victim.data + random.v[0] % (victim.bytes.size() - victim.data);
    unnoticed += victim.loads_with(byte, static_cast<int>(random.v[1] % 8));
  }
  CHECK(unnoticed == 0);
}

TEST_CASE("safetensors: names and metadata that could not be read back are not written") {
  const Folder folder;
  const Tensor x = zeros({1});
  const auto save = [&](const Checkpoint& c) { save_safetensors(folder.file(), c); };
  for (const std::string& name :
       {std::string(), std::string(256, 'a'), std::string("a\0b", 3), std::string("\x1b[31m"),
        std::string("\xff"), std::string("__metadata__")})
    check_error(Kind::value, {"save_safetensors: "}, [&] { save({{{name, x}}, {}}); });
  check_error(Kind::value, {"used twice", "got w"}, [&] { save({{{"w", x}, {"w", x}}, {}}); });
  check_error(Kind::state, {"`w` is undefined"}, [&] { save({{{"w", Tensor()}}, {}}); });
  check_error(Kind::value, {"reserved", "ebb.crc32"}, [&] { save({{}, {{"ebb.crc32", ""}}}); });
  check_error(Kind::value, {"UTF-8"}, [&] { save({{}, {{"a", "\xC0"}}}); });
  check_error(Kind::value, {"NUL"}, [&] { save({{}, {{"a", std::string(1, '\0')}}}); });
  check_error(Kind::limit, {"metadata"}, [&] { save({{}, {{"a", std::string(17 << 20, 'x')}}}); });
  CHECK(folder.files() == 0);
}

TEST_CASE("safetensors: places that cannot be read or written are named, with the reason") {
  const Folder folder;
  const auto load = [&](const std::string& path, const std::string& reason) {
    check_error(Kind::io, {"load_safetensors: ", reason}, [&] { load_safetensors(path); });
  };
  const auto save = [&](const std::string& path, const std::string& reason) {
    check_error(Kind::io, {"save_safetensors: ", reason},
                [&] { save_safetensors(path, sample()); });
  };
  load(folder.file("none"), "No such file");
  load(folder.path, "Is a directory");
  load(folder.file(std::string("c\0x", 3)), "not a file name");
  save(folder.path, "Is a directory");
  save(folder.file("none/c"), "No such file");
  save(folder.file(std::string(300, 'a')), "too long");
  save("", "not a file name");
  REQUIRE(mkfifo(folder.file("fifo").c_str(), 0600) == 0);
  load(folder.file("fifo"), "not a regular file");  // and does not wait for a writer
  save(folder.file("fifo"), "not a regular file");
  REQUIRE(symlink(folder.file("loop").c_str(), folder.file("loop").c_str()) == 0);
  load(folder.file("loop"), "Too many levels");
  REQUIRE(symlink(folder.file("target").c_str(), folder.file("linked.tmp").c_str()) == 0);
  save(folder.file("linked"), "temporary");
  CHECK(!fs::exists(folder.file("target")));
  CHECK(folder.files() == 3);
  if (geteuid() != 0) {  // root may write everywhere
    fs::permissions(folder.path, fs::perms::owner_read | fs::perms::owner_exec);
    save(folder.file("new"), "Permission denied");
  }
}

TEST_CASE("safetensors: what a killed writer left is replaced; two writers do not mix") {
  const Folder folder;
  spit(folder.file() + ".tmp", std::string(100'000, 'x'));
  save_safetensors(folder.file(), sample());
  CHECK(same(load_safetensors(folder.file()), sample()));
  CHECK(folder.files() == 1);
  {
    AtomicFile first("test", folder.file());
    check_error(Kind::io, {"someone else is writing it"},
                [&] { save_safetensors(folder.file(), {}); });
  }
  CHECK(same(load_safetensors(folder.file()), sample()));
  CHECK(folder.files() == 1);
}

TEST_CASE("safetensors: a reader beside a writer always sees a whole file") {
  const Folder folder;
  const Checkpoint a = sample();
  const Checkpoint b = {{{"w", full({5000}, 3)}}, {}};
  save_safetensors(folder.file(), a);
  std::atomic<bool> done{false};
  std::thread writer([&] {
    for (int i = 0; i < 100; ++i) save_safetensors(folder.file(), i % 2 ? a : b);
    done = true;
  });
  int mixed = 0;
  while (!done) {
    const Checkpoint c = load_safetensors(folder.file());
    mixed += !same(c, a) && !same(c, b);
  }
  writer.join();
  CHECK(mixed == 0);
}

namespace {

// Fails the n-th call of its kind: once, or from there on.
struct Fault {
  int at = 0;
  int error = 0;
  bool always = false;
  int calls = 0;
  int failed = 0;
  bool strikes() {
    ++calls;
    const bool now = calls == at || (always && calls > at);
    failed += now;
    if (now) errno = error;
    return now;
  }
};
Fault pwrites, fsyncs, renames;
size_t longest_write = SIZE_MAX;

void put_faults_in() {
  pwrites = fsyncs = renames = {};
  longest_write = SIZE_MAX;
  file_calls().pwrite = [](int file, const void* bytes, size_t n, off_t at) {
    return pwrites.strikes() ? -1 : ::pwrite(file, bytes, std::min(n, longest_write), at);
  };
  file_calls().fsync = [](int file) { return file >= 0 && !fsyncs.strikes() ? 0 : -1; };
  file_calls().rename = [](const char* from, const char* to) {
    return renames.strikes() ? -1 : ::rename(from, to);
  };
}

struct FaultsOut {
  ~FaultsOut() { file_calls() = {}; }
};

}  // namespace

TEST_CASE("safetensors: short and interrupted writes are continued") {
  const Folder folder;
  const FaultsOut out;
  put_faults_in();
  longest_write = 7;
  pwrites = {.at = 3, .error = EINTR};
  save_safetensors(folder.file(), sample());
  CHECK(pwrites.failed == 1);
  CHECK(pwrites.calls > 80);
  CHECK(same(load_safetensors(folder.file()), sample()));
}

TEST_CASE("safetensors: after the n-th failed call of any kind the old file is intact") {
  const Folder folder;
  const FaultsOut out;
  const Checkpoint old = {{{"w", full({10}, 3)}}, {}};
  put_faults_in();
  save_safetensors(folder.file(), old);
  struct Injected {
    Fault& fault;
    std::vector<int> errors;
  };
  const std::vector<Injected> kinds = {
      {pwrites, {ENOSPC, EIO, EDQUOT}}, {fsyncs, {EIO, ENOSPC}}, {renames, {EXDEV, EACCES, EIO}}};
  int faults = 0;
  for (const auto& [fault, errors] : kinds) {
    for (const int error : errors) {
      for (const bool always : {false, true}) {
        for (int n = 1;; ++n) {
          put_faults_in();
          save_safetensors(folder.file(), old);
          put_faults_in();
          longest_write = 12;
          fault = {.at = n, .error = error, .always = always};
          bool raised = false;
          try {
            save_safetensors(folder.file(), sample());
          } catch (const Error& e) {
            raised = e.kind() == Kind::io;
          }
          REQUIRE(folder.files() == 1);
          REQUIRE(raised == (fault.failed > 0));
          const Checkpoint now = load_safetensors(folder.file());
          const bool renamed = renames.calls > renames.failed;  // only its fsync is missing
          REQUIRE(same(now, renamed ? sample() : old));
          if (!raised) break;
          ++faults;
        }
      }
    }
  }
  CHECK(faults >= 250);
}

TEST_CASE("safetensors: a full disk at any byte leaves the old file and no temporary") {
  const Folder folder;
  const Checkpoint old = {{{"w", full({10}, 3)}}, {}};
  save_safetensors(folder.file("size"), sample());
  const auto size = fs::file_size(folder.file("size"));
  fs::remove(folder.file("size"));
  for (const std::uintmax_t k : {std::uintmax_t{0}, std::uintmax_t{1}, size / 2, size - 1, size}) {
    save_safetensors(folder.file(), old);
    const Checkpoint next = sample();
    const pid_t child = fork();
    if (child == 0) {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit{k, k};
      setrlimit(RLIMIT_FSIZE, &limit);
      int code = 1;
      try {
        save_safetensors(folder.file(), next);
        code = 0;
      } catch (const Error& e) {
        const std::string text = e.what();
        const bool named = text.find(folder.file()) != std::string::npos;
        code = e.kind() == Kind::io && named && text.find("large") != std::string::npos ? 7 : 2;
      }
      _exit(code);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == (k < size ? 7 : 0));
    CHECK(same(load_safetensors(folder.file()), k < size ? old : next));
    CHECK(folder.files() == 1);
  }
}

TEST_CASE("safetensors: a writer killed at any moment leaves the old file or the new one") {
  const Folder folder;
  const Checkpoint a = sample();
  const Checkpoint b = {{{"w", full({100'000}, 3)}}, {}};
  save_safetensors(folder.file(), a);
  int mixed = 0;
  for (int k = 0; k < 20; ++k) {
    const pid_t child = fork();
    if (child == 0) {
      for (int i = 0;; ++i) save_safetensors(folder.file(), i % 2 ? a : b);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(500 + 700 * k));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const Checkpoint c = load_safetensors(folder.file());
    mixed += !same(c, a) && !same(c, b);
    CHECK(folder.files() <= 2);
  }
  CHECK(mixed == 0);
}
