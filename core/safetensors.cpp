#include "ebb/core/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <locale>
#include <optional>
#include <set>
#include <span>
#include <sstream>

#include "ebb/core/crc32.h"
#include "ebb/core/error.h"
#include "ebb/core/file.h"
#include "ebb/core/safetensors_header.h"
#include "ebb/core/utf8.h"

namespace ebb {
namespace {

using safetensors::Entry;
using safetensors::Header;

static_assert(std::endian::native == std::endian::little, "the format's numbers are little-endian");

constexpr std::string_view format_version = "1";
constexpr size_t checksum_digits = 8;
const std::string no_checksum(checksum_digits, '0');

std::string hex(std::uint32_t value) {
  std::string out;
  for (int shift = 28; shift >= 0; shift -= 4) out += "0123456789abcdef"[value >> shift & 15];
  return out;
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string_view spelled(Dtype dtype) {
  constexpr std::array<std::string_view, 5> names = {"F32", "F64", "BF16", "I32", "U8"};
  return names[static_cast<size_t>(dtype)];
}

bool is_text(std::string_view text) {
  while (!text.empty()) {
    const CodePoint point = first_code_point(text);
    if (point.bytes == 0 || point.value == 0) return false;
    text.remove_prefix(static_cast<size_t>(point.bytes));
  }
  return true;
}

void check_tensors(const Checkpoint& checkpoint) {
  constexpr std::string_view op = "save_safetensors";
  require(checkpoint.tensors.size() <= safetensors::max_tensors, Kind::limit, op,
          "too many tensors", checkpoint.tensors.size(), safetensors::max_tensors);
  std::set<std::string_view> names;
  for (const auto& [name, x] : checkpoint.tensors) {
    const char* fault = safetensors::name_fault(name);
    require(!fault, Kind::value, op, text("a tensor's name ", fault ? fault : ""), name,
            "1 to 255 bytes of printable UTF-8");
    require(name != safetensors::metadata_key, Kind::value, op, "reserved name", name, "another");
    require(names.insert(name).second, Kind::value, op, "a name is used twice", name, "one each");
    require(x.defined(), Kind::state, op, text("`", name, "` is undefined"), "no elements",
            "a tensor");
  }
}

void check_metadata(const Checkpoint& checkpoint) {
  constexpr std::string_view op = "save_safetensors";
  size_t bytes = 0;
  for (const auto& [key, value] : checkpoint.metadata) {
    require(is_text(key) && is_text(value), Kind::value, op, "metadata must be UTF-8 without NUL",
            key, "text");
    require(!key.starts_with("ebb."), Kind::value, op, "reserved metadata key", key,
            "one that does not start with ebb.");
    bytes += key.size() + value.size();
  }
  constexpr auto most = static_cast<size_t>(safetensors::max_metadata) - 64;  // ours is added
  require(bytes <= most, Kind::limit, op, "too much metadata", text(bytes, " bytes"),
          text("at most ", most));
  require(checkpoint.metadata.size() <= safetensors::max_tensors - 2, Kind::limit, op,
          "too many metadata strings", checkpoint.metadata.size(), safetensors::max_tensors - 2);
}

// The order of the data: large elements first, so that every tensor is aligned for those who map
// the file into memory; otherwise as given.
std::vector<size_t> data_order(const Checkpoint& checkpoint) {
  std::vector<size_t> order(checkpoint.tensors.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::stable_sort(order, std::ranges::greater{},
                           [&](size_t i) { return size_of(checkpoint.tensors[i].second.dtype()); });
  return order;
}

struct Written {
  std::string text;        // padded with spaces to a multiple of 8 bytes
  size_t checksum_at = 0;  // where in it the checksum's digits stand
};

Written written_header(const Checkpoint& checkpoint, const std::vector<size_t>& order) {
  using safetensors::quoted;
  std::vector<std::int64_t> begin(order.size());
  std::int64_t at = 0;
  for (const size_t i : order) {
    begin[i] = at;
    at += checkpoint.tensors[i].second.bytes();
  }
  std::ostringstream json;
  json.imbue(std::locale::classic());
  json << '{' << quoted(safetensors::metadata_key) << ":{" << quoted(safetensors::checksum_key)
       << ':';
  const auto checksum_at = static_cast<size_t>(json.tellp()) + 1;  // after its quote
  json << quoted(no_checksum) << ',' << quoted(safetensors::version_key) << ':'
       << quoted(format_version);
  for (const auto& [key, value] : checkpoint.metadata)
    json << ',' << quoted(key) << ':' << quoted(value);
  json << '}';
  for (size_t i = 0; i < order.size(); ++i) {
    const auto& [name, x] = checkpoint.tensors[i];
    json << ',' << quoted(name) << ":{\"dtype\":\"" << spelled(x.dtype())
         << "\",\"shape\":" << x.shape() << ",\"data_offsets\":[" << begin[i] << ','
         << begin[i] + x.bytes() << "]}";
  }
  json << '}';
  Written header{json.str(), checksum_at};
  std::string& out = header.text;
  out.resize((out.size() + 7) / 8 * 8, ' ');
  require(static_cast<std::int64_t>(out.size()) <= safetensors::max_header, Kind::limit,
          "save_safetensors", "the header is too large", out.size(), safetensors::max_header);
  return header;
}

}  // namespace

const Tensor* Checkpoint::find(std::string_view name) const {
  const auto found =
      std::ranges::find(tensors, name, [](const auto& t) -> std::string_view { return t.first; });
  return found == tensors.end() ? nullptr : &found->second;
}

// The checksum covers the header, with zeros for its own digits, and the data.
void save_safetensors(const std::string& path, const Checkpoint& checkpoint) {
  check_tensors(checkpoint);
  check_metadata(checkpoint);
  const std::vector<size_t> order = data_order(checkpoint);
  const Written header = written_header(checkpoint, order);
  AtomicFile file("save_safetensors", path);
  const std::uint64_t length = header.text.size();
  file.append(std::as_bytes(std::span(&length, 1)));
  file.append(bytes_of(header.text));
  std::uint32_t checksum = crc32(0, bytes_of(header.text));
  for (const size_t i : order) {
    const Tensor here = checkpoint.tensors[i].second.to(cpu_device);
    const std::span data(static_cast<const std::byte*>(here.raw()),
                         static_cast<size_t>(here.bytes()));
    file.append(data);
    checksum = crc32(checksum, data);
  }
  file.write_at(static_cast<std::int64_t>(sizeof(length) + header.checksum_at),
                bytes_of(hex(checksum)));
  file.commit();
}

namespace {

constexpr std::string_view load = "load_safetensors";

std::string read_header_text(InputFile& file) {
  const std::string& path = file.path();
  std::uint64_t length = 0;
  constexpr std::int64_t prefix = sizeof(length);
  require(file.size() >= prefix, Kind::format, load, text(path, ": the header is too small"),
          text(file.size(), " bytes"), "8 bytes of length and a header");
  file.read(std::as_writable_bytes(std::span(&length, 1)));
  require(length <= safetensors::max_header, Kind::limit, load,
          text(path, ", byte 0: the header is too large"), text(length, " bytes"),
          text("at most ", safetensors::max_header));
  const auto most = static_cast<std::uint64_t>(file.size() - prefix);
  require(length <= most, Kind::format, load,
          text(path, ", byte 0: the header is longer than the file"), text(length, " bytes"),
          text("at most ", most));
  std::string header(length, '\0');
  file.read(std::as_writable_bytes(std::span(header)));
  return header;
}

std::optional<Dtype> held(std::string_view dtype) {
  for (const Dtype d : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::i32, Dtype::u8})
    if (spelled(d) == dtype) return d;
  return std::nullopt;
}

std::vector<bool> wanted_of(const std::vector<Entry>& entries, const LoadOptions& options) {
  std::vector<bool> wanted;
  for (const Entry& e : entries) wanted.push_back(!options.wanted || options.wanted(e.name));
  return wanted;
}

void check_dtypes(const std::string& path, const std::vector<Entry>& entries,
                  const std::vector<bool>& wanted, const LoadOptions& options) {
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!wanted[i]) continue;
    const Entry& e = entries[i];
    const bool narrowed = options.narrow_i64 && e.dtype == "I64";
    require(narrowed || held(e.dtype), Kind::dtype, load,
            text(path, ": `", e.name, "` has an element type that ebb does not have"), e.dtype,
            e.dtype == "I64" ? "F32, F64, BF16, I32 or U8 (or narrow_i64 to be set)"
                             : "F32, F64, BF16, I32 or U8");
  }
}

// Both of our keys or neither, so that a damaged key is noticed. True when there is a checksum.
bool check_version(const std::string& path, const Header& header, std::string_view json) {
  const auto version = header.metadata.find(std::string(safetensors::version_key));
  const auto checksum = header.metadata.find(std::string(safetensors::checksum_key));
  const auto none = header.metadata.end();
  require((version == none) == (checksum == none), Kind::format, load,
          text(path, ": the file's version and checksum do not come together"),
          version == none ? "no ebb.version" : "no ebb.crc32", "both or neither");
  if (version == none) return false;
  require(version->second == format_version, Kind::format, load,
          text(path, ": the file is of another version of ebb"), version->second, format_version);
  const std::string& digits = checksum->second;
  const auto at = static_cast<size_t>(header.checksum_at);
  require(digits.size() == checksum_digits && json.substr(at, checksum_digits) == digits,
          Kind::format, load, text(path, ": the checksum is not 8 hexadecimal digits"), digits,
          "as 0123abcd");
  return true;
}

// Reads n numbers of 64 bits into i32, a block at a time.
std::uint32_t read_narrowed(InputFile& file, const Entry& entry, Tensor& y, std::uint32_t crc) {
  constexpr size_t block = 4096;
  std::array<std::int64_t, block> wide;
  std::int32_t* out = y.data<std::int32_t>();
  const auto n = static_cast<size_t>(y.numel());
  for (size_t done = 0; done < n; done += block) {
    const std::span part(wide.data(), std::min(block, n - done));
    file.read(std::as_writable_bytes(part));
    crc = crc32(crc, std::as_bytes(part));
    for (size_t i = 0; i < part.size(); ++i) {
      out[done + i] = static_cast<std::int32_t>(part[i]);
      require(
          out[done + i] == part[i], Kind::value, load,
          text(file.path(), ": element ", done + i, " of `", entry.name, "` does not fit into i32"),
          part[i], "-2^31 to 2^31 - 1");
    }
  }
  return crc;
}

constexpr size_t block_bytes = size_t{1} << 18;

// Damaged data is summed while it is still in the cache.
std::uint32_t read_as_is(InputFile& file, Tensor& y, std::uint32_t crc) {
  std::span rest(static_cast<std::byte*>(y.raw()), static_cast<size_t>(y.bytes()));
  while (!rest.empty()) {
    const auto part = rest.first(std::min(block_bytes, rest.size()));
    file.read(part);
    crc = crc32(crc, part);
    rest = rest.subspan(part.size());
  }
  return crc;
}

std::uint32_t pass_over(InputFile& file, std::int64_t bytes, std::uint32_t crc) {
  std::vector<std::byte> part(std::min(block_bytes, static_cast<size_t>(bytes)));
  for (auto left = static_cast<size_t>(bytes); left > 0; left -= part.size()) {
    part.resize(std::min(part.size(), left));
    file.read(part);
    crc = crc32(crc, part);
  }
  return crc;
}

// In the order of the data; what is wanted comes in the header's.
std::uint32_t read_tensors(InputFile& file, const std::vector<Entry>& entries,
                           const std::vector<bool>& wanted, std::uint32_t crc,
                           Checkpoint& checkpoint) {
  std::vector<size_t> order(entries.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::sort(order, {}, [&](size_t i) { return std::pair(entries[i].begin, i); });
  std::vector<Tensor> read(entries.size());
  for (const size_t i : order) {
    const Entry& e = entries[i];
    if (!wanted[i]) {
      crc = pass_over(file, e.end - e.begin, crc);
      continue;
    }
    const std::optional<Dtype> dtype = held(e.dtype);
    read[i] = empty(e.shape, {.dtype = dtype.value_or(Dtype::i32)});
    crc = dtype ? read_as_is(file, read[i], crc) : read_narrowed(file, e, read[i], crc);
  }
  for (size_t i = 0; i < read.size(); ++i)
    if (read[i].defined()) checkpoint.tensors.emplace_back(entries[i].name, read[i]);
  return crc;
}

}  // namespace

Checkpoint load_safetensors(const std::string& path, const LoadOptions& options) {
  InputFile file(load, path);
  std::string json = read_header_text(file);
  Header header = safetensors::parse_header(path, json, file.size() - file.position());
  const std::vector<bool> wanted = wanted_of(header.entries, options);
  check_dtypes(path, header.entries, wanted, options);
  const bool summed = check_version(path, header, json);
  std::string expected;
  if (summed) {
    const auto at = static_cast<size_t>(header.checksum_at);
    expected = json.substr(at, checksum_digits);
    json.replace(at, checksum_digits, no_checksum);
  }
  Checkpoint checkpoint;
  const std::uint32_t crc =
      read_tensors(file, header.entries, wanted, crc32(0, bytes_of(json)), checkpoint);
  require(!summed || hex(crc) == expected, Kind::format, load,
          text(path, ": the file is damaged: its CRC-32 differs"), hex(crc), expected);
  header.metadata.erase(std::string(safetensors::version_key));
  header.metadata.erase(std::string(safetensors::checksum_key));
  checkpoint.metadata = std::move(header.metadata);
  return checkpoint;
}

}  // namespace ebb
