// metrics.jsonl as tests read it.
#pragma once
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ebb::test {

inline std::vector<nlohmann::json> metrics(const std::filesystem::path& path) {
  std::vector<nlohmann::json> records;
  std::ifstream lines(path);
  for (std::string line; std::getline(lines, line);) records.push_back(nlohmann::json::parse(line));
  return records;
}

// The same without what a clock or the allocator said: what a run has computed.
inline std::vector<nlohmann::json> computed(const std::filesystem::path& path) {
  std::vector<nlohmann::json> records = metrics(path);
  for (nlohmann::json& record : records)
    for (const char* key : {"seconds", "images_per_second", "tokens_per_second",
                            "model_flops_per_second", "peak_bytes"})
      record.erase(key);
  return records;
}

}  // namespace ebb::test
