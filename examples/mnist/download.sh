#!/bin/sh
# Fetches MNIST's four files (11.6 MB), checked by SHA-256, into the folder given, or ~/.cache/ebb.
# What is there and right is kept; a file appears only once it is whole.
#
#   examples/mnist/download.sh [FOLDER]
#
# EBB_MNIST_MIRRORS: other places to try, in order, separated by spaces (file:// works with curl).
set -eu

mirrors=${EBB_MNIST_MIRRORS:-"https://ossci-datasets.s3.amazonaws.com/mnist
  https://storage.googleapis.com/cvdf-datasets/mnist"}
files="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6 t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6 t10k-labels-idx1-ubyte.gz"

fail() {
  echo "download.sh: $*" >&2
  exit 7
}

case "${1-}" in
  -h | --help)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
[ $# -le 1 ] || { echo "usage: download.sh [FOLDER]" >&2; exit 2; }
if [ $# -eq 1 ]; then
  folder=$1
else
  folder=${HOME:?set HOME, or name a folder}/.cache/ebb
fi
mkdir -p -- "$folder" || fail "cannot make the folder $folder"

if command -v sha256sum > /dev/null; then
  sum() { sha256sum < "$1" | cut -d ' ' -f 1; }
elif command -v shasum > /dev/null; then
  sum() { shasum -a 256 < "$1" | cut -d ' ' -f 1; }
else
  fail "neither sha256sum nor shasum was found"
fi

if command -v curl > /dev/null; then
  fetch() { curl --fail --location --silent --show-error --connect-timeout 20 --retry 2 -o "$2" "$1"; }
elif command -v wget > /dev/null; then
  fetch() { wget --quiet --timeout=20 --tries=3 -O "$2" "$1"; }
else
  fail "neither curl nor wget was found"
fi

part=
trap '[ -z "$part" ] || rm -f -- "$part"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

get() { # SHA NAME
  if [ -f "$folder/$2" ] && [ "$(sum "$folder/$2")" = "$1" ]; then
    echo "$folder/$2: there already"
    return
  fi
  part=$(mktemp "$folder/.$2.XXXXXX") || fail "cannot write to $folder"
  for mirror in $mirrors; do
    if ! fetch "${mirror%/}/$2" "$part"; then
      echo "download.sh: $mirror did not give $2" >&2
    elif [ "$(sum "$part")" != "$1" ]; then
      echo "download.sh: $mirror gave a wrong $2 (its SHA-256 differs)" >&2
    else
      chmod 644 "$part"
      mv -f -- "$part" "$folder/$2" || fail "cannot write $folder/$2"
      part=
      echo "$folder/$2: fetched"
      return
    fi
  done
  fail "no mirror gave a right $2"
}

while read -r hash name; do
  get "$hash" "$name" < /dev/null
done << END
$files
END
