#include "common/log.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

#include "common/output.h"
#include "ebb/core/error.h"

namespace example {

using ebb::Kind;
using ebb::require;
using ebb::text;

namespace {

bool is_kept(const Json& record, std::int64_t step) {
  if (!record.is_object()) return false;
  const auto found = record.find("step");
  return found != record.end() && found->is_number_integer() && found->get<std::int64_t>() <= step;
}

std::vector<Json> read_until(const std::filesystem::path& path, std::int64_t step) {
  std::vector<Json> records;
  std::error_code unknown;
  if (!std::filesystem::is_regular_file(path, unknown)) return records;  // a FIFO would not end
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (file.eof()) break;  // no newline: cut off while it was written
    Json record = Json::parse(line, nullptr, false);
    if (is_kept(record, step)) records.push_back(std::move(record));
  }
  return records;
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& path, std::int64_t step) : path_(path) {
  if (step >= 0) records_ = read_until(path, step);
  std::string kept;
  for (const Json& record : records_) kept += record.dump() + "\n";
  write_file(path, kept);
  file_ = std::fopen(path.c_str(), "ae");
  require(file_ != nullptr, Kind::io, "log", text("cannot write ", path.string()),
          std::strerror(errno), "a folder that can be written");
}

MetricsLog::~MetricsLog() { std::fclose(file_); }

void MetricsLog::write(const Json& record) {
  // dump() writes nan and inf as null; bytes that are no UTF-8 must not end a run.
  const std::string line = record.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  const bool written =
      std::fwrite(line.data(), 1, line.size(), file_) == line.size() && std::fflush(file_) == 0;
  require(written, Kind::io, "log", text("cannot write ", path_.string()), std::strerror(errno),
          "space and permission");
  records_.push_back(record);
}

}  // namespace example
