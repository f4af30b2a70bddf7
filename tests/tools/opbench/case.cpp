#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops.h"

namespace opbench {

using namespace ebb;

namespace {

Dtype dtype_of(const std::string& name) {
  if (name == "f32" || name == "tf32") return Dtype::f32;
  if (name == "f64") return Dtype::f64;
  require(name == "bf16", Kind::value, "opbench", "unknown dtype", name, "f32, tf32, bf16 or f64");
  return Dtype::bf16;
}

// A graph behind the input, so that its gradient is wanted, and dropped where it arrives: nothing
// is copied or added up that belongs to no op.
Tensor differentiated(Tensor x) {
  Tensor leaf = empty({}, x.options()).set_requires_grad(true);
  return record("input", std::move(x), {leaf}, [](const Tensor&) { return Gradients{Tensor()}; });
}

bool is_whole(const Json& value) {
  return value.is_number_integer() &&
         (!value.is_number_unsigned() || value.get<std::uint64_t>() <= INT64_MAX);
}

}  // namespace

Case::Case(const Json& json, Device device)
    : json_(json), options_{dtype_of(word("dtype", "f32")), device}, generator_(1) {}

const Json& Case::checked(const char* name, bool ok, const char* expected) const {
  require(ok, Kind::value, "opbench", text("bad `", name, "`"), json_[name].dump(), expected);
  return json_[name];
}

Shape Case::shape(const char* name, int least_rank) const {
  require(has(name), Kind::value, "opbench", text("no `", name, "`"), json_.dump(), "a shape");
  const Shape shape(integers(name));
  require(shape.rank() >= least_rank, Kind::shape, "opbench", text("bad `", name, "`"), shape,
          text("rank ", least_rank, " or more"));
  return shape;
}
Shape Case::shape_or(const char* name, const Shape& otherwise) const {
  return has(name) ? shape(name) : otherwise;
}
std::int64_t Case::integer(const char* name, std::int64_t otherwise) const {
  if (!has(name)) return otherwise;
  return checked(name, is_whole(json_[name]), "a whole number").get<std::int64_t>();
}
double Case::number(const char* name, double otherwise) const {
  if (!has(name)) return otherwise;
  return checked(name, json_[name].is_number(), "a number").get<double>();
}
bool Case::flag(const char* name, bool otherwise) const {
  if (!has(name)) return otherwise;
  return checked(name, json_[name].is_boolean(), "true or false").get<bool>();
}
std::string Case::word(const char* name, const char* otherwise) const {
  if (!has(name)) return otherwise;
  return checked(name, json_[name].is_string(), "a word").get<std::string>();
}
std::vector<std::int64_t> Case::integers(const char* name) const {
  require(has(name), Kind::value, "opbench", text("no `", name, "`"), json_.dump(),
          "whole numbers");
  if (!json_[name].is_array()) return {integer(name, 0)};
  const bool whole = std::ranges::all_of(json_[name], is_whole);
  return checked(name, whole, "whole numbers").get<std::vector<std::int64_t>>();
}
Pair Case::pair(const char* name, Pair otherwise) const {
  if (!has(name)) return otherwise;
  const auto both = integers(name);
  require(both.size() == 1 || both.size() == 2, Kind::value, "opbench", name, both.size(),
          "one number, or two");
  return {both.front(), both.back()};
}
ReduceOptions Case::reduction_dims() const {
  ReduceOptions options{.dim = {}, .keepdim = flag("keepdim", false)};
  if (has("dim")) options.dim = integers("dim");
  return options;
}

Tensor Case::draw(const Shape& shape, double low, double high) {
  inputs_.push_back(differentiated(uniform(shape, low, high, generator_, options_)));
  return inputs_.back();
}
Tensor Case::input(const Shape& shape) { return draw(shape, -std::sqrt(3), std::sqrt(3)); }
Tensor Case::positive_input(const Shape& shape) { return draw(shape, 0.5, 2); }

Tensor Case::indices(const Shape& shape, std::int64_t below) {
  require(below > 0, Kind::value, "opbench", "nothing to point at", below, "1 or more");
  const TensorOptions exact{Dtype::f64, options_.device};
  const auto end = static_cast<double>(below);
  inputs_.push_back(uniform(shape, 0, end, generator_, exact).to(Dtype::i32));
  return inputs_.back();
}

Tensor Case::statistics(std::int64_t channels, double value) const {
  const Dtype wide = options_.dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  return full({channels}, value, {wide, options_.device});
}

}  // namespace opbench
