#!/usr/bin/env bash
# NVIDIA's compute-sanitizer over the tests that use the GPU, all four tools at once.
#
#   tests/tools/sanitize.sh [FOLDER OF LOGS]      after a build with CUDA, on a machine with a GPU
#
# EBB_MEMORY=exact gives each tensor an allocation of its own, so that memcheck sees a byte too far.
# Finite differences launch the same kernels a million times over, and are left out.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
logs=${1:-build/sanitize}
mkdir -p "$logs"
export EBB_MEMORY=exact
check() { # TOOL PROGRAM ARGUMENT...
  local tool=$1 program=$2
  shift 2
  compute-sanitizer --tool "$tool" --error-exitcode 9 "build/bin/$program" "$@" \
    >"$logs/$tool-$program.log" 2>&1
  echo "$tool $program: exit $?, $(grep -o 'ERROR SUMMARY: .*' "$logs/$tool-$program.log" | tail -1)"
}
for tool in memcheck racecheck initcheck synccheck; do
  check "$tool" test_ops -tce='*finite differences*,*times 0.1 is right*' &
  check "$tool" test_nn &
  check "$tool" test_golden &
done
wait
