#!/usr/bin/env bash
# From a fresh clone to tested: installs what is missing (Debian 12, Ubuntu 24.04; root or sudo),
# builds everything, with CUDA wherever nvcc is, and runs all tests.
#
#   tests/run.sh [CTEST ARGUMENT...]      tests/run.sh -L ops    tests/run.sh -R package
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=examples/common/setup.sh
source examples/common/setup.sh

install_packages
arguments=(-DEBB_CUDA=AUTO -DEBB_TESTS=ON -DEBB_EXAMPLES=ON)
# One architecture is enough to test: the GPU's, which is what CMake chooses, else a recent one.
if has_nvcc && ! gpu_answers && [ -z "${CUDAARCHS:-}" ]; then
  arguments+=(-DCMAKE_CUDA_ARCHITECTURES=90a)
fi
configure "${arguments[@]}"
build all
status=0
ctest --test-dir build --output-on-failure --no-tests=error "$@" || status=$?
# What a green run did not show, from the last lines of the programs that ran.
awk '/^GPU checks run: / { run += $4; skipped += $NF }
     END { printf "GPU checks run: %d, skipped (no GPU): %d\n", run, skipped }' \
  build/Testing/Temporary/LastTest.log
exit $status
