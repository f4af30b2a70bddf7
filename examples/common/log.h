// metrics.jsonl: one JSON object a line, on disk when write() returns, numbers finite or null.
#pragma once
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

namespace example {

using Json = nlohmann::ordered_json;

class MetricsLog {
 public:
  // Continues the file after `step`: keeps its whole lines whose "step" is at most that, in order,
  // and drops the rest, among them one that a killed run left half written. A step of -1 begins
  // anew. Error `io`.
  MetricsLog(const std::filesystem::path& path, std::int64_t step);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  //   log.write({{"step", 100}, {"loss", 0.25}});                              Error `io`.
  void write(const Json& record);

  // Everything that the file holds, for the plot of a resumed run.
  const std::vector<Json>& records() const { return records_; }

 private:
  std::filesystem::path path_;
  std::FILE* file_ = nullptr;
  std::vector<Json> records_;
};

}  // namespace example
