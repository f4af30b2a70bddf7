#include "mnist/model.h"

#include "common/checkpoint.h"

namespace mnist {
namespace {

using namespace ebb;

class Net : public nn::Module {
 public:
  Tensor forward(const Tensor& x) override {
    Tensor h = max_pool2d(relu(norm1_(conv1_(x))), 2);  // [N,16,14,14]
    h = relu(norm2_(conv2_(h)));                        // [N,32,14,14]
    h = max_pool2d(relu(norm3_(conv3_(h))), 2);         // [N,32,7,7]
    return fc2_(dropout_(relu(fc1_(flatten(h, 1)))));
  }
  void parts(nn::Parts& p) override {
    p("conv1", conv1_), p("norm1", norm1_);
    p("conv2", conv2_), p("norm2", norm2_);
    p("conv3", conv3_), p("norm3", norm3_);
    p("fc1", fc1_), p("dropout", dropout_), p("fc2", fc2_);
  }

 private:
  // No bias before a batch norm, which takes the mean away again.
  nn::Conv2d conv1_{1, 16, 3, {.padding = 1}, false};
  nn::BatchNorm2d norm1_{16};
  nn::Conv2d conv2_{16, 32, 3, {.padding = 1}, false};
  nn::BatchNorm2d norm2_{32};
  nn::Conv2d conv3_{32, 32, 3, {.padding = 1}, false};
  nn::BatchNorm2d norm3_{32};
  nn::Linear fc1_{32 * 7 * 7, 128};
  nn::Dropout dropout_{0.25};
  nn::Linear fc2_{128, 10};
};

class ReferenceNet : public nn::Module {
 public:
  Tensor forward(const Tensor& x) override {
    Tensor h = relu(conv2_(relu(conv1_(x))));  // [N,64,24,24]
    h = dropout1_(max_pool2d(h, 2));           // [N,64,12,12]
    return fc2_(dropout2_(relu(fc1_(flatten(h, 1)))));
  }
  void parts(nn::Parts& p) override {
    p("conv1", conv1_), p("conv2", conv2_), p("dropout1", dropout1_);
    p("fc1", fc1_), p("dropout2", dropout2_), p("fc2", fc2_);
  }

 private:
  nn::Conv2d conv1_{1, 32, 3};
  nn::Conv2d conv2_{32, 64, 3};
  nn::Dropout dropout1_{0.25};
  nn::Linear fc1_{64 * 12 * 12, 128};
  nn::Dropout dropout2_{0.5};
  nn::Linear fc2_{128, 10};
};

}  // namespace

std::unique_ptr<ebb::nn::Module> make_model(const std::string& name) {
  require(name == "default" || name == "reference", Kind::value, "model", "unknown model", name,
          "default or reference");
  if (name == "default") return std::make_unique<Net>();
  return std::make_unique<ReferenceNet>();
}

std::unique_ptr<nn::Module> load_model(const std::filesystem::path& path, Device device) {
  constexpr const char* program = "train_mnist";
  const Checkpoint checkpoint = example::load_checkpoint(path, checkpoint_format, program);
  auto model = make_model(example::described(checkpoint, "model", path, program));
  model->load_state(example::weights(checkpoint, path));
  model->to(device);
  model->eval();
  return model;
}

double default_rate(const std::string& name) { return name == "default" ? 4e-3 : 1e-3; }

}  // namespace mnist
