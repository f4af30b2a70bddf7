// opcase: runs one op on one case file, or a folder of them, through the public API. `--help` says
// how; a case is a safetensors file with in.NAME, gout.0 and the metadata `op` and `attrs`.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>

#include <CLI/CLI.hpp>

#include "case.h"

namespace {

using namespace opcase;
namespace fs = std::filesystem;

std::string shown(const Json& json) {
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

int report(const Outcome& outcome) {
  if (outcome.exit != ran) std::cerr << outcome.error << '\n';
  return outcome.exit;
}

int wrong_usage(const std::string& message) { return report({usage, "opcase: " + message}); }

// After what went to stdout.
int listed() {
  return report(std::cout.flush() ? Outcome{}
                                  : Outcome{refused, "opcase: stdout cannot be written"});
}

int list(bool as_json) {
  Json devices = {"cpu"};
  if (ebb::has_cuda) devices.push_back("cuda");
  Json all = Json::array();
  for (const Op& op : ops()) {
    Json inputs = Json::array(), dtypes = {"f32", "f64", "bf16"};
    if (op.takes_u8) dtypes.push_back("u8");
    for (const std::string& text : op.inputs) {
      const Input input(text);
      inputs.push_back(input.name + (input.list ? ".*" : "") + (input.optional ? "?" : ""));
    }
    all.push_back({{"op", op.name},
                   {"inputs", inputs},
                   {"attributes", op.attributes},
                   {"devices", devices},
                   {"dtypes", dtypes}});
  }
  if (as_json) {
    std::cout << all.dump(2) << '\n';
    return listed();
  }
  for (const Json& op : all) {
    std::cout << op["op"].get<std::string>() << '(';
    for (size_t i = 0; i < op["inputs"].size(); ++i)
      std::cout << (i ? ", " : "") << op["inputs"][i].get<std::string>();
    std::cout << ')';
    for (const auto& [name, value] : op["attributes"].items())
      std::cout << ' ' << name << '=' << shown(value);
    std::cout << "  " << shown(devices) << ' ' << shown(op["dtypes"]) << '\n';
  }
  return listed();
}

int gradcheck(const std::string& file, ebb::Device device) {
  std::string op;
  double worst = 0;
  const Outcome outcome = gradcheck_case(file, device, &op, &worst);
  if (outcome.exit == ran) std::printf("%s: worst error %.3g\n", op.c_str(), worst);
  return report(outcome);
}

// The cases below a folder, in one order on every machine; links are not followed, and answers,
// should they go below the cases, are none.
std::vector<fs::path> cases_in(const fs::path& folder, const fs::path& answers) {
  std::vector<fs::path> found;
  std::error_code unknown;  // of a link in a circle
  for (auto entry = fs::recursive_directory_iterator(folder); entry != fs::end(entry); ++entry) {
    if (entry->is_directory(unknown) && fs::equivalent(entry->path(), answers, unknown))
      entry.disable_recursion_pending();
    else if (entry->is_regular_file(unknown) && entry->path().extension() == ".safetensors")
      found.push_back(entry->path().lexically_relative(folder));
  }
  std::sort(found.begin(), found.end());
  return found;
}

Json run_one(const fs::path& from, const fs::path& to, const fs::path& file,
             const Settings& settings) {
  const auto start = std::chrono::steady_clock::now();
  Outcome outcome;
  std::error_code error;
  fs::create_directories((to / file).parent_path(), error);
  outcome = run_case((from / file).string(), (to / file).string(), settings);
  const std::chrono::duration<double, std::milli> ms = std::chrono::steady_clock::now() - start;
  return {{"file", file.generic_string()},
          {"exit", static_cast<int>(outcome.exit)},
          {"error", outcome.error},
          {"ms", ms.count()}};
}

int run_folder(const fs::path& from, const fs::path& to, const Settings& settings) {
  if (!fs::is_directory(from)) return wrong_usage("--dir " + from.string() + " is no folder");
  std::error_code unmade;
  fs::create_directories(to, unmade);
  if (unmade)
    return report({refused, "opcase: --out cannot be made; got " + to.string() + ", " +
                                unmade.message() + "; expected a folder, or room for one"});
  if (fs::equivalent(from, to)) return wrong_usage("--out is the folder of the cases");
  const std::vector<fs::path> files = cases_in(from, to);
  std::ofstream status(to / "status.jsonl", std::ios::trunc);
  for (const fs::path& file : files)
    status << shown(run_one(from, to, file, settings)) + '\n' << std::flush;
  if (!status)
    return report({refused, "opcase: status.jsonl cannot be written; got " + to.string() +
                                "; expected a folder to write in"});
  return ran;
}

struct Arguments {
  bool list = false, json = false;
  std::string one_case, folder, gradcheck, out, device = "cpu", dtype = "f32";
  Settings settings;
};

void declare(CLI::App& app, Arguments& a) {
  app.add_flag("--list", a.list, "Every op: inputs, attributes with defaults, devices, dtypes");
  app.add_flag("--json", a.json, "The list as JSON");
  app.add_option("--case", a.one_case, "Run this case file");
  app.add_option("--dir", a.folder, "Run every case file below this folder");
  app.add_option("--gradcheck", a.gradcheck, "Compare this case's gradients with differences");
  app.add_option("--out", a.out, "Where the answer goes: a file, or a folder with --dir");
  app.add_option("--device", a.device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--dtype", a.dtype, "What floating inputs are converted to")
      ->check(CLI::IsMember({"f32", "f64", "bf16"}))
      ->capture_default_str();
  app.add_flag("--backward", a.settings.backward, "Gradients too, of the case's gout.0");
  app.add_option("--repeat", a.settings.repeat, "Run so often; refuse when any byte differs")
      ->check(CLI::Range(1, 1'000'000));
  app.add_flag("--poison", a.settings.poison, "Fill fresh memory with NaN");
}

int run(Arguments& a) {
  const int modes = a.list + !a.one_case.empty() + !a.folder.empty() + !a.gradcheck.empty();
  if (modes != 1) return wrong_usage("one of --list, --case, --dir and --gradcheck");
  if (a.list) return list(a.json);
  if (a.gradcheck.empty() && a.out.empty()) return wrong_usage("--out is missing");
  if (a.device == "cuda" && ebb::cuda_device_count() == 0)
    return report({no_device, "opcase: no CUDA device; got none; expected one, or --device cpu"});
  a.settings.device = a.device == "cuda" ? ebb::cuda_device : ebb::cpu_device;
  a.settings.dtype = a.dtype == "f64"    ? ebb::Dtype::f64
                     : a.dtype == "bf16" ? ebb::Dtype::bf16
                                         : ebb::Dtype::f32;
  if (!a.gradcheck.empty()) return gradcheck(a.gradcheck, a.settings.device);
  std::error_code unknown;
  if (fs::equivalent(a.one_case, a.out, unknown)) return wrong_usage("--out is the case");
  if (!a.one_case.empty()) return report(run_case(a.one_case, a.out, a.settings));
  return run_folder(a.folder, a.out, a.settings);
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // writing fails then, with an error
  std::signal(SIGPIPE, SIG_IGN);
  CLI::App app("Runs one op of ebb on case files.");
  Arguments arguments;
  declare(app, arguments);
  try {
    app.parse(argc, argv);
    return run(arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return wrong_usage(error.what());
  } catch (const std::exception& error) {
    return wrong_usage(error.what());
  }
}
