// The ops that opcase can run: one row of a table each, in ops.cpp.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "ebb/ebb.h"

namespace opcase {

using Json = nlohmann::ordered_json;

// The library has no such op, attribute or form: exit 5. Everything else that a case asks in vain
// is ebb::Error: exit 3.
struct Unsupported : std::runtime_error {
  using runtime_error::runtime_error;
};

// Of a case's metadata `attrs`. Errors: `format` unless it is a JSON object, `limit` for its depth.
Json parse_attributes(const std::string& op, const std::string& attrs);

// A case's attributes over the op's defaults. null asks for the default.
class Attributes {
 public:
  Attributes(std::string op, const Json& defaults, Json given);

  bool given(const char* name) const { return given_.contains(name) && !given_[name].is_null(); }
  bool absent(const char* name) const { return all_.at(name).is_null(); }
  bool is_word(const char* name) const { return all_.at(name).is_string(); }
  bool flag(const char* name) const;
  double number(const char* name) const;
  std::int64_t integer(const char* name) const;
  std::string word(const char* name) const;
  std::vector<std::int64_t> integers(const char* name) const;  // one stands for a list of one
  std::vector<double> numbers(const char* name) const;
  ebb::Pair pair(const char* name) const;       // one number stands for both
  std::int64_t single(const char* name) const;  // a number, or a list of one
  ebb::ReduceOptions reduction_dims() const;    // dim, keepdim

 private:
  [[noreturn]] void refuse(const char* name, const char* expected) const;
  std::int64_t integer(const char* name, const Json& value) const;

  std::string op_;
  Json given_;
  Json all_;
};

// What a row's function gets.
struct Call {
  std::string op;
  std::map<std::string, ebb::Tensor> inputs;  // by the names of the row
  Attributes attributes;

  ebb::Tensor operator[](const std::string& name) const;  // undefined when absent
  int rank(const std::string& name) const;                // -1 when absent
};

struct Op {
  const char* name;
  // "weight?" may be absent, "xs.*" stands for xs.0 xs.1 …, "running_mean!" has no gradient.
  std::vector<std::string> inputs;
  Json attributes;  // with their defaults
  ebb::Tensor (*run)(const Call& call);
  bool takes_u8 = false;  // beside floating numbers
};

const std::vector<Op>& ops();
const Op* find_op(const std::string& name);  // null when the library has none

// One input of a row: its name without marks.
struct Input {
  std::string name;
  bool optional = false;
  bool list = false;
  bool differentiable = true;

  explicit Input(std::string text);
};

}  // namespace opcase
