// Internal: not in <ebb/ebb.h>, not installed.
// Files that are whole or absent, and files read without trust. Errors: `io`, naming the path.
#pragma once
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

#include <unistd.h>

namespace ebb {

// The system calls that change a file; tests put failing ones in their place.
struct FileCalls {
  ssize_t (*pwrite)(int file, const void* bytes, size_t n, off_t at) = ::pwrite;
  int (*fsync)(int file) = ::fsync;
  int (*rename)(const char* from, const char* to) = ::rename;
};
FileCalls& file_calls();

// An open file descriptor.
class Descriptor {
 public:
  explicit Descriptor(int file = -1) : file_(file) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept : file_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  int get() const { return file_; }
  int release();

 private:
  int file_;
};

// Written beside `path` as path + ".tmp", which takes path's place in commit() and is removed if
// that never happens. What a killed writer left behind is written over; a second writer of the
// same path is refused while the first is at work.
class AtomicFile {
 public:
  AtomicFile(std::string_view op, std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void append(std::span<const std::byte> bytes);
  void write_at(std::int64_t at, std::span<const std::byte> bytes);  // over what is there
  void commit();  // on disk, name and all, when this returns

 private:
  void open_temporary();
  [[noreturn]] void fail(std::string_view what) const;

  std::string op_;
  std::string path_;
  std::string temporary_;
  Descriptor directory_;
  Descriptor file_;
  std::int64_t size_ = 0;
  bool committed_ = false;
};

// A regular file, read front to back. That it shrinks meanwhile is error `io`.
class InputFile {
 public:
  InputFile(std::string_view op, std::string path);
  std::int64_t size() const { return size_; }
  std::int64_t position() const { return position_; }
  const std::string& path() const { return path_; }
  void read(std::span<std::byte> bytes);

 private:
  std::string op_;
  std::string path_;
  Descriptor file_;
  std::int64_t size_ = 0;
  std::int64_t position_ = 0;
};

}  // namespace ebb
