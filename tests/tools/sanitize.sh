#!/usr/bin/env bash
# NVIDIA's compute-sanitizer over the tests that use the GPU; fails when one of its tools finds
# something, or does not end in time.
#
#   tests/tools/sanitize.sh [TOOL...]      memcheck racecheck initcheck synccheck; default: all
#   TESTS='silu*' tests/tools/sanitize.sh memcheck
#
# After a build with CUDA, on a machine with a GPU or several. EBB_MEMORY=exact gives each tensor an
# allocation of its own, so that memcheck sees a byte too far. Finite differences launch the same
# kernels a million times over, and some tensors have 2^31 elements: both are left out. The tests
# run in shares, as many at once as there are processors. Logs in $LOGS, seconds for each share in
# $LIMIT.
#
# cuBLASLt's own kernels, nvjet_*, are left out: racecheck names them, and initcheck does not see
# their bulk stores, nor what the copies of a captured graph have written. test_nn and captured
# graphs are left to EBB_MEMORY=poison, where what nobody wrote is NaN and no test would pass.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
export LOGS=${LOGS:-build/sanitize} LIMIT=${LIMIT:-1200} TESTS=${TESTS:-*} EBB_MEMORY=exact
export LEFT_OUT='*finite differences*,*times 0.1 is right*,large*'
GPUS=$(nvidia-smi -L | wc -l)
export GPUS
mkdir -p "$LOGS"
left_out() { # TOOL
  echo "$LEFT_OUT$([ "$1" = initcheck ] && echo ',*captured graph*')"
}
check() { # TOOL PROGRAM FIRST LAST
  local name=$1-$2-$3 status=0
  local log=$LOGS/$name.log options=(--kernel-name-exclude kernel_substring=nvjet)
  # Tests ask for more memory than there is.
  [ "$1" = memcheck ] && options+=(--report-api-errors no)
  CUDA_VISIBLE_DEVICES=$((SLOT % GPUS)) timeout "$LIMIT" \
    compute-sanitizer --tool "$1" --error-exitcode 9 "${options[@]}" "build/bin/$2" \
    -tc="$TESTS" -tce="$(left_out "$1")" --duration=true -f="$3" -l="$4" >"$log" 2>&1 || status=$?
  echo "$name: exit $status, $(grep -c ' s: ' "$log") tests," \
    "$(grep -oE 'ERROR SUMMARY: .*|RACECHECK SUMMARY: .*' "$log" | tail -1)"
  [ $status -eq 0 ] || { [ $status -eq 255 ] && grep -q 'before first instrumented' "$log"; }
}
export -f left_out check
shares() { # TOOL PROGRAM TESTS_OF_A_SHARE
  local tests first
  tests=$("build/bin/$2" -c -tc="$TESTS" -tce="$(left_out "$1")" | grep -oE '[0-9]+$')
  for ((first = 1; first <= tests; first += $3)); do
    echo "$1 $2 $first $((first + $3 - 1))"
  done
}
[ $# -gt 0 ] || set -- memcheck racecheck initcheck synccheck
for tool in "$@"; do
  shares "$tool" test_golden 1
  [ "$tool" != initcheck ] && shares "$tool" test_nn 2
  shares "$tool" test_ops 2
done | xargs -P "$(nproc)" --process-slot-var=SLOT -L 1 bash -c 'check "$@"' check
