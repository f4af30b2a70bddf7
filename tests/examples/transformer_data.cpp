// What the transformer example learns from: characters, texts, windows and problems.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "folder.h"
#include "transformer/batch.h"
#include "transformer/task.h"
#include "twins.h"
#include "written.h"

using namespace transformer;
using ebb::Tensor;
using ebb::test::check_error;
using transformer::test::written;

namespace {

std::vector<std::int32_t> ints(const Tensor& x) { return x.to_vector<std::int32_t>(); }

std::string told(const Problems& problems, std::uint64_t problem) {
  Tokens tokens;
  for (int i = 0; i < problems.length(); ++i) tokens.push_back(problems.token(problem, i));
  return problems.vocabulary().decode(tokens);
}

}  // namespace

TEST_CASE("vocabulary: a text's characters in order, there and back") {
  const std::u32string text = code_points("héllo\n世界 héé", "it");
  const Vocabulary vocabulary = Vocabulary::of(text);
  CHECK(vocabulary.utf8() == "\n hloé世界");
  CHECK(vocabulary.size() == 8);
  const Tokens tokens = vocabulary.encode(text, "it");
  CHECK(tokens.front() == 2);
  CHECK(vocabulary.decode(tokens) == "héllo\n世界 héé");
  CHECK(vocabulary.decode(5) == "é");
  check_error(ebb::Kind::value, {"the prompt has a character", "'ß' at place 1"},
              [&] { vocabulary.encode(U"hß", "the prompt"); });
  check_error(ebb::Kind::value, {"'character 7' at place 0"},
              [&] { vocabulary.encode(U"\a", "the prompt"); });
  check_error(ebb::Kind::format, {"vocabulary: "}, [] { Vocabulary(U"aba"); });
  check_error(ebb::Kind::format, {"vocabulary: "}, [] { Vocabulary(U""); });
}

TEST_CASE("code_points: what is not UTF-8 is refused with its byte") {
  const std::vector<std::pair<std::string, std::string>> bad = {{"ab\xff", "byte 2"},
                                                                {"\xc3", "byte 0"},
                                                                {"é\xc0\xaf", "byte 2"},
                                                                {"\xed\xa0\x80", "byte 0"},
                                                                {"a\xf5\x80\x80\x80", "byte 1"},
                                                                {"x\x80", "byte 1"}};
  for (const auto& [text, place] : bad)
    check_error(ebb::Kind::format, {"T is not UTF-8", place}, [&] { code_points(text, "T"); });
  CHECK(code_points(std::string("a\0b", 3), "it").size() == 3);
  CHECK(code_points("\xef\xbb\xbf\r\n", "it") == U"\ufeff\r\n");  // kept as they are
}

TEST_CASE("text: nine tenths to train on, the rest to validate") {
  const ebb::test::Folder folder;
  const std::string path = folder.path / "text";
  ebb::test::write(path, "abcabcabcabcabcabcabcabcab");
  const Text text = load_text(path);
  CHECK(text.vocabulary.utf8() == "abc");
  CHECK(text.training().size() == 23);
  CHECK(text.validation() == Tokens{2, 0, 1});
  CHECK(text.crc32 != 0);
  ebb::test::write(path, "");
  check_error(ebb::Kind::value, {"text: ", "is empty"}, [&] { load_text(path); });
  ebb::test::write(path, std::string("é\0b\0", 5));
  check_error(ebb::Kind::format, {"text: ", "U+0000 at byte 2"}, [&] { load_text(path); });
  check_error(ebb::Kind::io, {"text: ", "a directory"}, [&] { load_text(folder.path); });
}

TEST_CASE("windows: rows of the text, and the same shifted by one") {
  Tokens tokens(1000);
  std::iota(tokens.begin(), tokens.end(), 0);
  for (const ebb::Device device : ebb::test::devices()) {
    const Tensor text = ebb::tensor(tokens, {1000}, device);
    const Batch batch = draw_windows(text, 7, {5, 40, 3000});
    const auto x = ints(batch.x), y = ints(batch.y);
    std::set<std::int32_t> starts;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (i % 7 != 0) CHECK(x[i] == x[i - 1] + 1);
      CHECK(y[i] == x[i] + 1);
      if (i % 7 == 0) starts.insert(x[i]);
    }
    // Each of the 993 places is as likely as another: 3,000 draws leave about 48 of them out.
    CHECK(*starts.begin() == 0);
    CHECK(*starts.rbegin() == 992);
    CHECK(std::abs(static_cast<double>(starts.size()) - 945) <= 40);
    // A row depends on its number only.
    const auto later = ints(draw_windows(text, 7, {5, 1040, 2}).x);
    CHECK(std::equal(later.begin(), later.end(), x.begin() + 7000));
    CHECK(ints(draw_windows(text, 7, {6, 40, 3000}).x) != x);
    check_error(ebb::Kind::value, {"text: "}, [&] { draw_windows(text, 1000, {0, 0, 1}); });
    CHECK(ints(draw_windows(text, 999, {0, 0, 1}).y).back() == 999);
  }
}

TEST_CASE("problems: what is asked, and its answer") {
  const Problems addition{Skill::addition, 3};
  CHECK(told(addition, 123456) == "123+456=9750");
  CHECK(told(addition, 999999) == "999+999=8991");
  CHECK(told(addition, 0) == "000+000=0000");
  const Problems sort{Skill::sort, 10};
  CHECK(told(sort, 3141592653) == "3141592653>1123345569");
  for (const Problems& problems :
       {addition, sort, Problems{Skill::addition, 2}, Problems{Skill::addition, 9},
        Problems{Skill::sort, 2}, Problems{Skill::sort, 18}})
    for (std::uint64_t i = 0; i < 1000; ++i) {
      const std::uint64_t problem = drawn(problems, {3, 0}, i, i % 2 == 0);
      CHECK(problem < problems.count());
      CHECK(told(problems, problem) == written(problems, problem));
    }
}

TEST_CASE("problems: batches hold what is not held out, and ask for answers only") {
  for (const ebb::Device device : ebb::test::devices())
    for (const Problems& problems : {Problems{Skill::addition, 3}, Problems{Skill::sort, 4}}) {
      const Batch batch = draw_problems(problems, {1, 9, 2000}, device);
      const auto x = ints(batch.x), y = ints(batch.y);
      const auto length = static_cast<std::size_t>(problems.length() - 1);
      const auto asked = static_cast<std::size_t>(problems.question() - 1);
      REQUIRE(batch.x.shape() == ebb::Shape{2000, problems.length() - 1});
      for (std::size_t r = 0; r < 2000; ++r) {
        const std::uint64_t problem = problem_of(problems, {1, 9, 2000}, static_cast<int>(r));
        CHECK_FALSE(held_out(problem));
        const Tokens row(x.begin() + static_cast<std::ptrdiff_t>(r * length),
                         x.begin() + static_cast<std::ptrdiff_t>((r + 1) * length));
        const std::string whole = written(problems, problem);
        CHECK(problems.vocabulary().decode(row) == whole.substr(0, length));
        for (std::size_t i = 0; i < length; ++i) {
          const std::int32_t wanted = i < asked ? ignored : whole[i + 1] - '0';
          CHECK(y[r * length + i] == wanted);
        }
      }
    }
}

TEST_CASE("problems: the unseen are distinct, as many as asked, and never drawn to train on") {
  for (const auto& [problems, expected] :
       std::vector<std::pair<Problems, std::size_t>>{{{Skill::addition, 3}, 10000},
                                                     {{Skill::addition, 5}, 10000},
                                                     {{Skill::sort, 10}, 10000},
                                                     {{Skill::addition, 2}, 0},
                                                     {{Skill::sort, 2}, 0}}) {
    const auto all = unseen(problems, 10000);
    const std::set<std::uint64_t> different(all.begin(), all.end());
    CHECK(different.size() == all.size());
    if (expected > 0) CHECK(all.size() == expected);
    CHECK(all.size() > 0);  // there is something to test on, however few there are
    CHECK(std::all_of(all.begin(), all.end(), held_out));
    CHECK(unseen(problems, 10000) == all);
    std::int64_t trained = 0;
    for (std::uint64_t i = 0; i < 20000; ++i)
      trained += different.contains(drawn(problems, {7, batch_stream}, i, false));
    CHECK(trained == 0);
  }
  std::int64_t held = 0;
  for (std::uint64_t p = 0; p < 1000000; ++p) held += held_out(p);
  CHECK(std::abs(static_cast<double>(held) - 62500) <= 1000);  // a sixteenth, 4 deviations
}

TEST_CASE("problems: questions are read as people write them") {
  const Problems addition{Skill::addition, 3}, sort{Skill::sort, 5};
  const auto asked = [](const Problems& problems, const std::string& text) {
    return problems.vocabulary().decode(question(problems, text));
  };
  CHECK(asked(addition, "12+7") == "012+007=");
  CHECK(asked(addition, "999+000=") == "999+000=");
  CHECK(asked(sort, "52431") == "52431>");
  CHECK(asked(sort, "52431>") == "52431>");
  CHECK(readable(addition, {9, 1, 0, 0}) == "19");
  CHECK(readable(addition, {0, 0, 0, 0}) == "0");
  CHECK(readable(addition, {0, 0, 0, 1}) == "1000");
  CHECK(readable(sort, {0, 1, 1, 2, 3}) == "01123");
  for (const std::string bad : {"", "12", "12+", "+7", "1234+1", "1+2+3", "a+1", "1 + 1", "1=1"})
    check_error(ebb::Kind::value, {"addition: "}, [&] { question(addition, bad); });
  for (const std::string bad : {"", "5243", "524310", "5243a"})
    check_error(ebb::Kind::value, {"sort: "}, [&] { question(sort, bad); });
}
