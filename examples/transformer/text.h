// A text to learn from: finding it on disk, its characters as tokens, and its two parts.
#pragma once
#include <string>

#include "transformer/vocabulary.h"

namespace transformer {

struct Text {
  std::string path;
  Vocabulary vocabulary;
  Tokens tokens;
  std::uint32_t crc32;  // of the file

  // The first nine tenths are for training, the rest for validation.
  Tokens training() const;
  Tokens validation() const;
};

// The file, or with no path tinyshakespeare/input.txt in $EBB_DATA, data or ~/.cache/ebb.
//   io      found nowhere: the message lists the places tried and how to get it
//   limit   over 1 GiB
//   format  not UTF-8, or with a U+0000; the message names the byte
//   value   empty
Text load_text(const std::string& path);

}  // namespace transformer
