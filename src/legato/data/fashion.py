"""Fashion-MNIST: the whole set from IDX files, and the embedded `fashion-mini`."""

import io
import lzma
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.data import idx, places
from legato.data.pool import Array, Labelled, Origin, Pool, fingerprint

LICENCE = "MIT, (c) 2017 Zalando SE"
CITATION = "Xiao, Rasul, Vollgraf 2017, Fashion-MNIST, arXiv 1708.07747"
CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
PINS = (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)
"""MD5 of the four uncompressed IDX files, in the order of idx.FILES."""
SYSTEM = Path("/usr/share/datasets/fashion-mnist")
LAYOUTS = (".", "FashionMNIST/raw", "fashion-mnist", "datasets/fashion-mnist", "usr/share/datasets/fashion-mnist")
"""Plain, torchvision's, Keras's, Keras's below its home folder, and Debian's package unpacked."""
COMMAND = "apt-get install dataset-fashion-mnist"
FIX = f"{COMMAND}, or name the folder of the IDX files with data_dir, or use the embedded fashion-mini"

MINI_PATH = Path(__file__).parent / "embedded" / "fashion-mini.xz"
MINI_SHA256 = "f5f6fcc6eec9405b6f83570992cd8d2fca432edd8f3576836f80aa09186188d6"


def read_full(data_dir: Path | None, download: bool) -> Pool:
    """All 60,000 + 10,000 images, from the first place that has them, checked against the official files.

    Raises: DataNotFoundError with every place tried; DataError for files that are not the official ones.
    """
    (train_images, train_labels, test_images, test_labels), origin = on_disk().read(data_dir, download)
    return Pool(
        name="fashion-mnist",
        rows=_labelled(train_images, train_labels),
        test=_labelled(test_images, test_labels),
        class_names=CLASSES,
        origin=origin,
        licence=LICENCE,
        citation=CITATION,
    )


def read_mini(data_dir: Path | None, download: bool) -> Pool:
    """The embedded 5,000 + 1,000 images."""
    train_images, train_labels, _, test_images, test_labels, _ = _mini_arrays()
    return Pool(
        name="fashion-mini",
        rows=_labelled(train_images, train_labels),
        test=_labelled(test_images, test_labels),
        class_names=CLASSES,
        origin=Origin("embedded", ("embedded",)),
        licence=LICENCE,
        citation=CITATION,
        notes=("500 images a class of Fashion-MNIST's training file and 100 a class of its test file",),
    )


def fashion_mini_rows() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The row numbers in the official training and test files of fashion-mini's pool [5000] and test [1000].

    `rows[splits.train.index]` are the official rows of the training split.
    """
    arrays = _mini_arrays()
    return arrays[2].copy(), arrays[5].copy()


@cache
def _mini_arrays() -> tuple[Array, ...]:
    stream = io.BytesIO(lzma.decompress(MINI_PATH.read_bytes()))
    arrays = tuple(np.load(stream, allow_pickle=False) for _ in range(6))
    if fingerprint(arrays) != MINI_SHA256:
        raise errors.DataError(f"{MINI_PATH.name}: its content has changed. Fix: install legato again.")
    return arrays


def _labelled(images: Array, labels: Array) -> Labelled:
    return Labelled(images[:, None], labels.astype(np.int64))


def on_disk() -> places.OnDisk:
    """Where the whole set is looked for, and how it is read."""
    return places.OnDisk(
        name="fashion-mnist",
        parts=idx.FILES,
        layouts=LAYOUTS,
        system=(places.Place("system: dataset-fashion-mnist", SYSTEM),),
        find=idx.set_in,
        decode=_decode,
        is_known=_is_official,
        fix=FIX,
        downloader="torchvision",
        download=_download,
    )


def _decode(files: tuple[Path, ...]) -> list[Array]:
    arrays: list[Array] = [idx.read_idx(path) for path in files]
    for path, array, pin in zip(files, arrays, PINS, strict=True):
        if (got := idx.md5(array)) != pin:
            raise errors.DataError(
                errors.message(
                    str(path),
                    expected=f"the official Fashion-MNIST file (MD5 {pin} when unpacked)",
                    got=f"MD5 {got}",
                    fix="fetch the file again; to load other IDX files, pass their folder as the data set",
                )
            )
    return arrays


def _is_official(arrays: list[Array]) -> bool:
    return tuple(idx.md5(array) for array in arrays) == PINS


def _download() -> tuple[Path, ...] | str:
    """Let torchvision fetch the files, if it is installed."""
    folder = places.cache_folder()
    try:
        datasets: Any = import_module("torchvision.datasets")
        datasets.FashionMNIST(str(folder), download=True)
    except ImportError:
        return "not installed"
    except (OSError, RuntimeError) as problem:
        return f"the download failed: {problem}"
    return idx.set_in(folder / "FashionMNIST/raw") or "the download left no files"
