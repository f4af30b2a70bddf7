#!/usr/bin/env bash
# NVIDIA's compute-sanitizer over the tests that use the GPU, its tools all at once; fails when one
# finds something, or does not end in time.
#
#   tests/tools/sanitize.sh [TOOL...]      memcheck racecheck initcheck synccheck; default: all
#   TESTS='silu*' tests/tools/sanitize.sh memcheck
#
# After a build with CUDA, on a machine with a GPU. EBB_MEMORY=exact gives each tensor an allocation
# of its own, so that memcheck sees a byte too far. Finite differences launch the same kernels a
# million times over, and some tensors have 2^31 elements: both are left out. The operations' tests
# run in shares side by side. Logs in $LOGS, seconds for each check in $LIMIT.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
logs=${LOGS:-build/sanitize}
mkdir -p "$logs"
export EBB_MEMORY=exact
check() { # TOOL NAME PROGRAM ARGUMENT...
  local log=$logs/$1-$2.log status=0
  timeout "${LIMIT:-1200}" compute-sanitizer --tool "$1" --error-exitcode 9 \
    "build/bin/$3" "${@:4}" >"$log" 2>&1 || status=$?
  echo "$1 $2: exit $status, $(grep -oE 'ERROR SUMMARY: .*|RACECHECK SUMMARY: .*' "$log" | tail -1)"
  return $status
}
[ $# -gt 0 ] || set -- memcheck racecheck initcheck synccheck
left_out='*finite differences*,*times 0.1 is right*,large*'
tests=$(build/bin/test_ops -c -tc="${TESTS:-*}" -tce="$left_out" | grep -oE '[0-9]+$')
share=40
running=()
for tool in "$@"; do
  for ((first = 1; first <= tests; first += share)); do
    check "$tool" "ops-$first" test_ops -tc="${TESTS:-*}" -tce="$left_out" \
      -f="$first" -l=$((first + share - 1)) & running+=($!)
  done
  [ -n "${TESTS:-}" ] && continue
  check "$tool" nn test_nn -tce="$left_out" & running+=($!)
  check "$tool" golden test_golden & running+=($!)
done
failed=0
for check in "${running[@]}"; do wait "$check" || failed=1; done
exit $failed
