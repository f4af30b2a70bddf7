// generate from outside, on models that train_transformer has made.
#include "tiny_text.h"

using namespace transformer::test;

namespace {

std::string said(const TinyText& tiny, const Words& more) {
  const Words words = {"--checkpoint", tiny.checkpoint().string(), "--device", "cpu"};
  const Ended ended = tiny.generate(joined(words, more));
  check_success(ended);
  return ended.out;
}

}  // namespace

TEST_CASE("generate: a seed gives its text, shown at once or at the end") {
  const TinyText tiny;
  REQUIRE(tiny.train().code == 0);
  const Words words = {"--prompt", "the tide é", "--max-new-tokens", "70", "--temperature", "1.5"};
  const auto with = [&](const Words& more) { return said(tiny, joined(words, more)); };
  const std::string text = with({"--seed", "3"});
  CHECK(text.starts_with("the tide é"));
  CHECK(text.ends_with("\n"));
  CHECK(with({"--seed", "3"}) == text);
  CHECK(with({"--seed", "3", "--stream"}) == text);
  CHECK(with({"--seed", "4"}) != text);
  CHECK(with({"--seed", "3", "--top-k", "1"}) ==
        said(tiny, {"--prompt", "the tide é", "--max-new-tokens", "70", "--temperature", "0"}));
  CHECK(said(tiny, {"--max-new-tokens", "1"}).starts_with("\n"));
}

TEST_CASE("generate: a text learned by heart is told to its end, past the context") {
  const TinyText tiny;
  const std::string text =
      "The ebb leaves wet sand behind it,\nthe flood comes back for it by night,\n"
      "and nobody has ever seen them meet.\n";
  write(tiny.text, text);
  REQUIRE(tiny.train({"--n-embd", "48", "--n-layer", "2", "--max-iters", "600", "--batch-size",
                      "16", "--block-size", "24", "--eval-interval", "600", "--lr", "0.005"})
              .code == 0);
  // What it has trained on, but for the end, which has only been seen late in a window.
  const auto known = text.substr(0, text.size() * 9 / 10 - 24);
  const std::string told = said(tiny, {"--prompt", known.substr(0, 8), "--temperature", "0",
                                       "--max-new-tokens", std::to_string(known.size() - 8)});
  CHECK(told == known + "\n");
}

TEST_CASE("generate: problems are answered as people write them") {
  const TinyText tiny;
  REQUIRE(tiny.train({"--task", "sort", "--digits", "2", "--max-iters", "400", "--batch-size", "32",
                      "--n-embd", "32", "--target", "0", "--eval-interval", "400"})
              .code == 0);
  CHECK(said(tiny, {"--prompt", "73"}) == "73>37\n");
  CHECK(said(tiny, {"--prompt", "19>"}) == "19>19\n");
}

TEST_CASE("generate: --attention draws what the heads of the last layer look at") {
  const TinyText tiny;
  REQUIRE(tiny.train({"--max-iters", "2"}).code == 0);
  said(tiny, {"--prompt", "the tide", "--max-new-tokens", "1", "--attention", "maps.png"});
  CHECK(read(tiny.path / "maps.png").starts_with("\x89PNG\r\n\x1a\n"));
}

TEST_CASE("generate: what cannot be written ends it") {
  const TinyText tiny;
  REQUIRE(tiny.train({"--max-iters", "2"}).code == 0);
  const Words words = {"--checkpoint", tiny.checkpoint().string(), "--device", "cpu"};
  auto around = tiny.around();
  around.output = "/dev/full";
  check_refused(run_program("generate", words, around), 7, {"output", "No space"});
  const Words endless = joined(words, {"--prompt", "tide", "--max-new-tokens", "1000000000"});
  for (const Words& more : {Words{}, Words{"--stream"}}) {  // far longer than the test waits
    CAPTURE(more);
    Program program("generate", joined(endless, more), tiny.around());
    CHECK(program.shows("tide"));
    program.close_output();
    check_refused(program.end(), 7, {"output", "Broken pipe"});
  }
}
