// opbench: how fast each op is, through the public API. Reads cases, JSON lines such as
//   {"op":"conv2d","dtype":"bf16","shape":[64,64,56,56],"weight":[64,64,3,3],"padding":1}
// and prints each with fwd_us, bwd_us (the device's time for one call, caches flushed before it;
// median), call_fwd_us (wall time of a call in a loop), min_bytes_* (what must be read or written,
// once) and gbps_*; or with `error`. `--help` says how.
#include <algorithm>
#include <cmath>
#include <csignal>
#include <fstream>
#include <iostream>

#include <CLI/CLI.hpp>

#include "../shallow_json.h"
#include "ops.h"

namespace {

using namespace opbench;
using namespace ebb;

// More than twice any L2 of a GPU; on the CPU, where writing takes longer, twice 32 MiB.
std::int64_t flush_bytes(Device device) { return std::int64_t{device.is_cuda() ? 256 : 64} << 20; }
constexpr size_t least_calls = 20;
constexpr size_t most_calls = 200;

template <class F>
double seconds_of(Device device, const F& f) {
  Timer timer;
  timer.start();
  f();
  synchronize(device);
  timer.stop();
  return timer.seconds();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

// Median of one call with cold caches. All calls are queued before the first is waited for: while
// the GPU flushes, the next call's launches arrive, and only the device's work is between events.
double cold_seconds(Device device, const std::function<void()>& f) {
  for (double spent = 0, n = 0; n < 3 || spent < 0.02; ++n) spent += seconds_of(device, f);
  const double once = seconds_of(device, f);
  const auto calls = std::clamp(static_cast<size_t>(0.1 / once), least_calls, most_calls);
  Tensor flush = empty({flush_bytes(device) / 4}, {Dtype::f32, device});
  std::vector<Timer> timers(calls, Timer());
  for (Timer& timer : timers) timer = Timer(device);
  for (Timer& timer : timers) {
    flush.fill_(1);
    timer.start();
    f();
    timer.stop();
  }
  std::vector<double> seconds;
  for (const Timer& timer : timers) seconds.push_back(timer.seconds());
  return median(seconds);
}

// Wall time of a call in a loop of 100, of fewer when those would take seconds. The median of three
// such loops: when something else interrupts the host once, that is not the call's time.
double call_seconds(Device device, const Function& f) {
  const NoGrad guard;
  const double once = std::min(seconds_of(device, f), seconds_of(device, f));
  const int calls = once > 0.02 ? 5 : 100;
  const auto loop = [&](int n) {
    return [&f, n] {
      for (int i = 0; i < n; ++i) f();
    };
  };
  seconds_of(device, loop(calls / 10));
  const auto a_call = [&] { return seconds_of(device, loop(calls)) / calls; };
  return median({a_call(), a_call(), a_call()});
}

std::int64_t bytes_backward(Reads reads, const std::vector<Tensor>& inputs, const Tensor& y) {
  std::int64_t in = 0, gradients = 0, sums = 0;
  for (const Tensor& x : inputs) {
    in += x.bytes();
    if (x.requires_grad()) gradients += x.bytes();
    if (x.numel() < y.numel()) sums += x.bytes();  // of a broadcast operand: dy added up
  }
  const std::int64_t necessary = y.bytes() + gradients;
  switch (reads) {
    case Reads::nothing:
      return necessary;
    case Reads::inputs:
      return necessary + in;
    case Reads::output:
      return necessary + y.bytes();
    case Reads::inputs_and_output:
      return necessary + in + y.bytes();
    case Reads::places:
      return necessary + y.numel();
    case Reads::only_shapes:
      return sums > 0 ? y.bytes() + sums : 0;  // dy itself is the gradient
  }
  return 0;
}

// To hundredths; what is less than 1, to four digits.
double rounded(double x) {
  const double steps = x < 1 && x > 0 ? std::pow(10, 3 - std::floor(std::log10(x))) : 100;
  return std::round(x * steps) / steps;
}

void measure_direction(Json& row, const std::string& name, std::int64_t bytes, double seconds) {
  row[name + "_us"] = rounded(seconds * 1e6);
  row["min_bytes_" + name] = bytes;
  row["gbps_" + name] = rounded(static_cast<double>(bytes) * 1e-9 / seconds);
}

void measure(Json& row, Device device) {
  const Op& op = find_op(row.at("op").get<std::string>());
  Case given(row, device);
  const Function call = op.make(given);
  const Tensor y = call();
  std::int64_t forward = y.bytes();
  for (const Tensor& x : given.inputs()) forward += x.bytes();
  measure_direction(row, "fwd", forward, cold_seconds(device, call));
  if (y.requires_grad()) {
    Generator generator(2);
    const Tensor dy = uniform(y.shape(), -1, 1, generator, y.options());
    const double seconds = cold_seconds(device, [&] { y.backward(dy, true); });
    measure_direction(row, "bwd", bytes_backward(op.reads, given.inputs(), y), seconds);
  }
  row["call_fwd_us"] = rounded(call_seconds(device, call) * 1e6);
}

// The row of one line: the case, its figures, or why there are none.
Json row_of(const std::string& line, Device device) {
  Json row = {{"case", line}};
  try {
    Json json = parse_shallow<Json>("opbench", "a case", line);
    if (json.is_object()) row = std::move(json);
    require(row.contains("op") && row["op"].is_string(), Kind::format, "opbench", "bad case",
            line.substr(0, json_shown), "an object in one line, {\"op\": …}");
    allow_tf32(row.contains("dtype") && row["dtype"] == "tf32");
    measure(row, device);
  } catch (const std::exception& error) {
    row["error"] = error.what();
  }
  return row;
}

bool wanted(const std::string& line, const std::vector<std::string>& only) {
  if (only.empty()) return true;
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("op") || !json["op"].is_string()) return false;
  return std::ranges::count(only, json["op"].get<std::string>()) > 0;
}

int fail(int code, const std::string& message) {
  std::cerr << "opbench: " << message << '\n';
  return code;
}

int run(std::istream& cases, const std::vector<std::string>& only, Device device) {
  bool found = false;
  for (std::string line; std::getline(cases, line);) {
    if (line.empty() || line[0] == '#' || !wanted(line, only)) continue;
    found = true;
    const Json row = row_of(line, device);
    std::cout << row.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
    if (!std::cout) return fail(7, "stdout cannot be written");
    release_cache(device);
  }
  if (cases.bad()) return fail(7, "the cases cannot be read");  // a folder opens, and no more
  return found ? 0
               : fail(3, "no case to measure; got none of those ops; expected a JSON line each");
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // writing fails then, with an error
  std::signal(SIGPIPE, SIG_IGN);
  CLI::App app("Measures ops of ebb on a file of cases, forward and backward; a row each.");
  std::string file, where = "cpu";
  std::vector<std::string> only;
  app.add_option("--cases", file, "JSON lines, {\"op\": …, \"dtype\": …, \"shape\": …}")
      ->required();
  app.add_option("--device", where, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--only", only, "Only these ops")->delimiter(',');
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return error.get_exit_code() == 0 ? app.exit(error) : fail(2, error.what());
  }
  std::ifstream cases(file);
  if (!cases) return fail(7, "cannot read " + file);
  if (where == "cuda" && cuda_device_count() == 0)
    return fail(4, "no CUDA device; got none; expected one, or --device cpu");
  return run(cases, only, where == "cuda" ? cuda_device : cpu_device);
}
