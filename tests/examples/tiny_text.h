// A small text, and train_transformer started on it with a net of some thousand numbers.
#pragma once
#include "tiny_run.h"

namespace transformer::test {

using namespace ebb::test;

struct TinyText : ebb::test::TinyRun {
  std::filesystem::path text = path / "text.txt";

  TinyText() : TinyRun("train_transformer") {
    settings = {{"--task", "text"},    {"--text", text.string()}, {"--block-size", "16"},
                {"--config", "tiny"},  {"--device", "cpu"},       {"--out", "out"},
                {"--n-layer", "1"},    {"--n-head", "2"},         {"--n-embd", "16"},
                {"--batch-size", "4"}, {"--max-iters", "24"},     {"--eval-interval", "8"}};
    of_task = {"--text", "--block-size"};
    std::string all;
    for (int i = 0; i < 60; ++i)
      all += "line " + std::to_string(i * i) + ": the tide ébbs, the tide flows\n";
    write(text, all);
  }

  Ended generate(const Words& more) const {
    return ebb::test::run_program("generate", more, around());
  }
};

}  // namespace transformer::test
