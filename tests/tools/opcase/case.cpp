#include "case.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <new>

#include "../shallow_json.h"

namespace opcase {
namespace {

using namespace ebb;

// Keeps nothing of a header but __metadata__'s op, and reads on only until that is known, or until
// it is deeper than headers are.
class OpName final : public nlohmann::json_sax<Json> {
 public:
  std::string name;

  bool key(string_t& key) override {
    if (depth_ == 1) in_metadata_ = key == "__metadata__";
    at_op_ = depth_ == 2 && in_metadata_ && key == "op";
    return true;
  }
  bool string(string_t& value) override {
    if (at_op_) name = value;
    return !at_op_;
  }
  bool start_object(size_t) override { return deeper(); }
  bool start_array(size_t) override { return deeper(); }
  bool end_object() override { return depth_-- > 0; }
  bool end_array() override { return depth_-- > 0; }
  bool null() override { return !at_op_; }
  bool boolean(bool) override { return !at_op_; }
  bool number_integer(number_integer_t) override { return !at_op_; }
  bool number_unsigned(number_unsigned_t) override { return !at_op_; }
  bool number_float(number_float_t, const string_t&) override { return !at_op_; }
  bool binary(binary_t&) override { return !at_op_; }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  static constexpr int deepest = 3;  // a tensor's shape
  bool deeper() { return !at_op_ && ++depth_ <= deepest; }
  int depth_ = 0;
  bool in_metadata_ = false, at_op_ = false;
};

// The name in a file's header, however wrong the rest is, so that refusals can begin with it; empty
// when there is none. The file is read again, strictly, afterwards.
std::string peek_op(const std::string& path) {
  constexpr std::uint64_t most = 100'000'000;  // as long as a header may be
  std::error_code unknown;
  if (!std::filesystem::is_regular_file(path, unknown)) return {};  // opening a FIFO would wait
  std::ifstream file(path, std::ios::binary);
  std::uint64_t size = 0;
  if (!file.read(reinterpret_cast<char*>(&size), sizeof size) || size > most) return {};
  std::string header(size, ' ');
  if (!file.read(header.data(), static_cast<std::streamsize>(size))) return {};
  OpName op;
  Json::sax_parse(header, &op);
  return op.name;
}

// A failure as one line that begins with the op's name.
std::string line(const std::string& op, std::string message) {
  const std::string name = op.empty() ? "opcase" : op.substr(0, json_shown);
  if (message.rfind(name + ":", 0) != 0) message = name + ": " + message;
  for (char& c : message)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return message;
}

// Runs f and says how it ended. A failed CUDA call is the device's fault, not the case's.
template <class F>
Outcome guarded(const std::string& op, F&& f) {
  try {
    f();
    return {};
  } catch (const Unsupported& error) {
    return {unsupported, line(op, error.what())};
  } catch (const Error& error) {
    return {error.kind() == Kind::cuda ? no_device : refused, line(op, error.what())};
  } catch (const std::bad_alloc&) {
    return {refused, line(op, "out of memory; got a failed allocation; expected enough memory")};
  } catch (const std::exception& error) {
    return {refused, line(op, error.what())};
  } catch (...) {
    return {refused, line(op, "unknown failure")};
  }
}

// in.0, in.1, …: a failed gradcheck, which knows no names, wrote its inputs so.
bool is_place(std::string_view name) {
  return name.starts_with("in.") && name.size() > 3 && '0' <= name[3] && name[3] <= '9';
}

bool is_named(const Op& op, std::string_view name) {
  return std::ranges::any_of(op.inputs, [&](const std::string& text) {
    const Input input(text);
    return input.list ? name.starts_with("in.xs.") : name == "in." + input.name;
  });
}

// What is no part of the case may be of any type. Indices beyond i32 name no row of anything.
Checkpoint load(const std::string& op, const std::string& path, bool gradient) {
  try {
    const Op* row = find_op(op);
    const auto of_case = [&](std::string_view name) {
      return (gradient && name == "gout.0") || is_place(name) || (row && is_named(*row, name));
    };
    return load_safetensors(path, {.narrow_i64 = true, .wanted = of_case});
  } catch (const Error& error) {
    const std::string message = error.what();
    if (error.kind() != Kind::value || message.find("does not fit into i32") == std::string::npos)
      throw;
    throw Error(Kind::index, op + ": index beyond i32: " + message);
  }
}

bool differentiable(const Op& op, const std::string& name) {
  for (const std::string& text : op.inputs) {
    const Input input(text);
    if (input.name == name) return input.differentiable;
  }
  return true;  // one of a list
}

// The call with its own copies of the inputs, ready to run.
Call prepare(const Case& c, Device device, Dtype dtype, bool gradients) {
  Call call = c.call;
  for (auto& [name, x] : call.inputs) {
    const bool floating = is_floating(x.dtype());
    x = (floating ? x.to(dtype) : x).clone().to(device);
    if (gradients && floating && differentiable(*c.op, name)) x.set_requires_grad(true);
  }
  return call;
}

// Poisoned memory for as long as it lives.
struct Poison {
  explicit Poison(bool on) { poison_memory(on); }
  ~Poison() { poison_memory(false); }
  Poison(const Poison&) = delete;
  Poison& operator=(const Poison&) = delete;
};

void require_same(const std::string& op, const Checkpoint& first, const Checkpoint& again, int k) {
  const auto differ = [&](const std::string& name) {
    raise(Kind::state, op, "run " + std::to_string(k) + " gave other bytes", name,
          "the bytes of run 1");
  };
  if (first.tensors.size() != again.tensors.size()) differ("another set of tensors");
  for (size_t i = 0; i < first.tensors.size(); ++i) {
    const auto& [name, a] = first.tensors[i];
    const auto& [again_name, b] = again.tensors[i];
    const bool alike = name == again_name && a.shape() == b.shape() && a.dtype() == b.dtype();
    if (!alike ||
        (a.bytes() > 0 && std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) != 0))
      differ(name);
  }
}

}  // namespace

Case read_case(const std::string& op, const std::string& path, bool gradient) {
  const Checkpoint file = load(op, path, gradient);
  const auto text = [&](const char* key) {
    const auto found = file.metadata.find(key);
    return found == file.metadata.end() ? std::string() : found->second;
  };
  require(!text("op").empty(), Kind::format, "opcase", "the case has no metadata `op`", path,
          "an op's name");
  const Op* row = find_op(text("op"));
  if (!row) throw Unsupported("no such op");
  const std::string attrs = text("attrs").empty() ? "{}" : text("attrs");
  Case result{row, {op, {}, Attributes(op, row->attributes, parse_attributes(op, attrs))}, {}};
  const bool by_name = std::ranges::any_of(
      file.tensors, [&](const auto& tensor) { return is_named(*row, tensor.first); });
  const auto take = [&](const std::string& name, size_t place) {
    const Tensor* x = file.find("in." + (by_name ? name : std::to_string(place)));
    if (x) result.call.inputs[name] = *x;
    return x != nullptr;
  };
  for (size_t place = 0; place < row->inputs.size(); ++place) {
    const Input input(row->inputs[place]);
    size_t listed = 0;
    while (input.list && take("xs." + std::to_string(listed), listed)) ++listed;
    const auto others = std::ranges::count_if(file.tensors, [&](const auto& tensor) {
      return by_name ? is_named(*row, tensor.first) : is_place(tensor.first);
    });
    require(!input.list || others <= static_cast<std::ptrdiff_t>(listed), Kind::value, op,
            ebb::text("input xs.", listed, " is missing"), "tensors beyond it", "no gap");
    require(input.list || take(input.name, place) || input.optional, Kind::value, op,
            ebb::text("input ", input.name, " is missing"), "none", "a tensor in." + input.name);
  }
  if (const Tensor* gout = file.find("gout.0")) result.gout = *gout;
  return result;
}

Checkpoint answer(const Case& c, const Settings& s) {
  const Poison poison(s.poison);
  const Call call = prepare(c, s.device, s.dtype, s.backward);
  const Tensor y = c.op->run(call);
  Checkpoint result;
  result.tensors.emplace_back("out.0", y.detach().to(cpu_device));
  if (s.backward && y.requires_grad()) {
    require(c.gout.defined(), Kind::value, call.op, "the upstream gradient is missing", "none",
            "a tensor gout.0");
    require(is_floating(c.gout.dtype()), Kind::dtype, call.op, "gout.0 must be floating",
            c.gout.dtype(), "f32, f64 or bf16");
    y.backward(c.gout.to(y.dtype()).to(s.device));
    for (const auto& [name, x] : call.inputs)
      if (x.grad().defined()) result.tensors.emplace_back("grad." + name, x.grad().to(cpu_device));
  }
  synchronize(s.device);
  return result;
}

Outcome run_case(const std::string& path, const std::string& to, const Settings& settings) {
  std::string op;
  Outcome peeked = guarded("", [&] { op = peek_op(path); });
  if (peeked.exit != ran) return peeked;
  std::error_code unknown;
  if (std::filesystem::is_regular_file(to, unknown)) std::filesystem::remove(to, unknown);
  return guarded(op, [&] {
    const Case c = read_case(op, path, settings.backward);
    const Checkpoint first = answer(c, settings);
    for (int k = 2; k <= settings.repeat; ++k) require_same(op, first, answer(c, settings), k);
    save_safetensors(to, first);
  });
}

Outcome gradcheck_case(const std::string& path, Device device, std::string* op, double* worst) {
  Outcome peeked = guarded("", [&] { *op = peek_op(path); });
  if (peeked.exit != ran) return peeked;
  return guarded(*op, [&] {
    const Case c = read_case(*op, path, false);
    Call call = prepare(c, device, Dtype::f64, true);
    std::vector<std::string> names;
    Tensors inputs;
    for (const auto& [name, x] : call.inputs)
      if (x.requires_grad()) {
        names.push_back(name);
        inputs.push_back(x);
      }
    const GradcheckResult result = gradcheck(
        [&](const Tensors& in) {
          for (size_t i = 0; i < names.size(); ++i) call.inputs[names[i]] = in[i];
          return c.op->run(call);
        },
        inputs);
    *worst = result.worst;
    if (!result.ok) throw Error(Kind::value, *op + ": gradient check failed: " + result.report);
  });
}

}  // namespace opcase
