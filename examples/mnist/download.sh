#!/bin/sh
about="Fetches MNIST's four files (11.6 MB), checked by SHA-256, into the folder given, or ~/.cache/ebb.
What is there and right is kept; a file appears only once it is whole.

  examples/mnist/download.sh [FOLDER]

EBB_MNIST_MIRRORS: other places to try, in order, separated by spaces (file:// works with curl)."

mirrors=${EBB_MNIST_MIRRORS:-"https://ossci-datasets.s3.amazonaws.com/mnist
  https://storage.googleapis.com/cvdf-datasets/mnist"}
files="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6 t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6 t10k-labels-idx1-ubyte.gz"

# shellcheck source=examples/common/fetch.sh
. "$(dirname -- "$0")/../common/fetch.sh"
