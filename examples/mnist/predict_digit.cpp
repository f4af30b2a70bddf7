// Tells the digit on a picture: reads a PNG or JPEG, makes it look like MNIST's, asks a trained
// net.
#include <algorithm>

#include "common/exit.h"
#include "common/flags.h"
#include "common/output.h"
#include "common/text.h"
#include "mnist/image.h"
#include "mnist/model.h"
#include "mnist/terminal.h"

namespace {

using namespace mnist;
using ebb::Tensor;

// Colours → light ink on a dark ground, 0 … 1, on the device: the net has only seen that.
Gray light_ink(const Image& image, ebb::Device device) {
  const Tensor rgb = ebb::tensor(image.rgb, {3, image.height, image.width}, device);
  Tensor gray = ebb::rgb_to_grayscale(rgb.to(ebb::Dtype::f32) / 255);
  Gray picture{image.width, image.height, gray.to_vector<float>()};
  if (!dark_on_light(picture)) return picture;
  gray = ebb::invert_colors(gray);
  return {image.width, image.height, gray.to_vector<float>()};
}

std::array<float, area> digit_in(const std::string& path, ebb::Device device) {
  const Gray picture = light_ink(read_image(path), device);
  try {
    return find_digit(picture);
  } catch (const ebb::Error& error) {  // which does not know the file's name
    throw ebb::Error(error.kind(), path + ": " + error.what());
  }
}

Tensor normalised(const std::array<float, area>& ink, ebb::Device device) {
  std::vector<float> x(ink.begin(), ink.end());
  for (float& v : x) v = (v - 0.1307f) / 0.3081f;
  return ebb::tensor(x, {1, 1, side, side}, device);
}

void print(const std::string& path, const std::array<float, area>& ink,
           const std::vector<float>& probabilities) {
  std::vector<std::uint8_t> pixels(area);
  std::ranges::transform(ink, pixels.begin(),
                         [](float v) { return static_cast<std::uint8_t>(255 * v + 0.5f); });
  std::string text = show(pixels.data());
  for (int digit = 0; digit < classes; ++digit)
    text +=
        example::formatted("%d %6.2f %%%s", digit, 100 * probabilities[static_cast<size_t>(digit)],
                           digit % 5 == 4 ? "\n" : "   ");
  const auto best = std::ranges::max_element(probabilities) - probabilities.begin();
  example::put(text + path + ": " + std::to_string(best) + "\n", true);
}

int body(int argc, char** argv) {
  std::string checkpoint = "out/mnist/checkpoint.safetensors";
  std::string device_name = "auto";
  std::vector<std::string> paths;
  example::Flags flags("predict_digit", "Tells which digit a PNG or JPEG shows.");
  flags.text("--checkpoint", checkpoint, "what train_mnist wrote");
  flags.device(device_name);
  flags.rest("IMAGE", paths, 1, "pictures of one digit each, dark on light or light on dark");
  if (!flags.parse(argc, argv)) return example::exit_code::ok;
  const ebb::Device device = example::choose_device(device_name);
  const auto model = load_model(checkpoint, device);
  const ebb::NoGrad guard;
  for (const std::string& path : paths) {
    const auto ink = digit_in(path, device);
    const Tensor logits = (*model)(normalised(ink, device));
    print(path, ink, ebb::softmax(logits).to_vector<float>());
  }
  return example::exit_code::ok;
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, body); }
