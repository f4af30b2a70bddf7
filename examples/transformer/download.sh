#!/bin/sh
about="Fetches tinyshakespeare (1.1 MB), checked by SHA-256, into tinyshakespeare/ of the folder given,
or of ~/.cache/ebb. What is there and right is kept; a file appears only once it is whole.

  examples/transformer/download.sh [FOLDER]

EBB_TEXT_MIRRORS: other places to try, in order, separated by spaces (file:// works with curl)."

mirrors=${EBB_TEXT_MIRRORS:-"https://raw.githubusercontent.com/karpathy/char-rnn/master/data
  https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data"}
files="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed tinyshakespeare/input.txt"

# shellcheck source=examples/common/fetch.sh
. "$(dirname -- "$0")/../common/fetch.sh"
