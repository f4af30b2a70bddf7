// What a module or an optimizer has under its names.
#pragma once
#include <string>
#include <vector>

#include "ebb/nn/module.h"

namespace ebb::test {

inline std::vector<std::string> names(const nn::NamedTensors& tensors) {
  std::vector<std::string> all;
  for (const auto& [name, t] : tensors) all.push_back(name);
  return all;
}

inline nn::NamedTensors copies(const nn::NamedTensors& tensors) {
  nn::NamedTensors all;
  for (const auto& [name, t] : tensors) all.emplace_back(name, t.clone());
  return all;
}

}  // namespace ebb::test
