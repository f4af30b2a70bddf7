#include "ebb/core/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "ebb/core/error.h"

namespace ebb {
namespace {

[[noreturn]] void fail_io(std::string_view op, std::string_view path, std::string_view what,
                          const char* expected = "a file there") {
  const std::string reason = std::generic_category().message(errno);
  std::string where(path);
  raise(Kind::io, op, where.append(": ").append(what), reason, expected);
}

// Repeats a call that a signal interrupted.
template <class F>
auto retried(F&& call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

// The system would stop at a NUL and use another name.
void require_path(std::string_view op, const std::string& path) {
  require(!path.empty() && path.find('\0') == std::string::npos, Kind::io, op, "not a file name",
          path.empty() ? "nothing" : path, "a path without NUL");
}

std::string parent_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

FileCalls& file_calls() {
  static FileCalls calls;
  return calls;
}

Descriptor::~Descriptor() {
  if (file_ >= 0) ::close(file_);
}
Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(file_, other.file_);
  return *this;
}
int Descriptor::release() { return std::exchange(file_, -1); }

void AtomicFile::fail(std::string_view what) const {
  fail_io(op_, path_, what, "a place to write a file to");
}

AtomicFile::AtomicFile(std::string_view op, std::string path)
    : op_(op), path_(std::move(path)), temporary_(path_ + ".tmp") {
  require_path(op, path_);
  struct stat old {};
  if (::stat(path_.c_str(), &old) == 0) {
    errno = S_ISDIR(old.st_mode) ? EISDIR : EINVAL;
    if (!S_ISREG(old.st_mode)) fail("not a regular file");
  } else if (errno != ENOENT) {
    fail("cannot be written");
  }
  directory_ = Descriptor(::open(parent_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory_.get() < 0) fail("its directory cannot be opened");
  open_temporary();
}

// Another writer may rename its temporary between our open and our lock: then the file that we hold
// is its finished one, not a temporary, and must not be touched.
void AtomicFile::open_temporary() {
  constexpr mode_t mode = 0666;
  for (;;) {
    const int flags = O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    Descriptor file(retried([&] { return ::open(temporary_.c_str(), flags, mode); }));
    if (file.get() < 0) fail("its temporary cannot be created");
    if (retried([&] { return ::flock(file.get(), LOCK_EX | LOCK_NB); }) != 0)
      fail("someone else is writing it");
    struct stat held {};
    struct stat named {};
    if (::fstat(file.get(), &held) != 0) fail("its temporary cannot be examined");
    if (::lstat(temporary_.c_str(), &named) != 0 || held.st_ino != named.st_ino ||
        held.st_dev != named.st_dev)
      continue;
    errno = EINVAL;
    if (!S_ISREG(held.st_mode)) fail("its temporary is not a regular file");
    file_ = std::move(file);
    if (retried([&] { return ::ftruncate(file_.get(), 0); }) == 0) return;
    ::unlink(temporary_.c_str());
    fail("its temporary cannot be emptied");
  }
}

AtomicFile::~AtomicFile() {
  if (!committed_ && file_.get() >= 0) ::unlink(temporary_.c_str());
}

void AtomicFile::append(std::span<const std::byte> bytes) {
  write_at(size_, bytes);
  size_ += static_cast<std::int64_t>(bytes.size());
}

void AtomicFile::write_at(std::int64_t at, std::span<const std::byte> bytes) {
  constexpr size_t most = size_t{1} << 30;  // Linux moves at most 2 GiB a call
  while (!bytes.empty()) {
    const ssize_t n = retried([&] {
      return file_calls().pwrite(file_.get(), bytes.data(), std::min(bytes.size(), most), at);
    });
    if (n == 0) errno = ENOSPC;
    if (n <= 0) fail("cannot be written");
    bytes = bytes.subspan(static_cast<size_t>(n));
    at += n;
  }
}

// A failed fsync is not tried again: the kernel may have dropped the pages and would say yes.
void AtomicFile::commit() {
  if (file_calls().fsync(file_.get()) != 0) fail("cannot be brought to the disk");
  if (file_calls().rename(temporary_.c_str(), path_.c_str()) != 0)
    fail("the temporary cannot take its place");
  committed_ = true;
  if (file_calls().fsync(directory_.get()) != 0)
    fail("was written, but its name may not survive a power cut");
}

// Not blocking: the open of a FIFO would wait for a writer.
InputFile::InputFile(std::string_view op, std::string path) : op_(op), path_(std::move(path)) {
  require_path(op, path_);
  file_ =
      Descriptor(retried([&] { return ::open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC); }));
  if (file_.get() < 0) fail_io(op_, path_, "cannot be opened");
  struct stat status {};
  if (::fstat(file_.get(), &status) != 0) fail_io(op_, path_, "cannot be examined");
  errno = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
  if (!S_ISREG(status.st_mode)) fail_io(op_, path_, "not a regular file");
  size_ = status.st_size;
}

void InputFile::read(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = retried([&] { return ::read(file_.get(), bytes.data(), bytes.size()); });
    if (n < 0) fail_io(op_, path_, "cannot be read", "no error");
    require(n > 0, Kind::io, op_, text(path_, ": the file became shorter while it was read"),
            text(position_, " bytes"), text(size_, " bytes"));
    bytes = bytes.subspan(static_cast<size_t>(n));
    position_ += n;
  }
}

}  // namespace ebb
