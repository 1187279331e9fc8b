"""Folders of IDX files, in the layouts that other libraries leave on the disk."""

import gzip
import struct

import numpy as np
import pytest
import torch

from legato import data
from legato.data import fashion, idx, places
from legato.errors import DataError, DataNotFoundError, LegatoValueError

RANDOM = np.random.default_rng(0)
TEN = RANDOM.integers(0, 256, (40, 4, 3)).astype(np.uint8), np.arange(40, dtype=np.uint8) % 4


def write_idx(path, array, kind=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw, 1) if path.suffix == ".gz" else raw)


def write_set(folder, train=TEN, test=TEN, names=idx.FILES):
    for name, array in zip(names, (*train, *test), strict=True):
        write_idx(folder / name, array)
    return folder


def emnist(kind):
    return [f"emnist-{kind}-{part}-{of}-ubyte" for part in ("train", "test") for of in ("images-idx3", "labels-idx1")]


def official_mini():
    """Images and labels of fashion-mini's two files."""
    train_images, train_labels, _, test_images, test_labels, _ = fashion._mini_arrays()
    return (train_images, train_labels), (test_images, test_labels)


def test_torchvisions_folder_of_the_same_images_is_the_same_data(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "FashionMNIST" / "raw", *official_mini())
    mini = data.load("fashion-mini", seed=4)
    for path in (tmp_path, tmp_path / "FashionMNIST", folder):
        loaded = data.load(path, seed=4)
        assert loaded.provenance.sha256 == mini.provenance.sha256
        assert loaded.provenance.name == "FashionMNIST"
        assert torch.equal(loaded.validation.index, mini.validation.index)
    assert loaded.class_names == tuple("0123456789")
    with pytest.raises(DataError, match="official Fashion-MNIST file"):
        data.load("fashion-mnist", data_dir=tmp_path)
    monkeypatch.setattr(fashion, "PINS", tuple(idx.md5(idx.read_idx(folder / name)) for name in idx.FILES))
    full = data.load("fashion-mnist", data_dir=tmp_path, seed=4)
    assert torch.equal(full.train.inputs, mini.train.inputs)
    assert full.provenance.source == "data_dir: FashionMNIST/raw"
    assert fashion.on_disk().where(None) == places.CACHE


def test_one_set_of_several_is_named_by_its_prefix(tmp_path):
    raw = tmp_path / "EMNIST" / "raw"
    letters = TEN[0], TEN[1] + 1
    write_set(raw, letters, letters, emnist("letters"))
    write_set(raw, names=[f"{name}.gz" for name in emnist("digits")])
    splits = data.load(raw / "emnist-letters")
    assert splits.class_names == ("1", "2", "3", "4")
    assert splits.provenance.name == "emnist-letters"
    assert torch.equal(splits.test.inputs[:, 0], torch.from_numpy(TEN[0]))
    assert data.load(raw / "emnist-digits").class_names == ("0", "1", "2", "3")
    with pytest.raises(DataError, match="2: EMNIST/raw/emnist-digits, EMNIST/raw/emnist-letters"):
        data.load(tmp_path)
    with pytest.raises(DataNotFoundError):
        data.load(raw / "emnist-balanced")


def test_names_with_dots_and_packed_files(tmp_path):
    names = [name.replace("-idx", ".idx") + ".gz" for name in idx.FILES]
    splits = data.load(write_set(tmp_path / "mnist", names=names))
    assert (splits.provenance.name, splits.provenance.source) == ("mnist", "IDX files: mnist")
    assert splits.input_shape == (1, 4, 3)


def test_sets_that_cannot_be_used(tmp_path):
    folder = write_set(tmp_path / "a")
    with pytest.raises(LegatoValueError, match="target: expected nothing"):
        data.load(folder, target="label")
    (folder / idx.FILES[3]).unlink()
    with pytest.raises(DataError, match="none for the test labels"):
        data.load(folder)
    write_idx(folder / idx.FILES[3], TEN[1], kind=12)
    with pytest.raises(DataError, match="unsigned bytes"):
        data.load(folder)
    (folder / idx.FILES[3]).write_bytes((folder / idx.FILES[1]).read_bytes()[:-1])
    with pytest.raises(DataError, match="not a readable IDX file"):
        data.load(folder)
    write_idx(folder / idx.FILES[3], TEN[1][:-1])
    with pytest.raises(DataError, match="40 rows"):
        data.load(folder)
