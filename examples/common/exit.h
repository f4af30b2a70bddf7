// How a program ends: one line on stderr and an exit code that says why.
#pragma once
#include <functional>
#include <stdexcept>
#include <string>

#include "ebb/core/error.h"

namespace example {

namespace exit_code {
inline constexpr int ok = 0;
inline constexpr int missed_target = 1;
inline constexpr int usage = 2;
inline constexpr int bad_input = 3;
inline constexpr int device = 4;
inline constexpr int non_finite = 6;
inline constexpr int io = 7;  // also: out of memory
}  // namespace exit_code

// Thrown where the code is known better than an ebb::Error's kind tells it.
class Stop : public std::runtime_error {
 public:
  Stop(int code, const std::string& message) : std::runtime_error(message), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

int code_of(ebb::Kind kind);

// What main() returns: the result of body(argc, argv), or the code of what it threw, after one
// line `error: …` on stderr. A closed pipe or a file-size limit does not end the program: writing
// just fails.
int run(int argc, char** argv, const std::function<int(int, char**)>& body);

}  // namespace example
