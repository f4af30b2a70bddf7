// predict_digit from outside: what it says of pictures, and which pictures and checkpoints it
// refuses.
#include "tiny_mnist.h"

using namespace mnist;
using namespace mnist::test;

namespace {

// An 8-bit gray PNG; `pixels` may be fewer than it says.
std::string png(std::size_t width, std::size_t height, const std::string& pixels) {
  std::string lines;
  for (std::size_t at = 0; at < pixels.size(); at += width)
    lines += '\0' + pixels.substr(at, width);
  return text_of(Png{static_cast<std::uint32_t>(width), static_cast<std::uint32_t>(height), 8, 0,
                     bytes_of(lines)}
                     .bytes());
}

// A digit four times as large, in the middle of a picture; or its negative.
std::string picture_of(const std::uint8_t* digit, bool dark_on_light) {
  constexpr std::size_t large = 160, factor = 4, edge = (large - factor * side) / 2;
  std::string pixels(large * large, '\0');
  for (std::size_t y = 0; y < factor * side; ++y)
    for (std::size_t x = 0; x < factor * side; ++x)
      pixels[(edge + y) * large + edge + x] =
          static_cast<char>(digit[y / factor * side + x / factor]);
  if (dark_on_light)
    for (char& p : pixels) p = static_cast<char>(~p);
  return png(large, large, pixels);
}

Ended predict(const Tiny& tiny, const Words& images, const std::string& device = "cpu") {
  const Words words = {"--checkpoint", tiny.checkpoint().string(), "--device", device};
  return run_program("predict_digit", joined(words, images), tiny.around());
}

}  // namespace

TEST_CASE("predict_digit: tells drawn digits, dark on light as light on dark") {
  const Tiny tiny(300);
  REQUIRE(tiny.train({"--epochs", "4"}).code == 0);
  const Digits digits = draw(20, 3);
  Words light, dark;
  for (int i = 0; i < digits.count; ++i) {
    light.push_back("light" + std::to_string(i) + ".png");
    dark.push_back("dark" + std::to_string(i) + ".png");
    write(tiny.path / light.back(), picture_of(digits.pixels.data() + i * area, false));
    write(tiny.path / dark.back(), picture_of(digits.pixels.data() + i * area, true));
  }
  for (const ebb::Device device : devices()) {
    const std::string name = device.is_cuda() ? "auto" : "cpu";
    const Ended on_dark = predict(tiny, light, name), on_light = predict(tiny, dark, name);
    CHECK(on_dark.code == 0);
    CHECK(on_light.code == 0);
    CHECK(on_dark.err + on_light.err == "");
    int right = 0, same = 0;
    for (int i = 0; i < digits.count; ++i) {
      const auto said = [i](const Ended& ended, const std::string& image) {
        const auto at = ended.out.find(image + ": ");
        REQUIRE(at != std::string::npos);
        return ended.out.at(at + image.size() + 2) - '0';
      };
      const int answer = said(on_dark, light[static_cast<std::size_t>(i)]);
      right += answer == digits.labels[static_cast<std::size_t>(i)];
      same += answer == said(on_light, dark[static_cast<std::size_t>(i)]);
    }
    CAPTURE(right);
    CHECK(right >= 14);  // of 20, after 4 epochs of 300 digits
    CHECK(same == 20);
  }
}

TEST_CASE("predict_digit: what is no picture of a digit is refused by name") {
  const Tiny tiny;
  REQUIRE(tiny.train({"--epochs", "1"}).code == 0);
  const std::string good = picture_of(draw(4, 3).pixels.data() + 3 * area, false);
  struct Refused {
    const char* name;
    std::string bytes;
    const char* part;
  };
  const std::vector<Refused> all = {{"empty", "", ""},
                                    {"text.png", "no picture", ""},
                                    {"cut.png", good.substr(0, good.size() / 2), ""},
                                    {"bomb.png", png(100000, 100000, "x"), "8192"},
                                    {"wide.png", png(8193, 1, "x"), "8192"},
                                    {"short.png", png(160, 160, std::string(1600, '\0')), ""},
                                    {"animation.gif", "GIF89a" + std::string(100, '\1'), "GIF"},
                                    {"map.bmp", "BM" + std::string(100, '\1'), "BMP"}};
  for (const Refused& refused : all) {
    CAPTURE(refused.name);
    write(tiny.path / refused.name, refused.bytes);
    check_refused(predict(tiny, {refused.name}), 3, {refused.name, refused.part});
  }
  write(tiny.path / "black.png", png(40, 40, std::string(1600, '\0')));
  check_refused(predict(tiny, {"black.png"}), 3, {"black.png", "no digit"});
  check_refused(predict(tiny, {"missing.png"}), 7, {"missing.png"});
  check_refused(predict(tiny, {"digits"}), 7, {"digits"});
  check_refused(predict(tiny, {}), 2, {"IMAGE"});
  check_refused(predict(tiny, {"--checkpoint", "x", "x"}), 2, {"--checkpoint"});
  check_refused(predict(tiny, {"--images", "x"}), 2, {"--images"});
}

TEST_CASE("predict_digit: a checkpoint that is none of ours is refused") {
  const Tiny tiny;
  write(tiny.path / "three.png", picture_of(draw(4, 3).pixels.data() + 3 * area, true));
  std::filesystem::create_directory(tiny.path / "out");
  check_refused(predict(tiny, {"three.png"}), 7, {"checkpoint.safetensors"});
  const std::string path = tiny.checkpoint().string();
  write(path, "not a checkpoint");
  check_refused(predict(tiny, {"three.png"}), 3, {"checkpoint.safetensors"});
  const ebb::Tensor weight = ebb::zeros({10, 5});
  const auto ours = [](const char* net) {
    return std::map<std::string, std::string>{{"format", "ebb mnist 1"}, {"model", net}};
  };
  ebb::save_safetensors(path, {{{"fc.weight", weight}}, {}});
  check_refused(predict(tiny, {"three.png"}), 3, {"no checkpoint of train_mnist"});
  ebb::save_safetensors(path, {{{"model.fc2.weight", weight}}, ours("default")});
  check_refused(predict(tiny, {"three.png"}), 3, {"fc2.weight"});
  ebb::save_safetensors(path, {{{"model.fc2.weight", weight}}, ours("resnet")});
  check_refused(predict(tiny, {"three.png"}), 3, {"resnet"});
  REQUIRE(tiny.train({"--epochs", "1"}).code == 0);
  ebb::Checkpoint spoiled = ebb::load_safetensors(path);
  spoiled.tensors.front().second.fill_(NAN);
  ebb::save_safetensors(path, spoiled);
  check_refused(predict(tiny, {"three.png"}), 3, {path, "conv1.weight", "NaN"});
  spoiled.metadata["format"] = "ebb mnist 2";
  ebb::save_safetensors(path, spoiled);
  check_refused(predict(tiny, {"three.png"}), 3, {path, "got ebb mnist 2; expected ebb mnist 1"});
  check_refused(predict(tiny, {"three.png"}, "cuda:9"), 4, {"cuda"});
}

TEST_CASE("predict_digit: an answer that cannot be written is exit code 7") {
  const Tiny tiny;
  REQUIRE(tiny.train({"--epochs", "1"}).code == 0);
  write(tiny.path / "three.png", picture_of(draw(4, 3).pixels.data() + 3 * area, true));
  auto around = tiny.around();
  around.output = "/dev/full";
  const Words words = {"--checkpoint", tiny.checkpoint().string(), "--device", "cpu", "three.png"};
  check_refused(run_program("predict_digit", words, around), 7, {"output", "No space"});
}
