#include "common/output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <span>

#include "common/file.h"
#include "ebb/core/error.h"

namespace example {

using ebb::Kind;
using ebb::require;
using ebb::text;

namespace {

std::string reason() { return std::strerror(errno); }

// Whether the file that `name` stands for now is the one that is open: its last owner may have
// removed it between our open and our lock.
bool still_named(int file, const char* name) {
  struct stat opened = {};
  struct stat named = {};
  return fstat(file, &opened) == 0 && stat(name, &named) == 0 && opened.st_ino == named.st_ino &&
         opened.st_dev == named.st_dev;
}

std::string owner_of(int file) {
  char id[32] = {};
  const ssize_t n = pread(file, id, sizeof id - 1, 0);
  return n > 0 ? "process " + std::string(id, static_cast<size_t>(n)) : "another run";
}

ebb::Descriptor lock(const std::filesystem::path& path) {
  const std::string name = path / "run.lock";
  for (;;) {
    ebb::Descriptor file(open(name.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644));
    require(file.get() >= 0, Kind::io, "out", text("cannot write into ", path.string()), reason(),
            "a folder that can be written");
    const bool locked = flock(file.get(), LOCK_EX | LOCK_NB) == 0;
    const bool taken = !locked && errno == EWOULDBLOCK;
    require(locked, Kind::io, "out", text(path.string(), " is in use"),
            taken ? owner_of(file.get()) : reason(), "to be the only run there, or another --out");
    if (still_named(file.get(), name.c_str())) return file;
  }
}

}  // namespace

OutputFolder::OutputFolder(const std::filesystem::path& path) : path_(path) {
  std::error_code failed, unknown;
  std::filesystem::create_directories(path, failed);
  require(!failed || std::filesystem::is_directory(path, unknown), Kind::io, "out",
          text("cannot create ", quoted(path.string())), failed.message(),
          "a folder that can be written");
  lock_ = lock(path);
  if (ftruncate(lock_.get(), 0) == 0 && dprintf(lock_.get(), "%d", getpid()) > 0) return;
  const std::string why = reason();
  unlink((path_ / "run.lock").c_str());
  require(false, Kind::io, "out", text("cannot write into ", path.string()), why,
          "space and permission");
}

OutputFolder::~OutputFolder() { unlink((path_ / "run.lock").c_str()); }

void put(std::string_view text, bool now) {
  const bool taken = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  // A line that was taken, but could not be passed on, only leaves the stream's error.
  if (taken && (!now || std::fflush(stdout) == 0) && std::ferror(stdout) == 0) return;
  ebb::raise(Kind::io, "output", "cannot be written", reason(), "space, and a reader");
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  ebb::AtomicFile file("out", path.string());
  file.append(std::as_bytes(std::span(bytes)));
  file.commit();
}

}  // namespace example
