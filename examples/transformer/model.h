// Models in checkpoints.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "common/checkpoint.h"
#include "ebb/nn/transformer.h"
#include "transformer/problems.h"

namespace transformer {

inline constexpr const char* checkpoint_format = "ebb transformer 1";

// A net as a checkpoint's metadata says it, in JSON; its dropout is no part of it.
std::string described(const ebb::nn::TransformerOptions& options);

struct Loaded {
  Vocabulary vocabulary;
  std::optional<Problems> problems;  // unless the model is one of texts
  std::unique_ptr<ebb::nn::Transformer> model;
};

// For evaluation, in f32. Errors as load_safetensors(); `format` when the file is no checkpoint of
// train_transformer, or its weights are not those of the net that it describes.
Loaded load_model(const std::filesystem::path& path, ebb::Device device);

}  // namespace transformer
