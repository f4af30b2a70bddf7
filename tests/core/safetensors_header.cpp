// What a header may not say.
#include "safetensors.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("safetensors: every single lie in a header is refused") {
  const CheckpointFolder folder;
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
  write(folder.file(), with_header(good, 8));
  CHECK_NOTHROW(load_safetensors(folder.file()));
  write(folder.file(), with_header(two("[4,8]", "[0,4]"), 8));
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
    write(folder.file(), with_header(lie.json, 8));
    check_error(lie.kind, {"load_safetensors: " + folder.file()},
                [&] { load_safetensors(folder.file()); });
  }
}

TEST_CASE("safetensors: a lying length is refused before memory is asked for") {
  const CheckpointFolder folder;
  const std::string good = with_header("{}", 0);
  const auto check = [&](const std::string& bytes, Kind kind) {
    write(folder.file(), bytes);
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
  const CheckpointFolder folder;
  std::string json = "{";
  for (int i = 0; i < 1'000'000; ++i)
    json += '"' + std::to_string(i) + R"(":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)";
  json.back() = '}';
  write(folder.file(), with_header(json, 8));
  const Stopwatch watch;
  check_error(Kind::limit, {"too many tensors", "65536"}, [&] { load_safetensors(folder.file()); });
  CHECK(watch.seconds() <= 2);
}
