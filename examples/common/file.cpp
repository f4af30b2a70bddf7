#include "common/file.h"

#include <cerrno>
#include <cstdlib>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

namespace example {

using ebb::Kind;
using ebb::require;
using ebb::text;

namespace {

// Why the call that gave this status failed. Taking the status keeps the call before it, and not
// looking at success keeps good reads cheap.
std::string reason(int status) {
  return status < 0 ? std::generic_category().message(errno) : std::string();
}

}  // namespace

std::string quoted(const std::string& path) {
  constexpr std::size_t longest = 300;
  if (path.size() <= longest) return '"' + path + '"';
  return '"' + path.substr(0, longest) + "…\" (" + std::to_string(path.size()) + " bytes)";
}

std::string join(const std::string& folder, const std::string& name) {
  if (folder.empty() || name.empty()) return folder + name;
  return folder.back() == '/' ? folder + name : folder + '/' + name;
}

bool present(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

std::vector<std::string> data_folders() {
  std::vector<std::string> all;
  if (const char* named = std::getenv("EBB_DATA"); named && *named) all.emplace_back(named);
  all.emplace_back("data");
  if (const char* home = std::getenv("HOME"); home && *home)
    all.push_back(join(home, ".cache/ebb"));
  return all;
}

File::File(std::string op, std::string path, std::int64_t limit)
    : op_(std::move(op)), path_(std::move(path)) {
  // A path with a NUL in it would open another file than the one it names.
  require(path_.find('\0') == std::string::npos, Kind::io, op_, text("cannot open ", quoted(path_)),
          "a NUL byte in the path", "");
  // Opening some devices acts on them, so look first; look again at what was opened.
  const int looked = ::stat(path_.c_str(), &before_);
  require(looked == 0, Kind::io, op_, text("cannot open ", quoted(path_)), reason(looked),
          "a readable file");
  require(S_ISREG(before_.st_mode), Kind::io, op_, text("cannot read ", quoted(path_)),
          S_ISDIR(before_.st_mode) ? "a directory" : "a FIFO, socket or device", "a regular file");
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  require(descriptor_ >= 0, Kind::io, op_, text("cannot open ", quoted(path_)), reason(descriptor_),
          "a readable file");
  const bool same = ::fstat(descriptor_, &before_) == 0 && S_ISREG(before_.st_mode);
  const bool small = before_.st_size <= limit;
  if (same && small) return;
  ::close(descriptor_);
  require(same, Kind::io, op_, text(quoted(path_), " was replaced while it was opened"), "",
          "a regular file");
  require(small, Kind::limit, op_, text(quoted(path_), " is too large"),
          text(before_.st_size, " bytes"), text("at most ", limit));
}

File::~File() { ::close(descriptor_); }

std::size_t File::read(std::uint8_t* to, std::size_t n) {
  std::size_t done = 0;
  while (done < n) {
    const ssize_t got = ::read(descriptor_, to + done, n - done);
    if (got < 0 && errno == EINTR) continue;
    require(got >= 0, Kind::io, op_, text("cannot read ", quoted(path_)),
            reason(static_cast<int>(got)), "");
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

void File::check_unchanged() const {
  struct stat now {};
  const bool same = ::fstat(descriptor_, &now) == 0 && now.st_size == before_.st_size &&
                    now.st_mtim.tv_sec == before_.st_mtim.tv_sec &&
                    now.st_mtim.tv_nsec == before_.st_mtim.tv_nsec;
  require(same, Kind::io, op_, text(quoted(path_), " changed while it was read"), "", "");
}

}  // namespace example
