#!/usr/bin/env bash
# NVIDIA's compute-sanitizer over the tests that use the GPU; fails when one of its tools finds
# something, or does not end in time.
#
#   tests/tools/sanitize.sh [TOOL...]      memcheck racecheck initcheck synccheck; default: all
#   TESTS='silu*' tests/tools/sanitize.sh memcheck
#
# After a build with CUDA, on a machine with a GPU. EBB_MEMORY=exact gives each tensor an allocation
# of its own, so that memcheck sees a byte too far. Finite differences launch the same kernels a
# million times over, and some tensors have 2^31 elements: both are left out. The operations' tests
# run in shares, as many at once as there are processors. Logs in $LOGS, seconds for each check in
# $LIMIT.
#
# Some of what initcheck would name is not so: it does not see the bulk stores of cuBLASLt's Hopper
# kernels, and judges the copies of a captured graph before the graph has run. test_nn and captured
# graphs are left to EBB_MEMORY=poison, where what nobody wrote is NaN and no test would pass.
# racecheck names cuBLASLt's own kernels, nvjet_*; and in norm_ring.cu and held.cuh accesses before
# and after a barrier of the whole block, beside barriers of some warps, and words that are polled.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
export LOGS=${LOGS:-build/sanitize} LIMIT=${LIMIT:-1200} TESTS=${TESTS:-*} EBB_MEMORY=exact
export LEFT_OUT='*finite differences*,*times 0.1 is right*,large*'
mkdir -p "$LOGS"
check() { # TOOL NAME PROGRAM ARGUMENT...
  local log=$LOGS/$1-$2.log status=0 left_out=$LEFT_OUT options=()
  case $1 in
    memcheck) options=(--report-api-errors no) ;; # tests ask for more memory than there is
    initcheck) left_out+=',*captured graph*' ;;
  esac
  timeout "$LIMIT" compute-sanitizer --tool "$1" --error-exitcode 9 "${options[@]}" \
    "build/bin/$3" -tc="$TESTS" -tce="$left_out" --duration=true "${@:4}" >"$log" 2>&1 || status=$?
  echo "$1 $2: exit $status, $(grep -c ' s: ' "$log") tests," \
    "$(grep -oE 'ERROR SUMMARY: .*|RACECHECK SUMMARY: .*' "$log" | tail -1)"
  [ $status -eq 0 ]
}
export -f check
[ $# -gt 0 ] || set -- memcheck racecheck initcheck synccheck
tests=$(build/bin/test_ops -c -tc="$TESTS" -tce="$LEFT_OUT" | grep -oE '[0-9]+$')
share=4
for tool in "$@"; do
  [ "$TESTS" = '*' ] && echo "$tool golden test_golden"
  [ "$TESTS" = '*' ] && [ "$tool" != initcheck ] && echo "$tool nn test_nn"
  for ((first = 1; first <= tests; first += share)); do
    echo "$tool ops-$first test_ops -f=$first -l=$((first + share - 1))"
  done
done | xargs -P "$(nproc)" -L 1 bash -c 'check "$@"' check
