#!/usr/bin/env bash
# From a fresh clone to a trained network: installs what is missing (Debian 12, Ubuntu 24.04; root
# or sudo), builds, and trains a small network on handwritten digits.
#
#   examples/quickstart.sh [--download] [FLAG...]
#
# --download fetches MNIST first; without it, and without the files, the network learns from digits
# that the program draws itself. Further flags go to build/bin/train_mnist (see its --help).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=examples/common/setup.sh
source examples/common/setup.sh

download=no
flags=()
for argument in "$@"; do
  case $argument in
    --download) download=yes ;;
    *) flags+=("$argument") ;;
  esac
done

if [ "$download" = no ] || command -v curl >/dev/null || command -v wget >/dev/null; then
  install_packages
else
  install_packages curl ca-certificates
fi
if [ "$download" = yes ] && ! examples/mnist/download.sh; then
  echo "error: MNIST was not fetched; without --download the net trains on digits drawn here" >&2
  exit 7
fi
cuda=OFF # unless a GPU answers; a build folder that has CUDA already keeps it
if gpu_answers; then
  cuda=AUTO
  has_nvcc || echo "A GPU answers, but there is no nvcc: install the CUDA Toolkit to use it."
elif grep -qs '^EBB_CUDA_ENABLED:INTERNAL=ON' build/CMakeCache.txt; then
  cuda=AUTO
fi
configure -DEBB_CUDA="$cuda" -DEBB_EXAMPLES=ON
build train_mnist predict_digit train_transformer generate
exec build/bin/train_mnist "${flags[@]}"
