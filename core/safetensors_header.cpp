#include "ebb/core/safetensors_header.h"

#include <algorithm>
#include <iterator>

#include "ebb/core/error.h"
#include "ebb/core/utf8.h"

namespace ebb::safetensors {
namespace {

constexpr std::string_view op = "load_safetensors";

struct Type {
  std::string_view name;
  std::int64_t bytes;
};
constexpr Type types[] = {{"F32", 4}, {"F64", 8}, {"BF16", 2}, {"I32", 4}, {"U8", 1},
                          {"I64", 8}, {"F16", 2}, {"BOOL", 1}, {"I8", 1},  {"I16", 2},
                          {"U16", 2}, {"U32", 4}, {"U64", 8}};

// Reads exactly the JSON that a header may hold, so that nesting is bounded by the grammar.
class Parser {
 public:
  Parser(const std::string& path, std::string_view json) : path_(path), json_(json) {}

  Header header() {
    Header header;
    check(json_.starts_with('{'), "the header does not start with {");
    bool metadata = false;
    object([&](std::string name, size_t at) {
      if (name == metadata_key) {
        check_at(at, !metadata, "duplicate `__metadata__`");
        metadata = true;
        read_metadata(header);
      } else {
        limit(at, header.entries.size() < max_tensors, "too many tensors", max_tensors);
        header.entries.push_back(entry(std::move(name), at));
      }
    });
    for (; at_ < json_.size(); ++at_) check(json_[at_] == ' ', "text after the header's end");
    return header;
  }

 private:
  template <class What>
  void check_at(size_t at, bool ok, const What& what) const {
    require(ok, Kind::format, op, text(path_, ", byte ", 8 + at, ": ", what), seen(at),
            "a header as the format has it");
  }
  template <class What>
  void check(bool ok, const What& what) const {
    check_at(at_, ok, what);
  }
  template <class What, class Most>
  void limit(size_t at, bool ok, const What& what, const Most& most) const {
    require(ok, Kind::limit, op, text(path_, ", byte ", 8 + at, ": ", what), "more",
            text("at most ", most));
  }
  std::string_view seen(size_t at) const {
    constexpr size_t most = 24;
    return at < json_.size() ? json_.substr(at, most) : "its end";
  }

  char peek() const { return at_ < json_.size() ? json_[at_] : '\0'; }
  void spaces() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\t' || peek() == '\r') ++at_;
  }
  void expect(char c) {
    spaces();
    check(at_ < json_.size(), "the header ends too early");
    check(peek() == c, text("expected ", c));
    ++at_;
  }
  bool next_is(char c) {
    spaces();
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  // Calls member(key, where) with the reader before each value.
  template <class F>
  void object(F&& member) {
    expect('{');
    if (next_is('}')) return;
    do {
      spaces();
      const size_t at = at_;
      std::string key = string();
      expect(':');
      member(std::move(key), at);
    } while (next_is(','));
    expect('}');
  }

  template <class F>
  void array(F&& element) {
    expect('[');
    if (next_is(']')) return;
    do element();
    while (next_is(','));
    expect(']');
  }

  std::string string() {
    expect('"');
    const size_t start = at_;
    std::string out;
    for (;;) {
      check(at_ < json_.size(), "the header ends inside a string");
      limit(start, static_cast<std::int64_t>(out.size()) <= max_metadata, "a string is too long",
            "16 MiB");
      const char c = json_[at_];
      if (c == '"') break;
      if (c == '\\') {
        escape(out);
        continue;
      }
      check(static_cast<unsigned char>(c) >= 0x20, "a control character in a string");
      const CodePoint point = first_code_point(json_.substr(at_));
      check(point.bytes > 0, "not UTF-8");
      out.append(json_, at_, static_cast<size_t>(point.bytes));
      at_ += static_cast<size_t>(point.bytes);
    }
    ++at_;
    return out;
  }

  void escape(std::string& out) {
    constexpr std::string_view letters = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    const size_t start = at_++;
    const size_t letter = letters.find(peek());
    if (at_ < json_.size() && letter != std::string_view::npos) {
      ++at_;
      out += meanings[letter];
      return;
    }
    check_at(start, peek() == 'u', "unknown escape");
    ++at_;
    std::uint32_t c = hex4();
    if (0xD800 <= c && c <= 0xDBFF && json_.substr(at_).starts_with("\\u")) {
      at_ += 2;
      const std::uint32_t low = hex4();
      check_at(start, 0xDC00 <= low && low <= 0xDFFF, "lone surrogate");
      c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    check_at(start, c < 0xD800 || c > 0xDFFF, "lone surrogate");
    check_at(start, c != 0, "NUL in a string");
    append_utf8(out, c);
  }

  std::uint32_t hex4() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      constexpr std::string_view digits = "0123456789abcdef";
      const char c = peek();
      const size_t digit = digits.find('A' <= c && c <= 'F' ? static_cast<char>(c + 32) : c);
      check(at_ < json_.size() && digit != std::string_view::npos, "bad \\u escape");
      value = value << 4 | static_cast<std::uint32_t>(digit);
    }
    return value;
  }

  std::int64_t number(std::string_view name) {
    spaces();
    const size_t start = at_;
    std::int64_t value = 0;
    const auto is_digit = [](char c) { return '0' <= c && c <= '9'; };
    for (; is_digit(peek()); ++at_) {
      value = 10 * value + (peek() - '0');
      limit(start, value <= max_number, text("a number of `", name, "` is too large"), "2^48");
    }
    const bool plain = at_ > start && (json_[start] != '0' || at_ == start + 1);
    const bool ended = peek() == ',' || peek() == ']' || peek() == ' ' || peek() == '\n' ||
                       peek() == '\t' || peek() == '\r';
    check_at(start, plain && ended, text("`", name, "` needs plain decimal numbers here"));
    return value;
  }

  void read_metadata(Header& header) {
    std::int64_t bytes = 0;
    object([&](std::string key, size_t at) {
      spaces();
      check(peek() == '"', text("the metadata's `", key, "` is not a string"));
      if (key == checksum_key) header.checksum_at = static_cast<std::int64_t>(at_ + 1);
      std::string value = string();
      bytes += static_cast<std::int64_t>(key.size() + value.size());
      limit(at, bytes <= max_metadata, "too much metadata", "16 MiB");
      limit(at, header.metadata.size() < max_tensors, "too many metadata strings", max_tensors);
      const bool added = header.metadata.emplace(key, std::move(value)).second;
      check_at(at, added, text("duplicate `", key, "` in the metadata"));
    });
  }

  Entry entry(std::string name, size_t at) {
    const char* fault = name_fault(name);
    check_at(at, !fault, text("a tensor's name ", fault ? fault : ""));
    Entry entry;
    entry.at = static_cast<std::int64_t>(8 + at);
    bool dtype = false;
    bool shape = false;
    bool offsets = false;
    object([&](const std::string& field, size_t field_at) {
      bool& seen = field == "dtype" ? dtype : field == "shape" ? shape : offsets;
      const bool known = field == "dtype" || field == "shape" || field == "data_offsets";
      check_at(field_at, known, text("unknown field `", field, "` of `", name, "`"));
      check_at(field_at, !seen, text("duplicate `", field, "` of `", name, "`"));
      seen = true;
      if (field == "dtype") entry.dtype = read_dtype(name);
      if (field == "shape") entry.shape = read_shape(name);
      if (field == "data_offsets") read_offsets(name, entry);
    });
    check_at(at, dtype, text("`", name, "` has no dtype"));
    check_at(at, shape, text("`", name, "` has no shape"));
    check_at(at, offsets, text("`", name, "` has no data_offsets"));
    entry.name = std::move(name);
    return entry;
  }

  std::string read_dtype(const std::string& name) {
    spaces();
    const size_t at = at_;
    check(peek() == '"', text("the dtype of `", name, "` is not a string"));
    std::string dtype = string();
    check_at(at, element_bytes(dtype) > 0, text("unknown dtype `", dtype, "` of `", name, "`"));
    return dtype;
  }

  Shape read_shape(const std::string& name) {
    spaces();
    const size_t at = at_;
    std::vector<std::int64_t> dims;
    std::int64_t elements = 1;
    bool overflow = false;
    array([&] {
      limit(at, dims.size() < Shape::max_rank, text("the rank of `", name, "` is too high"),
            Shape::max_rank);
      const std::int64_t extent = number(name);
      dims.push_back(extent);
      if (extent > 0) overflow |= __builtin_mul_overflow(elements, extent, &elements);
      limit(at, !overflow && elements <= max_number, text("`", name, "` is too large"), "2^48");
    });
    return Shape(std::span<const std::int64_t>(dims));
  }

  void read_offsets(const std::string& name, Entry& entry) {
    spaces();
    const size_t at = at_;
    std::vector<std::int64_t> offsets;
    array([&] {
      offsets.push_back(number(name));
      check_at(at, offsets.size() <= 2, text("`", name, "` needs two data_offsets"));
    });
    check_at(at, offsets.size() == 2, text("`", name, "` needs two data_offsets"));
    entry.begin = offsets[0];
    entry.end = offsets[1];
    check_at(at, entry.begin <= entry.end, text("the data_offsets of `", name, "` are reversed"));
  }

  const std::string& path_;
  std::string_view json_;
  size_t at_ = 0;
};

void check_names(const std::string& path, const std::vector<Entry>& entries) {
  std::vector<const Entry*> order;
  for (const Entry& entry : entries) order.push_back(&entry);
  std::ranges::stable_sort(order, {}, [](const Entry* e) { return std::string_view(e->name); });
  const auto twin = std::ranges::adjacent_find(
      order, [](const Entry* a, const Entry* b) { return a->name == b->name; });
  if (twin == order.end()) return;
  const Entry& second = **std::next(twin);
  raise(Kind::format, op,
        path + ", byte " + std::to_string(second.at) + ": duplicate `" + second.name + "`",
        "it twice", "names that differ");
}

// Sizes right, no overlap, no hole, nothing left over.
void check_data(const std::string& path, const std::vector<Entry>& entries,
                std::int64_t data_bytes) {
  std::vector<const Entry*> order;
  for (const Entry& entry : entries) order.push_back(&entry);
  std::ranges::sort(order, {}, [](const Entry* e) { return std::pair(e->begin, e->end); });
  std::int64_t covered = 0;
  for (const Entry* entry : order) {
    const auto& e = *entry;
    const std::int64_t bytes = e.shape.numel() * element_bytes(e.dtype);
    const auto where = text(path, ", byte ", e.at, ": `", e.name, "` ");
    const auto range = text("data_offsets [", e.begin, ",", e.end, "]");
    require(e.end <= data_bytes, Kind::format, op, text(where, "lies beyond the file's end"), range,
            text("at most ", data_bytes));
    require(e.end - e.begin == bytes, Kind::format, op,
            text(where, "has a size that is not its shape's"), text(e.end - e.begin, " bytes"),
            text(bytes, " bytes for ", e.dtype, ' ', e.shape));
    require(e.begin == covered, Kind::format, op,
            text(where, e.begin < covered ? "overlaps another tensor" : "leaves a hole before it"),
            range, text("a start at ", covered));
    covered = e.end;
  }
  require(covered == data_bytes, Kind::format, op,
          text(path, ": the tensors do not cover the data"), text(data_bytes, " bytes of data"),
          text(covered, " bytes"));
}

}  // namespace

const char* name_fault(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name.size() > max_name) return "is longer than 255 bytes";
  while (!name.empty()) {
    const CodePoint point = first_code_point(name);
    if (point.bytes == 0) return "is not UTF-8";
    if (!is_printable(point.value)) return "has a character that cannot be shown";
    name.remove_prefix(static_cast<size_t>(point.bytes));
  }
  return nullptr;
}

std::int64_t element_bytes(std::string_view dtype) {
  const auto found = std::ranges::find(types, dtype, &Type::name);
  return found == std::end(types) ? 0 : found->bytes;
}

Header parse_header(const std::string& path, std::string_view json, std::int64_t data_bytes) {
  Header header = Parser(path, json).header();
  check_names(path, header.entries);
  check_data(path, header.entries, data_bytes);
  return header;
}

std::string quoted(std::string_view text) {
  constexpr std::string_view hex = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += hex[byte >> 4];
      out += hex[byte & 15];
    } else {
      out += c;
    }
  }
  return out += '"';
}

}  // namespace ebb::safetensors
