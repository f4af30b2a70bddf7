#!/usr/bin/env bash
# What only a machine with a GPU can show, in stages with a limit of time each, and a table last.
#
#   tests/tools/on_gpu.sh [STAGE...]       build test occupancy bench sanitize; default: all, so
#   tests/tools/on_gpu.sh bench add,silu   these operations only
#
# build is for one architecture, $CUDAARCHS or 90a; bench needs a Python with PyTorch, $PYTHON.
# Seconds for each stage in $LIMIT. Logs are build/on_gpu-STAGE.log.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
export CUDAARCHS=${CUDAARCHS:-90a}
operations=""

build() {
  cmake --preset default -DEBB_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$CUDAARCHS" &&
    cmake --build build -j "$(nproc)"
}
test_() { # the layers side by side: most of their time is the CPU's
  local pids=() layer status=0
  for layer in core ops nn golden; do
    build/bin/test_$layer >"build/on_gpu-test_$layer.log" 2>&1 & pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=1; done
  tail -n 5 build/on_gpu-test_*.log
  return $status
}
occupancy() { build/bin/occupancy; }
bench() {
  "${PYTHON:-python3}" tests/tools/bench_ops.py tests/tools/cases.jsonl --device cuda \
    --only "$operations" --seconds "$((${LIMIT:-900} - 60))"
}
sanitize() { LIMIT=${LIMIT:-900} tests/tools/sanitize.sh; }

stage() { # NAME: in a group of its own, so that a limit ends all of it
  local log=build/on_gpu-$1.log start=$SECONDS status=0
  echo "== $1" >&2
  export -f build test_ occupancy bench sanitize
  operations=$operations timeout "${LIMIT:-900}" bash -c "set -uo pipefail; ${1/%test/test_}" \
    >"$log" 2>&1 || status=$?
  case $1 in
    bench) tail -n 130 "$log" ;;
    build) [ $status -eq 0 ] || grep -m 5 -A 5 -E 'error|FAILED' "$log" ;;
    *) tail -n 40 "$log" ;;
  esac
  summary+=("$(printf '%-10s %5d s  %s' "$1" $((SECONDS - start)) \
    "$([ $status -eq 0 ] && echo ok || echo "FAILED, exit $status")")")
  [ $status -eq 0 ] || failed=1
}

mkdir -p build
summary=()
failed=0
[ $# -gt 0 ] || set -- build test occupancy bench sanitize
while [ $# -gt 0 ]; do
  name=$1
  shift
  case $name in
    build | test | occupancy | sanitize) ;;
    bench)
      case ${1:-test} in
        build | test | occupancy | bench | sanitize) operations="" ;;
        *) operations=$1 && shift ;;
      esac
      ;;
    *)
      echo "on_gpu.sh: no stage $name; expected build, test, occupancy, bench or sanitize" >&2
      exit 2
      ;;
  esac
  stage "$name"
done
printf '\n'
printf '%s\n' "${summary[@]}"
exit $failed
