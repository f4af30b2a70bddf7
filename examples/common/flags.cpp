#include "common/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>

#include "common/exit.h"
#include "common/text.h"
#include "ebb/core/error.h"

namespace example {

using ebb::Kind;
using ebb::require;

namespace {

std::string quoted(const std::string& value) { return "'" + value + "'"; }

bool contains(const Range& range, double value) {
  return (range.low_open ? value > range.low : value >= range.low) &&
         (range.high_open ? value < range.high : value <= range.high);
}

std::string described(const Range& range) {
  constexpr double most = std::numeric_limits<double>::max();
  std::string out = "a finite number";
  if (range.low > -most) out += (range.low_open ? " above " : " of at least ") + shown(range.low);
  if (range.high < most) out += (range.high_open ? ", below " : ", at most ") + shown(range.high);
  return out;
}

}  // namespace

struct Flags::Impl {
  CLI::App app;
  Impl(std::string description, std::string program)
      : app(std::move(description), std::move(program)) {}

  // CLI11 hands over the text and stores nothing itself; `read` judges it.
  CLI::Option* add(const std::string& name, const std::string& type, const std::string& initial,
                   const std::string& help, std::function<void(const std::string&)> read) {
    CLI::Option* option = app.add_option(
        name,
        [read = std::move(read)](const CLI::results_t& results) {
          read(results.at(0));
          return true;
        },
        help);
    return option->type_name(type)->default_str(initial)->expected(1);
  }
};

Flags::Flags(std::string program, std::string description)
    : impl_(std::make_unique<Impl>(std::move(description), std::move(program))) {
  impl_->app.allow_extras();  // so that parse() can name them
}
Flags::~Flags() = default;

void Flags::whole(const std::string& name, std::int64_t& value, std::int64_t low, std::int64_t high,
                  const std::string& help) {
  impl_->add(name, "N", std::to_string(value), help, [=, &value](const std::string& given) {
    std::int64_t number = 0;
    const bool ok = read_number(given, number) && low <= number && number <= high;
    require(ok, Kind::value, name, "not a value it can have", quoted(given),
            ebb::text("a whole number from ", low, " to ", high));
    value = number;
  });
}

void Flags::real(const std::string& name, double& value, Range range, const std::string& help) {
  const std::string initial = std::isnan(value) ? "" : shown(value);
  impl_->add(name, "X", initial, help, [=, &value](const std::string& given) {
    double number = 0;
    const bool ok = read_number(given, number) && std::isfinite(number) && contains(range, number);
    require(ok, Kind::value, name, "not a value it can have", quoted(given), described(range));
    value = number;
  });
}

void Flags::text(const std::string& name, std::string& value, const std::string& help) {
  impl_->add(name, "TEXT", value, help, [=, &value](const std::string& given) {
    require(!given.empty(), Kind::value, name, "empty", quoted(given), "some text");
    value = given;
  });
}

void Flags::choice(const std::string& name, std::string& value,
                   const std::vector<std::string>& choices, const std::string& help) {
  impl_->add(name, "NAME", value, help + " (" + listed(choices) + ")",
             [=, &value](const std::string& given) {
               const bool ok = std::find(choices.begin(), choices.end(), given) != choices.end();
               require(ok, Kind::value, name, "unknown", quoted(given), listed(choices));
               value = given;
             });
}

void Flags::toggle(const std::string& name, bool& value, const std::string& help) {
  impl_->app.add_flag(name, value, help)->multi_option_policy(CLI::MultiOptionPolicy::Throw);
}

void Flags::device(std::string& value) {
  impl_->add("--device", "NAME", value, "where to compute: auto, cpu, cuda or cuda:N",
             [&value](const std::string& given) {
               int index = 0;
               const bool numbered =
                   given.starts_with("cuda:") && read_number(given.substr(5), index) && index >= 0;
               const bool ok = given == "auto" || given == "cpu" || given == "cuda" || numbered;
               require(ok, Kind::value, "--device", "unknown", quoted(given),
                       "auto, cpu, cuda or cuda:N");
               value = given;
             });
}

void Flags::apart(const std::vector<std::string>& names) {
  for (size_t i = 0; i < names.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      impl_->app.get_option(names[i])->excludes(impl_->app.get_option(names[j]));
}

void Flags::rest(const std::string& name, std::vector<std::string>& values, int least,
                 const std::string& help) {
  CLI::Option* option = impl_->app.add_option(name, values, help);
  option->type_name("");
  if (least > 0) option->required()->expected(-least);  // or more
}

bool Flags::parse(int argc, char** argv) {
  try {
    impl_->app.parse(argc, argv);
    for (const std::string& extra : impl_->app.remaining())
      require(false, Kind::value, extra, "unknown argument", "", "one that --help lists");
  } catch (const CLI::CallForHelp&) {
    std::cout << impl_->app.help() << std::flush;
    return false;
  } catch (const CLI::ParseError& error) {
    throw Stop(exit_code::usage, error.what());
  } catch (const ebb::Error& error) {
    throw Stop(exit_code::usage, error.what());
  }
  return true;
}

bool Flags::given(const std::string& name) const { return impl_->app.count(name) > 0; }

ebb::Device choose_device(const std::string& name) {
  if (name == "auto") return ebb::cuda_device_count() > 0 ? ebb::cuda_device : ebb::cpu_device;
  return ebb::parse_device(name);
}

}  // namespace example
