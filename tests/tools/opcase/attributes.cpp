#include <cmath>

#include "../shallow_json.h"
#include "ops.h"

namespace opcase {

using ebb::Kind;

Json parse_attributes(const std::string& op, const std::string& attrs) {
  Json json = parse_shallow<Json>(op, "attrs", attrs);
  ebb::require(!json.is_discarded(), Kind::format, op, "attrs is not JSON",
               attrs.substr(0, json_shown), "a JSON object");
  ebb::require(json.is_object(), Kind::format, op, "attrs must be a JSON object", json.type_name(),
               "an object");
  return json;
}

Attributes::Attributes(std::string op, const Json& defaults, Json given)
    : op_(std::move(op)), given_(std::move(given)), all_(defaults) {
  for (const auto& [name, value] : given_.items()) {
    if (!all_.contains(name))
      throw Unsupported("no attribute `" + name.substr(0, json_shown) + "`");
    if (!value.is_null()) all_[name] = value;
  }
}

void Attributes::refuse(const char* name, const char* expected) const {
  const Json& value = all_.at(name);
  ebb::require(!value.is_null(), Kind::value, op_, std::string("attribute ") + name + " is missing",
               "none", expected);
  ebb::raise(Kind::value, op_, std::string("attribute ") + name + " is not of its type",
             value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, json_shown),
             expected);
}

std::int64_t Attributes::integer(const char* name, const Json& value) const {
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX)
    refuse(name, "an integer of 64 bits");
  if (value.is_number_integer()) return value.get<std::int64_t>();
  const double number = value.is_number_float() ? value.get<double>() : NAN;
  if (!(std::abs(number) < 0x1p53) || number != std::floor(number)) refuse(name, "an integer");
  return static_cast<std::int64_t>(number);
}

std::int64_t Attributes::integer(const char* name) const { return integer(name, all_.at(name)); }

bool Attributes::flag(const char* name) const {
  if (!all_.at(name).is_boolean()) refuse(name, "true or false");
  return all_.at(name).get<bool>();
}

double Attributes::number(const char* name) const {
  if (!all_.at(name).is_number()) refuse(name, "a number");
  return all_.at(name).get<double>();
}

std::string Attributes::word(const char* name) const {
  const Json& value = all_.at(name);
  if (!value.is_string() || value == "") refuse(name, "a word");
  return value.get<std::string>();
}

std::vector<std::int64_t> Attributes::integers(const char* name) const {
  const Json& value = all_.at(name);
  if (!value.is_array()) return {integer(name, value)};
  std::vector<std::int64_t> list;
  for (const Json& element : value) list.push_back(integer(name, element));
  return list;
}

std::vector<double> Attributes::numbers(const char* name) const {
  const Json& value = all_.at(name);
  if (!value.is_array()) refuse(name, "a list of numbers");
  std::vector<double> list;
  for (const Json& element : value) {
    if (!element.is_number()) refuse(name, "a list of numbers");
    list.push_back(element.get<double>());
  }
  return list;
}

ebb::Pair Attributes::pair(const char* name) const {
  const auto list = integers(name);
  if (list.empty() || list.size() > 2) refuse(name, "one integer, or two");
  return {list.front(), list.back()};
}

std::int64_t Attributes::single(const char* name) const {
  const auto list = integers(name);
  if (list.size() != 1) refuse(name, "one integer");
  return list.front();
}

ebb::ReduceOptions Attributes::reduction_dims() const {
  ebb::ReduceOptions options{.dim = {}, .keepdim = flag("keepdim")};
  if (!absent("dim")) options.dim = integers("dim");
  return options;
}

Input::Input(std::string text) : name(std::move(text)) {
  for (; name.back() == '?' || name.back() == '!' || name.back() == '*'; name.pop_back()) {
    optional |= name.back() == '?';
    differentiable &= name.back() != '!';
    list |= name.back() == '*';
  }
  if (list) name.pop_back();  // the dot
}

int Call::rank(const std::string& name) const {
  const ebb::Tensor x = (*this)[name];
  return x.defined() ? x.rank() : -1;
}

ebb::Tensor Call::operator[](const std::string& name) const {
  const auto found = inputs.find(name);
  return found == inputs.end() ? ebb::Tensor() : found->second;
}

}  // namespace opcase
