// A small text, and train_transformer started on it with a net of some thousand numbers.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "folder.h"
#include "program.h"

namespace transformer::test {

using ebb::test::check_refused;
using ebb::test::Ended;
using ebb::test::names_in;
using ebb::test::read;
using ebb::test::same_bytes;
using ebb::test::write;
using Words = std::vector<std::string>;

struct TinyText : ebb::test::Folder {
  std::filesystem::path text;

  TinyText() {
    text = path / "text.txt";
    std::string all;
    for (int i = 0; i < 60; ++i)
      all += "line " + std::to_string(i * i) + ": the tide ébbs, the tide flows\n";
    write(text, all);
  }

  ebb::test::Surroundings around() const { return {path.string(), {}}; }
  std::filesystem::path checkpoint(const std::string& out = "out") const {
    return path / out / "checkpoint.safetensors";
  }

  // A flag in `more` stands instead of that here; with --task, those of texts are left out.
  Words words(const Words& more) const {
    const auto given = [&](const char* flag) {
      return std::find(more.begin(), more.end(), flag) != more.end();
    };
    Words all;
    const auto add = [&](const char* flag, const std::string& value) {
      if (given(flag)) return;
      all.emplace_back(flag);
      all.push_back(value);
    };
    if (!given("--task")) {
      add("--task", "text"), add("--text", text.string()), add("--block-size", "16");
    }
    add("--config", "tiny"), add("--device", "cpu"), add("--out", "out");
    add("--n-layer", "1"), add("--n-head", "2"), add("--n-embd", "16");
    add("--batch-size", "4"), add("--max-iters", "24"), add("--eval-interval", "8");
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  Ended train(const Words& more = {}) const {
    return ebb::test::run_program("train_transformer", words(more), around());
  }
  Ended generate(const Words& more) const {
    return ebb::test::run_program("generate", more, around());
  }
};

}  // namespace transformer::test
