// The idx format of MNIST: two zero bytes, a type code, the number of dimensions, each dimension
// as a big-endian 32-bit integer, then the elements, the last dimension fastest. The whole may be
// packed with gzip, which is seen from its first bytes, whatever the file is called.
// Source: http://yann.lecun.com/exdb/mnist (format); RFC 1952 (gzip).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mnist {

struct Idx {
  std::vector<std::int64_t> shape;
  std::vector<std::uint8_t> data;
};

// Reads an idx file of bytes with `rank` dimensions. A file that is not wholly right is refused:
//   io      no such file, not a regular file, not readable, changed while read
//   format  wrong magic, wrong rank, cut short, bytes left over, damaged gzip stream or checksum;
//           a second gzip member counts as bytes left over
//   dtype   elements that are not bytes
//   limit   over 4 dimensions, 2³¹ elements or 1 GiB; a gzip stream that holds more than the
//           header declares (it is unpacked no further than that)
// Memory stays within what the header declares, and within what the file really holds, + 1 MiB.
Idx read_idx(const std::string& path, std::size_t rank);

}  // namespace mnist
