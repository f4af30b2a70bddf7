// Where results go. The folder that a run writes into is checked before the first step, and one
// run's alone.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>

#include "ebb/core/file.h"

namespace example {

// Creates `path` and locks it until destruction; `run.lock` inside holds this process's id.
// The lock is the kernel's, so one that a killed run left behind holds nobody up.
// Error `io`: cannot be created or written, is a file, or another run has it.
class OutputFolder {
 public:
  explicit OutputFolder(const std::filesystem::path& path);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
  ebb::Descriptor lock_;
};

// To stdout, and with `now` out of its buffer. Error `io` as soon as that fails: a full disk, a
// reader that went away.
void put(std::string_view text, bool now);

// Replaces a small file in one step: a reader sees the old one or the new one. Error `io`.
void write_file(const std::filesystem::path& path, std::string_view bytes);

}  // namespace example
