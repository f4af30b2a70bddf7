// The golden cases (generate.py): what PyTorch says in f64 about the value and the gradients of
// every op, held against each device in f64, f32 and bf16, into poisoned memory.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>

#include <nlohmann/json.hpp>

#include "folder.h"
#include "tools/opcase/case.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

namespace fs = std::filesystem;
using Answer = std::map<std::string, Tensor>;

struct Golden {
  std::string name;
  opcase::Case question;
  Answer expected = {};
  Answer magnitudes = {};                    // what an error of class D or E is relative to
  std::map<std::string, char> classes = {};  // of each expected tensor: oracles.py
  double condition = 1;                      // the largest factor that a mean's cancellation costs
};

Golden load(const fs::path& path) {
  const Checkpoint file = load_safetensors(path.string(), {.narrow_i64 = true});
  Golden golden{path.stem().string(), opcase::read_case(file.metadata.at("op"), path.string())};
  golden.condition = std::stod(file.metadata.at("condition"));
  for (const auto& [name, x] : file.tensors) {
    if (name == "out.0" || name.rfind("grad.", 0) == 0) golden.expected[name] = x;
    if (name.rfind("mag.", 0) == 0) golden.magnitudes[name.substr(4)] = x;
  }
  const auto classes = nlohmann::json::parse(file.metadata.at("classes"));
  for (const auto& [name, letter] : classes.items())
    golden.classes[name] = letter.get<std::string>().front();
  return golden;
}

std::vector<fs::path> files() {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(GOLDEN_CASES)) found.push_back(entry.path());
  std::sort(found.begin(), found.end());
  return found;
}

// All of the files, or every eighth from the third on when EBB_GOLDEN=3/8 says so: sanitize.sh
// shares them out.
std::vector<fs::path> asked_files() {
  const char* part = std::getenv("EBB_GOLDEN");
  if (!part) return files();
  size_t first = 0, parts = 0;
  REQUIRE(std::sscanf(part, "%zu/%zu", &first, &parts) == 2);
  REQUIRE(first >= 1);
  REQUIRE(first <= parts);
  std::vector<fs::path> found;
  const std::vector<fs::path> all = files();
  for (size_t i = first - 1; i < all.size(); i += parts) found.push_back(all[i]);
  return found;
}

// The distance from a float to the next.
double ulp(double v) {
  const int exponent = v == 0 ? -126 : std::max(std::ilogb(v), -126);
  return std::ldexp(1.0, exponent - 23);
}

// How far an element may be from its reference. `magnitude` is |reference| for classes A to C.
using Limit = double (*)(char kind, bool gradient, double reference, double magnitude);

// f64 differs from f64 only in the order of sums and the last digits of exp: a step in f32, or a
// constant of 7 digits, would be a hundred thousand times this.
double f64_limit(char kind, bool, double, double magnitude) {
  return kind == 'A' ? 0 : 1e-12 * magnitude;
}

double f32_limit(char kind, bool gradient, double reference, double magnitude) {
  switch (kind) {
    case 'A':
      return 0;
    case 'B':
      return (gradient ? 2 : 1) * ulp(reference);
    case 'C':
      return gradient ? 8e-6 + 4e-6 * magnitude : 2e-6 + 2e-6 * magnitude;
    case 'D':
      return (gradient ? 4e-6 : 2e-6) * magnitude;
    default:
      return long_sum * magnitude + 1e-7;
  }
}

// bf16 is f32 rounded to 8 bits when it is stored. A gradient may be made of saved outputs that
// were rounded too.
double bf16_limit(char kind, bool gradient, double reference, double magnitude) {
  if (kind == 'A') return 0;
  const double own =
      (gradient ? 3 : 1) * 0x1p-8 * std::max(std::abs(reference), gradient * magnitude);
  return own + f32_limit(kind, gradient, reference, magnitude);
}

// Of ops made of several products, what is between them is rounded as well: tensor cores multiply
// bf16 alone.
double bf16_limit_of_steps(char kind, bool, double reference, double magnitude) {
  return bf16_limit(kind, true, reference, magnitude);
}

// What PyTorch's own sums leave where the answer is 0.
constexpr double noise = 1e-13;

struct Comparison {
  const Golden& golden;
  Limit limit;
  double floor;  // added to each element's limit
};

// Each element within its limit; and, when `nmse` is not 0, Σ error² <= nmse · Σ reference²
// beyond the noise, unless the sums that make the tensor cancel to nothing, all six digits of them.
void check_tensor(const Comparison& c, const std::string& name, const Tensor& got,
                  const Tensor& expected, double nmse) {
  REQUIRE(got.shape() == expected.shape());
  const char kind = c.golden.classes.at(name);
  const bool gradient = name != "out.0";
  const auto a = values(got), b = values(expected);
  const auto found = c.golden.magnitudes.find(name);
  const auto m = found == c.golden.magnitudes.end() ? b : values(found->second);
  double squared_error = 0, squares = 0, magnitudes = 0, worst = 0;
  size_t at = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double error = std::abs(a[i] - b[i]);
    const double magnitude = std::abs(m[m.size() == 1 ? 0 : i]);
    const double most = c.limit(kind, gradient, b[i], magnitude);
    const double share = error == 0 ? 0 : error / (most + c.floor * (kind != 'A'));
    if (worst == worst && !(share <= worst)) at = i;
    worst = worse(worst, share);
    squared_error += error * error;
    squares += b[i] * b[i];
    magnitudes += magnitude * magnitude;
  }
  std::ostringstream message;
  message.precision(17);
  message << c.golden.name << ": " << name << ", class " << kind << ": element " << at;
  if (!a.empty()) message << " is " << a[at] << ", the reference is " << b[at];
  message << "; " << worst << " of its limit; NMSE " << squared_error / squares;
  CHECK_MESSAGE(worst <= 1, message.str());
  if (nmse == 0 || squares < 1e-12 * magnitudes) return;
  const double of_noise = noise * noise * static_cast<double>(a.size());
  CHECK_MESSAGE(squared_error <= nmse * squares + of_noise, message.str());
}

Answer answer(const opcase::Case& question, Device device, Dtype dtype) {
  opcase::Settings settings{.device = device, .dtype = dtype, .backward = true, .poison = true};
  const Checkpoint result = opcase::answer(question, settings);
  return {result.tensors.begin(), result.tensors.end()};
}

std::vector<std::string> names(const Answer& answer) {
  std::vector<std::string> list;
  for (const auto& [name, x] : answer) list.push_back(name);
  return list;
}

// The limits of NMSE of f32. The condition stands for the digits that inputs far from 0 have lost.
double f32_nmse(const Golden& golden, const std::string& name) {
  const char kind = golden.classes.at(name);
  const double squared = golden.condition * golden.condition;
  return kind == 'E' ? 1e-10 * squared : 1e-12 * squared;
}

opcase::Case rounded(opcase::Case question) {
  const auto round = [](Tensor& x) {
    if (x.defined() && is_floating(x.dtype())) x = x.to(Dtype::bf16).to(Dtype::f32);
  };
  for (auto& [name, x] : question.call.inputs) round(x);
  round(question.gout);
  return question;
}

void for_each_golden(const std::function<void(const Golden&, Device)>& check) {
  for (const fs::path& path : asked_files()) {
    const Golden golden = load(path);
    for (const Device device : devices()) check(golden, device);
  }
}

}  // namespace

TEST_SUITE_BEGIN("in_parts");

TEST_CASE("golden: in f64 every op and gradient is PyTorch's to twelve digits") {
  for_each_golden([](const Golden& golden, Device device) {
    const Answer got = answer(golden.question, device, Dtype::f64);
    REQUIRE(names(got) == names(golden.expected));
    for (const auto& [name, x] : got)
      check_tensor({golden, f64_limit, noise}, name, x, golden.expected.at(name), 0);
  });
}

TEST_CASE("golden: in f32 every op and gradient is as exact as its class asks, twice the same") {
  for_each_golden([](const Golden& golden, Device device) {
    const Answer got = answer(golden.question, device, Dtype::f32);
    const Answer again = answer(golden.question, device, Dtype::f32);
    REQUIRE(names(got) == names(golden.expected));
    for (const auto& [name, x] : got) {
      check_tensor({golden, f32_limit, noise}, name, x, golden.expected.at(name),
                   f32_nmse(golden, name));
      check_close(again.at(name), x, exact, golden.name + ": " + name + " again");
    }
  });
}

// The reference is f64, shown right above, on the inputs as bf16 has them. What is made of an
// output that was saved, and is near 1 or a norm, has lost 8 bits of that, not of what is left of
// it.
TEST_CASE("golden: in bf16 every op and gradient is f64's to eight bits") {
  const std::set<std::string> of_saved_outputs = {"sigmoid", "tanh", "softmax", "log_softmax",
                                                  "l2_normalize"};
  const std::set<std::string> of_steps = {"flash_attention", "feed_forward",
                                          "linear_cross_entropy"};
  for_each_golden([&](const Golden& golden, Device device) {
    const opcase::Case question = rounded(golden.question);
    const Answer expected = answer(question, cpu_device, Dtype::f64);
    const Answer got = answer(question, device, Dtype::bf16);
    REQUIRE(names(got) == names(expected));
    double largest = 0;
    for (const double g : values(question.gout)) largest = std::max(largest, std::abs(g));
    const Limit limit = of_steps.count(question.call.op) ? bf16_limit_of_steps : bf16_limit;
    const double lost = of_saved_outputs.count(question.call.op) ? 0x1p-7 * largest : noise;
    for (const auto& [name, x] : got)
      check_tensor({golden, limit, name == "out.0" ? noise : lost}, name, x, expected.at(name), 0);
  });
}

TEST_SUITE_END();

// Through the file, with the inputs by their places: the library's op of that name is right.
TEST_CASE("golden: opcase replays what a failed gradcheck leaves behind") {
  const Folder folder;
  const std::string file = folder.path / "case.safetensors";
  const auto wrong = [](const Tensors& in) {
    return record("swiglu", swiglu(in[0].detach(), in[1].detach()), {in[0], in[1]},
                  [](const Tensor& dy) -> Gradients {
                    return {dy, dy};
                  });
  };
  const Tensors inputs = {leaf(randn({5}, 1)), leaf(randn({5}, 2))};
  CHECK(!gradcheck(wrong, inputs, {.file = file}).ok);
  const opcase::Case replayed = opcase::read_case("swiglu", file);
  CHECK(values(replayed.call["gate"]) == values(inputs[0]));
  CHECK(values(replayed.call["up"]) == values(inputs[1]));
  for (const Device device : devices()) {
    std::string op;
    double worst = 1;
    CHECK(opcase::gradcheck_case(file, device, &op, &worst).exit == opcase::ran);
    CHECK(op == "swiglu");
    CHECK(worst <= 1e-8);
  }
}

// The functions of the public headers that make a tensor of tensors: `Tensor silu(const Tensor& x)`
// and the like. What the ops' own sources share begins with the op's name instead.
std::set<std::string> library_ops() {
  const std::regex declaration("\nTensor (\\w+)\\((?!const char\\*)");
  std::set<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(LIBRARY_OPS)) {
    if (entry.path().extension() != ".h") continue;
    std::ifstream file(entry.path());
    const std::string header(std::istreambuf_iterator<char>(file), {});
    if (header.find("// Internal") != std::string::npos) continue;
    for (std::sregex_iterator op(header.begin(), header.end(), declaration), end; op != end; ++op)
      found.insert((*op)[1]);
  }
  return found;
}

TEST_CASE("golden: every op of the library is opcase's too, and every op but dropout has cases") {
  std::set<std::string> asked;
  for (const fs::path& path : files())
    asked.insert(path.stem().string().substr(0, path.stem().string().rfind('-')));
  const std::set<std::string> ops = library_ops();
  for (const char* known : {"silu", "flash_attention", "dropout", "concat"})
    CHECK_MESSAGE(ops.count(known) == 1, known);
  for (const std::string& op : ops) CHECK_MESSAGE(opcase::find_op(op), op);
  for (const opcase::Op& op : opcase::ops()) {
    CHECK_MESSAGE(ops.count(op.name) == 1, op.name);
    CHECK_MESSAGE((asked.count(op.name) == 1 || op.name == std::string("dropout")), op.name);
  }
}
