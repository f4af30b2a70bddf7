#include "common/exit.h"

#include <fcntl.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <new>
#include <system_error>

namespace example {

int code_of(ebb::Kind kind) {
  using ebb::Kind;
  if (kind == Kind::device || kind == Kind::cuda) return exit_code::device;
  return kind == Kind::io || kind == Kind::oom ? exit_code::io : exit_code::bad_input;
}

namespace {

// Messages may quote what was typed: they stay one line.
int report(int code, std::string message) {
  std::replace_if(
      message.begin(), message.end(), [](unsigned char c) { return c < ' ' || c == 127; }, ' ');
  std::fflush(stdout);
  std::fprintf(stderr, "error: %s\n", message.c_str());
  return code;
}

// Who started the program may have closed these: a checkpoint must not become stdout. Writing to
// them goes on to fail.
void occupy_standard_files() {
  for (int file = 0; file <= 2; ++file)
    if (fcntl(file, F_GETFD) < 0) open("/dev/null", O_RDONLY);
}

}  // namespace

int run(int argc, char** argv, const std::function<int(int, char**)>& body) {
  occupy_standard_files();
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a log shows each line as it is written
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return body(argc, argv);
  } catch (const Stop& stop) {
    return report(stop.code(), stop.what());
  } catch (const ebb::Error& error) {
    return report(code_of(error.kind()), error.what());
  } catch (const std::bad_alloc&) {
    return report(exit_code::io, "out of memory");
  } catch (const std::system_error& error) {  // also std::filesystem's
    return report(exit_code::io, error.what());
  } catch (const std::exception& error) {
    return report(exit_code::bad_input, error.what());
  }
}

}  // namespace example
