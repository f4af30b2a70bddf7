#!/usr/bin/env bash
# NVIDIA's compute-sanitizer over the tests that use the GPU; fails when one of its tools finds
# something, or does not end in time.
#
#   tests/tools/sanitize.sh [TOOL...]   default: memcheck racecheck initcheck synccheck poison
#   TESTS='silu*' tests/tools/sanitize.sh memcheck
#
# After a build with CUDA, on a machine with a GPU or several. EBB_MEMORY=exact gives each tensor an
# allocation of its own, so that memcheck sees a byte too far. Finite differences launch the same
# kernels a million times over, and some tensors have 2^31 elements: both are left out. The tests
# run in shares, as many at once as there are processors; those over all golden cases, in eight
# parts each. Logs in $LOGS, seconds for each share in $LIMIT.
#
# What racecheck says of cuBLASLt's own kernels, nvjet_*, is passed over. initcheck does not see
# their bulk stores, nor what the copies of a captured graph have written: tests that read such
# memory, and test_nn, are left to `poison`, which is no tool of NVIDIA's: the tests run by
# themselves under EBB_MEMORY=poison, where what nobody wrote is NaN.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
export LOGS=${LOGS:-build/sanitize} LIMIT=${LIMIT:-1200} TESTS=${TESTS:-*} EBB_MEMORY=exact
export LEFT_OUT='*finite differences*,*times 0.1 is right*,large*'
GPUS=$(nvidia-smi -L | wc -l)
export GPUS
mkdir -p "$LOGS"
left_out() { # TOOL
  case $1 in
    poison) echo 'large*' ;;
    initcheck) echo "$LEFT_OUT,*captured graph*,*in bf16 it errs no more*,linear: the bits*" ;;
    *) echo "$LEFT_OUT" ;;
  esac
}
of_cublas() { # LOG
  ! grep -E '(Error|Warning): ' "$1" | grep -vq 'Race reported between .* at nvjet_' &&
    grep -qE 'RACECHECK SUMMARY: ' "$1" && grep -q 'Status: SUCCESS' "$1"
}
check() { # TOOL PROGRAM SUITE FIRST LAST [PART]
  local name=$1-$2-$3-$4${6:+-${6%/*}} status=0
  local log=$LOGS/$name.log
  [ $# -eq 6 ] && export EBB_GOLDEN=$6
  local tool=(compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 10000)
  case $1 in
    memcheck) tool+=(--report-api-errors no) ;; # tests ask for more memory than there is
    poison) tool=(env EBB_MEMORY=poison) ;;
  esac
  CUDA_VISIBLE_DEVICES=$((SLOT % GPUS)) timeout "$LIMIT" "${tool[@]}" "build/bin/$2" "$3" \
    -tc="$TESTS" -tce="$(left_out "$1")" --duration=true -f="$4" -l="$5" >"$log" 2>&1 || status=$?
  case $status in
    9) of_cublas "$log" && status='0, but for nvjet' ;;
    255) grep -q 'before first instrumented' "$log" && status='0, no kernel' ;;
  esac
  echo "$name: exit $status, $(grep -c ' s: ' "$log") tests," \
    "$(grep -oE 'ERROR SUMMARY: .*|RACECHECK SUMMARY: .*|Status: .*' "$log" | tail -1)"
  [[ $status == 0* ]]
}
export -f left_out of_cublas check
shares() { # TOOL PROGRAM SUITE TESTS_OF_A_SHARE PART...: '' is all of it
  local tests first part
  tests=$("build/bin/$2" -c "$3" -tc="$TESTS" -tce="$(left_out "$1")" | grep -oE '[0-9]+$')
  for ((first = 1; first <= tests; first += $4)); do
    for part in "${@:5}"; do
      echo "$1 $2 $3 $first $((first + $4 - 1))${part:+ $part}"
    done
  done
}
[ $# -gt 0 ] || set -- memcheck racecheck initcheck synccheck poison
for tool in "$@"; do
  shares "$tool" test_golden -ts=in_parts 1 {1..8}/8
  shares "$tool" test_golden -tse=in_parts 1 ''
  [ "$tool" != initcheck ] && shares "$tool" test_nn '-ts=*' 2 ''
  shares "$tool" test_ops '-ts=*' 2 ''
done | xargs -P "$(nproc)" --process-slot-var=SLOT -L 1 bash -c 'check "$@"' check
