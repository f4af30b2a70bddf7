// The two nets for 28×28 digits; both map [N,1,28,28] to ten logits [N,10].
#pragma once
#include <filesystem>
#include <memory>
#include <string>

#include "ebb/ebb.h"

namespace mnist {

inline constexpr const char* checkpoint_format = "ebb mnist 1";

// "default": three batch-normalised convolutions of 16, 32 and 32 channels, two poolings, a hidden
// layer of 128.
// "reference": the net of PyTorch's MNIST example, with its parameters' names.
// Initial values come from ebb::default_generator(). Error `value` for another name.
std::unique_ptr<ebb::nn::Module> make_model(const std::string& name);

// A model for evaluation or prediction from a checkpoint: its weights, and the net they say they
// are of. Errors as load_safetensors(), `format` when it is no checkpoint of train_mnist.
std::unique_ptr<ebb::nn::Module> load_model(const std::filesystem::path& path, ebb::Device device);

// The peak learning rate that each is trained with when none is given.
double default_rate(const std::string& name);

}  // namespace mnist
