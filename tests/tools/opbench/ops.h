// The ops that opbench can measure: one row of a table each, in ops.cpp.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "ebb/ebb.h"

namespace opbench {

using Json = nlohmann::ordered_json;
using Function = std::function<ebb::Tensor()>;  // one call on tensors that it holds

// Draws a case's inputs and reads its attributes. An attribute that is absent is the default; what
// the op does not ask for is not looked at.
class Case {
 public:
  Case(const Json& json, ebb::Device device);

  ebb::Shape shape(const char* name = "shape", int least_rank = 0) const;
  ebb::Shape shape_or(const char* name, const ebb::Shape& otherwise) const;
  bool has(const char* name) const { return json_.contains(name) && !json_[name].is_null(); }
  std::int64_t integer(const char* name, std::int64_t otherwise) const;
  double number(const char* name, double otherwise) const;
  bool flag(const char* name, bool otherwise) const;
  std::string word(const char* name, const char* otherwise) const;
  std::vector<std::int64_t> integers(const char* name) const;  // one stands for a list of one
  ebb::Pair pair(const char* name, ebb::Pair otherwise) const;
  ebb::ReduceOptions reduction_dims() const;  // dim, keepdim

  // An input that is differentiated: uniform numbers of variance 1, or in [1/2, 2).
  ebb::Tensor input(const ebb::Shape& shape);
  ebb::Tensor positive_input(const ebb::Shape& shape);
  ebb::Tensor indices(const ebb::Shape& shape, std::int64_t below);
  ebb::Tensor statistics(std::int64_t channels, double value) const;  // read and written, no input

  const std::vector<ebb::Tensor>& inputs() const { return inputs_; }

 private:
  // The value of `name` when it is of the type that `ok` says; error `value` else.
  const Json& checked(const char* name, bool ok, const char* expected) const;
  ebb::Tensor draw(const ebb::Shape& shape, double low, double high);

  Json json_;
  ebb::TensorOptions options_;
  ebb::Generator generator_;
  std::vector<ebb::Tensor> inputs_;
};

// What backward cannot do without, besides the upstream gradient and the gradients that it writes.
enum class Reads { nothing, inputs, output, inputs_and_output, places, only_shapes };

struct Op {
  std::vector<std::string> names;  // the library's, and those of case files
  Function (*make)(Case& c);
  Reads reads;
};

const Op& find_op(const std::string& name);  // error `value` when there is none

}  // namespace opbench
