#include "mnist/idx.h"

#include <algorithm>
#include <array>
#include <iomanip>
#include <limits>
#include <sstream>
#include <string_view>

#include <zlib.h>

#include "common/file.h"
#include "ebb/core/error.h"

namespace mnist {

using ebb::Kind;
using ebb::require;
using ebb::text;
using example::File;
using example::quoted;

namespace {

constexpr std::int64_t gibibyte = std::int64_t{1} << 30;
constexpr std::int64_t most_elements = std::int64_t{1} << 31;
constexpr std::size_t most_dimensions = 4;

// The bytes of a file, unpacked on the way if they are a gzip stream.
class Source {
 public:
  explicit Source(const std::string& path) : file_("idx", path, gibibyte) {
    refill();
    packed_ = buffered_ >= 2 && buffer_[0] == 0x1f && buffer_[1] == 0x8b;
    // 15 bits of window, + 16: a gzip header and trailer, whose CRC and length zlib then checks.
    require(!packed_ || inflateInit2(&stream_, 15 + 16) == Z_OK, Kind::oom, "idx",
            "zlib cannot start", "", "");
  }
  ~Source() {
    if (packed_) inflateEnd(&stream_);
  }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  bool packed() const { return packed_; }
  std::int64_t file_size() const { return file_.size(); }

  // The next bytes, up to n; fewer only at the end.
  std::size_t read(std::uint8_t* to, std::size_t n) {
    return packed_ ? read_packed(to, n) : read_raw(to, n);
  }

  // To be called when all that was declared is read.
  void check_end() {
    std::uint8_t extra = 0;
    const bool more = read(&extra, 1) == 1;
    require(!more || !packed_, Kind::limit, "idx",
            text(quoted(file_.path()), " unpacks to more than its header declares"), "", "");
    if (taken_ == buffered_) refill();
    require(!more && taken_ == buffered_, Kind::format, "idx",
            text(quoted(file_.path()), packed_ ? " has bytes after the end of the gzip stream"
                                               : " has bytes after the last element"),
            "", "");
    file_.check_unchanged();
  }

 private:
  void refill() {
    buffered_ = file_.read(buffer_.data(), buffer_.size());
    taken_ = 0;
  }

  std::size_t read_raw(std::uint8_t* to, std::size_t n) {
    std::size_t done = 0;
    while (done < n) {
      if (taken_ == buffered_) refill();
      const std::size_t part = std::min(n - done, buffered_ - taken_);
      if (part == 0) break;
      std::copy_n(buffer_.data() + taken_, part, to + done);
      taken_ += part;
      done += part;
    }
    return done;
  }

  std::size_t read_packed(std::uint8_t* to, std::size_t n) {
    stream_.next_out = to;
    stream_.avail_out = static_cast<uInt>(n);
    while (stream_.avail_out > 0 && !ended_) {
      if (taken_ == buffered_) refill();
      require(taken_ < buffered_, Kind::format, "idx",
              text(quoted(file_.path()), ": the gzip stream is cut short"), "", "");
      stream_.next_in = buffer_.data() + taken_;
      stream_.avail_in = static_cast<uInt>(buffered_ - taken_);
      const int status = inflate(&stream_, Z_NO_FLUSH);
      taken_ = buffered_ - stream_.avail_in;
      ended_ = status == Z_STREAM_END;
      require(status != Z_MEM_ERROR, Kind::oom, "idx", "zlib has no memory", "", "");
      require(ended_ || status == Z_OK || status == Z_BUF_ERROR, Kind::format, "idx",
              text(quoted(file_.path()), ": damaged gzip stream"),
              stream_.msg ? stream_.msg : "an unknown fault", "");
    }
    return n - stream_.avail_out;
  }

  File file_;
  std::array<std::uint8_t, 1 << 16> buffer_;
  std::size_t buffered_ = 0;
  std::size_t taken_ = 0;
  bool packed_ = false;
  bool ended_ = false;
  z_stream stream_{};
};

std::string magic_text(const std::array<std::uint8_t, 4>& magic) {
  std::ostringstream out;
  out << "magic 0x" << std::hex << std::uppercase << std::setfill('0');
  for (const int byte : magic) out << std::setw(2) << byte;
  if (magic[2] == 0 && magic[3] == 0 && magic[1] != 0) out << " (byte-swapped?)";
  if (magic[0] == 0x1f && magic[1] == 0x8b) out << " (gzip within gzip?)";
  return out.str();
}

std::string_view element_type(int code) {
  constexpr std::string_view from_8[] = {"u8", "i8", "", "i16", "i32", "f32", "f64"};
  return 8 <= code && code < 15 ? from_8[code - 8] : "";
}

void read_header(Source& source, const std::string& path, std::uint8_t* to, std::size_t n) {
  const std::size_t got = source.read(to, n);
  require(got == n, Kind::format, "idx", text(quoted(path), ": truncated header"),
          text(got, " bytes"), text(n));
}

std::vector<std::int64_t> read_shape(Source& source, const std::string& path, std::size_t rank) {
  std::array<std::uint8_t, 4> magic{};
  read_header(source, path, magic.data(), magic.size());
  const std::string_view type = element_type(magic[2]);
  require(magic[0] == 0 && magic[1] == 0 && !type.empty(), Kind::format, "idx",
          text(quoted(path), " is not an idx file"), magic_text(magic), "0x000008.. for bytes");
  require(type == "u8", Kind::dtype, "idx", text(quoted(path), " holds elements of another type"),
          type, "u8");
  const std::size_t dimensions = magic[3];
  require(dimensions <= most_dimensions, Kind::limit, "idx",
          text(quoted(path), " has too many dimensions"), dimensions,
          text("at most ", most_dimensions));
  require(dimensions == rank, Kind::format, "idx",
          text(quoted(path), " has another rank (images and labels swapped?)"),
          text("rank ", dimensions), text("rank ", rank));
  std::array<std::uint8_t, 4 * most_dimensions> bytes{};
  read_header(source, path, bytes.data(), 4 * dimensions);
  std::vector<std::int64_t> shape(dimensions);
  for (std::size_t d = 0; d < dimensions; ++d)
    for (std::size_t b = 0; b < 4; ++b) shape[d] = shape[d] << 8 | bytes[4 * d + b];
  return shape;
}

// The number of elements; no product is formed that could exceed the limits.
std::int64_t declared_size(const std::vector<std::int64_t>& shape, const std::string& path) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  std::int64_t size = 1;
  for (const std::int64_t n : shape) {
    require(n <= most_elements / size, Kind::limit, "idx",
            text(quoted(path), " declares too many elements"),
            text("a size of ", n, " times ", size, " before it"), text("at most ", most_elements));
    size *= n;
  }
  require(size <= gibibyte, Kind::limit, "idx", text(quoted(path), " declares too much data"),
          text(size, " bytes"), text("at most ", gibibyte));
  return size;
}

void check_present(const Source& source, std::int64_t header, std::int64_t declared,
                   const std::string& path) {
  constexpr std::int64_t best_packing = 1032;  // deflate cannot shrink anything further
  const std::int64_t size = source.file_size();
  const bool fits =
      source.packed() ? (declared + header) / best_packing <= size : declared + header == size;
  require(fits, Kind::format, "idx", text(quoted(path), " does not hold the data it declares"),
          text(size - (source.packed() ? 0 : header), source.packed() ? " packed" : "",
               " bytes present"),
          text(declared, " declared"));
}

}  // namespace

Idx read_idx(const std::string& path, std::size_t rank) {
  Source source(path);
  Idx idx;
  idx.shape = read_shape(source, path, rank);
  const std::int64_t declared = declared_size(idx.shape, path);
  check_present(source, static_cast<std::int64_t>(4 + 4 * rank), declared, path);
  // Reserved at once, but touched only as the bytes arrive: a lying header costs address space.
  const auto size = static_cast<std::size_t>(declared);
  constexpr std::size_t step = 1 << 18;
  idx.data.reserve(size);
  while (idx.data.size() < size) {
    const std::size_t before = idx.data.size();
    const std::size_t part = std::min(step, size - before);
    idx.data.resize(before + part);
    const std::size_t got = source.read(idx.data.data() + before, part);
    require(got == part, Kind::format, "idx", text(quoted(path), " ends before its data does"),
            text(before + got, " bytes present"), text(size, " declared"));
  }
  source.check_end();
  return idx;
}

}  // namespace mnist
