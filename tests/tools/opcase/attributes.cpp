#include <cmath>

#include "ops.h"

namespace opcase {

using ebb::Kind;

Attributes::Attributes(std::string op, const Json& defaults, const Json& given)
    : op_(std::move(op)), all_(defaults) {
  ebb::require(given.is_object(), Kind::format, op_, "attrs must be a JSON object",
               given.type_name(), "an object");
  for (const auto& [name, value] : given.items()) {
    if (!all_.contains(name)) throw Unsupported("no attribute `" + name + "`");
    if (!value.is_null()) all_[name] = value;
  }
}

void Attributes::refuse(const char* name, const char* expected) const {
  const Json& value = all_.at(name);
  ebb::raise(Kind::value, op_, std::string("attribute ") + name + " is not of its type",
             value.dump(-1, ' ', true, Json::error_handler_t::replace), expected);
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
