#include "safetensors.h"

#include "ebb/core/crc32.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("safetensors: what was saved is loaded, for every dtype, rank 0 and empty tensors") {
  const CheckpointFolder folder;
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
  const CheckpointFolder folder;
  save_safetensors(folder.file("a"), sample());
  save_safetensors(folder.file("b"), sample());
  const std::string bytes = read(folder.file("a"));
  CHECK(bytes == read(folder.file("b")));
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
  const CheckpointFolder folder;
  write(folder.file(),
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
  const CheckpointFolder folder;
  const auto file = [](std::int64_t value) {
    const std::string json = R"({"l":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}})";
    return length_prefix(json.size()) + json + length_prefix(5) +
           length_prefix(static_cast<std::uint64_t>(value));
  };
  write(folder.file(), file(-6));
  check_error(Kind::dtype, {"load_safetensors", "`l`", "I64"},
              [&] { load_safetensors(folder.file()); });
  const Checkpoint c = load_safetensors(folder.file(), {.narrow_i64 = true});
  CHECK(c.find("l")->to_vector<std::int32_t>() == std::vector<std::int32_t>{5, -6});
  for (const std::int64_t far : {std::int64_t{INT32_MAX} + 1, std::int64_t{INT32_MIN} - 1}) {
    write(folder.file(), file(far));
    check_error(Kind::value, {"element 1 of `l`", std::to_string(far)},
                [&] { load_safetensors(folder.file(), {.narrow_i64 = true}); });
  }
}

TEST_CASE(
    "safetensors: what is not wanted may be of any type, and its damage is noticed all the same") {
  const CheckpointFolder folder;
  write(folder.file(), with_header(R"({"h":{"dtype":"F16","shape":[3],"data_offsets":[0,6]},)"
                                   R"("u":{"dtype":"U8","shape":[2],"data_offsets":[6,8]}})",
                                   8));
  const LoadOptions only_u{.wanted = [](std::string_view name) { return name == "u"; }};
  const Checkpoint c = load_safetensors(folder.file(), only_u);
  REQUIRE(c.tensors.size() == 1);
  CHECK(c.find("u")->to_vector<std::uint8_t>() == std::vector<std::uint8_t>{1, 1});
  check_error(Kind::dtype, {"`h`", "F16"}, [&] { load_safetensors(folder.file()); });
  Tensor large = zeros({300'001});
  save_safetensors(folder.file(), {{{"large", large}, {"u", tensor<std::uint8_t>({7}, {1})}}, {}});
  CHECK(load_safetensors(folder.file(), only_u).find("u")->item() == 7);
  std::string bytes = read(folder.file());
  bytes[bytes.size() / 2] ^= 1;
  write(folder.file(), bytes);
  check_error(Kind::format, {"damaged"}, [&] { load_safetensors(folder.file(), only_u); });
}

TEST_CASE("safetensors: names and metadata that could not be read back are not written") {
  const CheckpointFolder folder;
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
