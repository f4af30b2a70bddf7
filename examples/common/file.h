// Files from outside, read with care: only regular files (a FIFO must not hang, a device not be
// opened), no larger than the reader allows, and noticed when they change while they are read.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <sys/stat.h>

#include "ebb/core/error.h"

namespace example {

// A path as messages show it: in quotes, shortened when it is very long.
std::string quoted(const std::string& path);

std::string join(const std::string& folder, const std::string& name);

// Whether something is there by that name. A loop of links, a forbidden folder and the like count
// as there: opening it then tells what is wrong, instead of a search passing over it.
bool present(const std::string& path);

// Where data is looked for when no other place is named: $EBB_DATA, data and ~/.cache/ebb.
std::vector<std::string> data_folders();

// Errors begin with `op` and name the path: `io` with the system's reason, `limit` for the size.
class File {
 public:
  File(std::string op, std::string path, std::int64_t limit);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  std::int64_t size() const { return before_.st_size; }

  // The next bytes, up to n; fewer only at the end of the file.
  std::size_t read(std::uint8_t* to, std::size_t n);

  // To be called once all is read: error `io` if the file has changed since it was opened.
  void check_unchanged() const;

 private:
  std::string op_;
  std::string path_;
  int descriptor_ = -1;
  struct stat before_ {};
};

// All of a file.
template <class Bytes>  // std::string or std::vector<std::uint8_t>
Bytes read_file(const std::string& op, const std::string& path, std::int64_t limit) {
  File file(op, path, limit);
  Bytes bytes(static_cast<std::size_t>(file.size()), {});
  const std::size_t got = file.read(reinterpret_cast<std::uint8_t*>(bytes.data()), bytes.size());
  file.check_unchanged();
  ebb::require(got == bytes.size(), ebb::Kind::io, op,
               ebb::text(quoted(path), " shrank while it was read"), got, bytes.size());
  return bytes;
}

}  // namespace example
