// A training program run in small, in a folder that goes away with the test.
#pragma once
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "folder.h"
#include "program.h"
#include "twins.h"

namespace ebb::test {

using Words = std::vector<std::string>;

inline Words joined(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct TinyRun : Folder {
  std::string program;
  std::vector<std::pair<std::string, std::string>> settings;  // flags and their values
  Words of_task;  // those of them that go when another --task is given

  explicit TinyRun(std::string name) : program(std::move(name)) {}

  Surroundings around() const { return {path.string(), {}}; }
  std::filesystem::path checkpoint(const std::string& out = "out") const {
    return path / out / "checkpoint.safetensors";
  }

  // The settings, then `more`, whose flags stand instead.
  Words words(const Words& more) const {
    const auto in = [](const Words& all, const std::string& word) {
      return std::find(all.begin(), all.end(), word) != all.end();
    };
    Words all;
    for (const auto& [flag, value] : settings)
      if (!in(more, flag) && !(in(more, "--task") && in(of_task, flag)))
        all.insert(all.end(), {flag, value});
    return joined(std::move(all), more);
  }
  Ended train(const Words& more, const Surroundings& around) const {
    return run_program(program, words(more), around);
  }
  Ended train(const Words& more = {}) const { return train(more, around()); }
};

// "cpu", and "auto" where that is something else.
inline Words device_names() { return devices().size() > 1 ? Words{"cpu", "auto"} : Words{"cpu"}; }

inline void check_success(const Ended& ended) {
  CHECK(ended.err == "");
  CHECK(ended.code == 0);
}

// A refused run leaves nothing in --out but what was there.
inline void check_run_refused(const TinyRun& tiny, const Words& more, int code, const Words& parts,
                              const Surroundings& around) {
  const std::string before = read(tiny.checkpoint());
  check_refused(tiny.train(more, around), code, parts);
  CHECK(read(tiny.checkpoint()) == before);
  CHECK_FALSE(std::filesystem::exists(tiny.checkpoint().string() + ".tmp"));
  CHECK_FALSE(std::filesystem::exists(tiny.path / "out/run.lock"));
}
inline void check_run_refused(const TinyRun& tiny, const Words& more, int code,
                              const Words& parts) {
  check_run_refused(tiny, more, code, parts, tiny.around());
}

// Each of these values of each flag is refused by the flag's name.
inline void check_flags_refused(const TinyRun& tiny,
                                const std::vector<std::pair<std::string, Words>>& flags) {
  for (const auto& [flag, values] : flags)
    for (const std::string& value : values) {
      CAPTURE(value);
      check_refused(run_program(tiny.program, {flag, value}, tiny.around()), 2, {flag});
    }
}

inline void check_full_disk_refused(const TinyRun& tiny, const Words& more,
                                    const std::vector<std::size_t>& limits) {
  for (const std::size_t limit : limits) {
    CAPTURE(limit);
    auto around = tiny.around();
    around.file_limit = limit;
    check_run_refused(tiny, more, 7, {"out"}, around);
  }
}

}  // namespace ebb::test
