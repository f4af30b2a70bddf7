#include "mnist/data.h"

#include <array>
#include <utility>

#include "common/file.h"
#include "common/text.h"
#include "ebb/core/error.h"
#include "mnist/idx.h"

namespace mnist {

using ebb::Kind;
using ebb::require;
using ebb::text;
using example::join;
using example::present;
using example::quoted;

namespace {

enum class Part { images, labels };

// The file's path in this folder, or the empty string. Unpacked files come first: they load faster.
std::string find_file(const std::string& folder, Split split, Part part) {
  const std::string start = split == Split::train ? "train-" : "t10k-";
  const std::string what = part == Part::images ? "images" : "labels";
  const std::string end = part == Part::images ? "idx3-ubyte" : "idx1-ubyte";
  for (const char* packing : {"", ".gz"})
    for (const char* joint : {"-", "."})
      if (const std::string path = join(folder, start + what + joint + end + packing);
          present(path))
        return path;
  return {};
}

bool holds_any(const std::string& folder) {
  for (const Split split : {Split::train, Split::test})
    for (const Part part : {Part::images, Part::labels})
      if (!find_file(folder, split, part).empty()) return true;
  return false;
}

std::string in_folder(const std::string& folder, Split split, Part part) {
  const std::string path = find_file(folder, split, part);
  require(!path.empty(), Kind::io, "mnist",
          text("the folder ", quoted(folder), " lacks the ",
               split == Split::train ? "training " : "test ",
               part == Part::images ? "images" : "labels"),
          "only some of the files", "all four (examples/mnist/download.sh fetches them)");
  return path;
}

}  // namespace

Found find(const std::string& root) {
  Found found;
  const auto roots = root.empty() ? example::data_folders() : std::vector<std::string>{root};
  for (const std::string& place : roots)
    for (const char* layout : {"", "MNIST/raw", "mnist", "mnist/raw"}) {
      const std::string folder = join(place, layout);
      found.tried.push_back(folder);
      if (holds_any(folder)) {
        found.folder = folder;
        return found;
      }
    }
  return found;
}

Digits load(const std::string& root, Split split) {
  const Found found = find(root);
  require(!found.folder.empty(), Kind::io, "mnist", "MNIST was not found",
          text("nothing in ", example::listed(found.tried)),
          "its four files in one of these; examples/mnist/download.sh fetches them");
  const std::string images = in_folder(found.folder, split, Part::images);
  const std::string labels = in_folder(found.folder, split, Part::labels);
  return load_files(images, labels);
}

Digits load_files(const std::string& images, const std::string& labels) {
  Idx pictures = read_idx(images, 3);
  Idx names = read_idx(labels, 1);
  require(pictures.shape[1] == side && pictures.shape[2] == side, Kind::shape, "mnist",
          text(quoted(images), " holds pictures of another size"),
          text(pictures.shape[1], "x", pictures.shape[2]), "28x28");
  require(pictures.shape[0] == names.shape[0], Kind::value, "mnist",
          text(quoted(images), " and ", quoted(labels), " differ in number"),
          text(pictures.shape[0], " images, ", names.shape[0], " labels"), "one label an image");
  require(names.shape[0] > 0, Kind::value, "mnist", text(quoted(images), " holds no images"), "0",
          "at least 1");
  for (std::size_t i = 0; i < names.data.size(); ++i)
    require(names.data[i] < classes, Kind::index, "mnist",
            text(quoted(labels), " has a label out of range"),
            text("label ", int{names.data[i]}, " at item ", i), "0 to 9");
  return {static_cast<int>(names.shape[0]), std::move(pictures.data), std::move(names.data)};
}

}  // namespace mnist
