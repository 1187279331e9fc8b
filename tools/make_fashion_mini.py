"""Make src/legato/data/embedded/fashion-mini.xz from the official Fashion-MNIST files.

Which images: for each class, the first 500 of a seeded permutation of its rows in the training file, and the first 100
of one of its rows in the test file; then in the order of the files. The file is one xz stream of six .npy arrays:
training images [5000, 28, 28], labels [5000] and row numbers [5000], then the same for the test [1000].

Run it with the folder that Debian's package dataset-fashion-mnist fills:
    python tools/make_fashion_mini.py /usr/share/datasets/fashion-mnist
"""

import io
import lzma
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from legato.data.fashion import MINI_PATH, PINS
from legato.data.idx import md5, read_idx, set_in
from legato.data.pool import fingerprint

SEED = 0
FILTER = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "pb": 2}


def chosen_rows(labels: NDArray[np.uint8], a_class: int) -> NDArray[np.int32]:
    random = np.random.default_rng(SEED)
    rows = [random.permutation(np.flatnonzero(labels == label))[:a_class] for label in range(10)]
    return np.sort(np.concatenate(rows)).astype(np.int32)


def main(folder: Path) -> None:
    files = set_in(folder)
    if files is None:
        sys.exit(f"{folder} does not hold the four IDX files of Fashion-MNIST")
    arrays = [read_idx(path) for path in files]
    if tuple(md5(array) for array in arrays) != PINS:
        sys.exit(f"{folder} holds other files than the official ones")
    train_images, train_labels, test_images, test_labels = arrays
    train, test = chosen_rows(train_labels, 500), chosen_rows(test_labels, 100)
    parts = [train_images[train], train_labels[train], train, test_images[test], test_labels[test], test]
    stream = io.BytesIO()
    for part in parts:
        np.save(stream, part, allow_pickle=False)
    MINI_PATH.write_bytes(lzma.compress(stream.getvalue(), filters=[FILTER]))
    print(f"{MINI_PATH.name}: {MINI_PATH.stat().st_size} bytes; sha256 of the arrays: {fingerprint(parts)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
