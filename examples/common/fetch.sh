# Sourced by the examples' download.sh, with what to fetch:
#   about    the lines that --help shows
#   mirrors  places to try, in order, separated by spaces (file:// works with curl)
#   files    "SHA-256 NAME" lines; NAME is also the path below the folder
# What is there and right is kept; a file appears only once it is whole.
# shellcheck shell=sh disable=SC2154
set -eu

fail() {
  echo "download.sh: $*" >&2
  exit 7
}

case "${1-}" in
  -h | --help)
    printf '%s\n' "$about"
    exit 0
    ;;
esac
[ $# -le 1 ] || { echo "usage: download.sh [FOLDER]" >&2; exit 2; }
if [ $# -eq 1 ]; then
  folder=$1
else
  folder=${HOME:?set HOME, or name a folder}/.cache/ebb
fi

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
  place=$(dirname -- "$folder/$2")
  mkdir -p -- "$place" || fail "cannot make the folder $place"
  part=$(mktemp "$place/.part.XXXXXX") || fail "cannot write to $place"
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
