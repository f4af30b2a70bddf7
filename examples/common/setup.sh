# Sourced by examples/quickstart.sh and tests/run.sh: packages, compilers, one Release build.
# shellcheck shell=bash

fail() {
  echo "error: $1" >&2
  exit 3
}

# install_packages [PACKAGE...]: Debian's and Ubuntu's, those that are missing; elsewhere one line
# that says what to have.
install_packages() {
  local tools="$* g++ cmake ninja-build libeigen3-dev doctest-dev libstb-dev zlib1g-dev"
  tools+=" nlohmann-json3-dev libcli11-dev" # the compiler's package brings OpenMP
  if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    echo "Needed here: a C++20 compiler with OpenMP, CMake >= 3.25, Ninja, and the headers of" \
      "Eigen >= 3.4, doctest, stb, zlib, nlohmann-json and CLI11." >&2
    return
  fi
  local missing=() package
  for package in $tools; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q ' installed$' ||
      missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "as root: apt-get install ${missing[*]}"
    root=(sudo)
  fi
  echo "Installing ${missing[*]}"
  "${root[@]}" apt-get update -qq || fail "apt-get update"
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    fail "apt-get install ${missing[*]}"
}

gpu_answers() { nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

has_nvcc() {
  command -v "${CUDACXX:-nvcc}" >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]
}

# configure ARGUMENT...: Release into build/, quietly but for what was chosen, and for mistakes.
configure() {
  local log
  log=$(cmake --preset default "$@" 2>&1) || {
    echo "$log" >&2
    fail "cmake could not configure; its messages stand above"
  }
  sed -n 's/^-- ebb: /Building for /p' <<<"$log"
}

# build TARGET...: as many at once as there are cores and 2 GB of memory for each.
build() {
  local jobs memory
  jobs=$(nproc)
  memory=$(awk '/MemAvailable/ { print int($2 / 2000000) }' /proc/meminfo)
  [ "$memory" -lt "$jobs" ] && jobs=$((memory > 0 ? memory : 1))
  cmake --build build -j "$jobs" --target "$@" || fail "the build failed"
}
