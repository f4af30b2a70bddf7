// MNIST's digits: finding them on disk and loading them, checked.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mnist {

inline constexpr int side = 28;           // of a picture, in pixels
inline constexpr int area = side * side;  // bytes of a picture
inline constexpr int classes = 10;

// Pictures one after another, row by row, ink 255 on ground 0; one label of 0 … 9 for each.
struct Digits {
  int count = 0;
  std::vector<std::uint8_t> pixels;
  std::vector<std::uint8_t> labels;
};

enum class Split { train, test };

// Where MNIST was looked for. With a root given (--data) only there; else in $EBB_DATA, ./data and
// ~/.cache/ebb, in this order. In each: the root itself, MNIST/raw (as torchvision lays it out),
// mnist and mnist/raw. The first folder with any of the four files is the one: its other files
// must be there and right, so that a damaged copy is never passed over for another one.
struct Found {
  std::string folder;  // empty: found nowhere
  std::vector<std::string> tried;
};
Found find(const std::string& root);

// The digits of one half of MNIST, from the folder that find() gives. Files may be named
// train-images-idx3-ubyte or train-images.idx3-ubyte, with .gz or without, whatever they hold.
//   io      found nowhere: the message lists the places tried and how to get the files
//   shape   pictures that are not 28×28
//   value   different numbers of pictures and labels; no pictures at all
//   index   a label over 9, with its position
// and what read_idx() raises.
Digits load(const std::string& root, Split split);

// The same from two files, wherever they are.
Digits load_files(const std::string& images, const std::string& labels);

}  // namespace mnist
