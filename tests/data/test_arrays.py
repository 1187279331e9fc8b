"""Arrays and data sets from Python, .npz files, and the one door `load`."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from legato import data
from legato.data import registry
from legato.errors import DataError, DataNotFoundError, LegatoValueError

X, Y = np.random.default_rng(0).random((30, 4)), np.arange(30) % 3


def test_arrays_that_cannot_be_used():
    broken = X.copy()
    broken[7, 1] = np.nan
    huge = X.copy()
    huge[9, 0] = 1e300
    for arguments, words in [
        ((broken, Y), "the first is row 7"),
        ((huge, Y), "the first is row 9"),
        ((X, Y[:20]), "30 rows"),
        ((X, np.eye(3)[Y]), "multi-label or one-hot"),
        ((X, Y + 0.5), "regression"),
        ((X, [None] * 30), "integers or strings"),
        ((X[:, 0], Y), "numbers"),
        ((X[:0], Y[:0]), "at least one row"),
        ((np.zeros((30, 8, 9, 3)), Y), r"channels first.*transpose\(0, 3, 1, 2\)"),
        ((np.full((30, 8, 9), 256), Y), r"0 .. 255 or 0 .. 1; got 256 .. 256"),
    ]:
        with pytest.raises(DataError, match=words):
            data.from_arrays(*arguments)


def test_parts_that_do_not_fit_together():
    for train, test, words in [
        (X, X[:, :3], r"arrays, test: inputs: expected float32 \[N, 4\]"),
        (np.zeros((30, 4, 4), np.uint8), np.zeros((30, 4, 4)), "expected uint8 .*; got float64"),
    ]:
        with pytest.raises(DataError, match=words):
            data.from_arrays(train, Y, test=(test, Y))


def test_white_is_decided_by_all_pictures_together():
    dark, light = np.full((30, 4, 4), 0.9), np.full((30, 4, 4), 200.0)
    splits = data.from_arrays(light, Y, test=(dark, Y))
    assert splits.test.inputs.max() == 1
    assert data.from_arrays(dark, Y).train.inputs.max() == 230


def test_labels_of_all_kinds():
    words = np.array(["c", "a", "b"])[Y]
    for labels in (words, list(words), words.astype(object), [str(w) for w in words]):
        assert data.from_arrays(X, labels).class_names == ("a", "b", "c")
    for labels in (Y, Y.astype(np.uint8), Y.astype(float), Y[:, None], Y.astype(object), torch.from_numpy(Y)):
        assert data.from_arrays(X, labels).class_names == ("0", "1", "2")
    assert data.from_arrays(X, Y > 0).class_names == ("False", "True")


def test_npz_and_torch_data_sets_are_the_same_rows(tmp_path):
    x, y = torch.rand(30, 4), torch.arange(30) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y)
    a, b = data.load(str(tmp_path / "a.npz")), data.from_dataset(TensorDataset(x, y))
    assert torch.equal(a.train.inputs, b.train.inputs)
    assert a.provenance.sha256 == b.provenance.sha256


def test_npz_with_parts_and_groups(tmp_path):
    np.savez(tmp_path / "keras.npz", x_train=X, y_train=Y, x_test=X[:9], y_test=Y[:9])
    np.savez(tmp_path / "own.npz", x=X, y=Y, site=Y, group=np.arange(30) // 3)
    assert len(data.load(tmp_path / "keras.npz").test) == 9
    held = data.load(tmp_path / "own.npz", test=tmp_path / "keras.npz")
    assert torch.equal(held.test.inputs, torch.from_numpy(X).float())
    for part in (held.train, held.validation):
        assert (torch.bincount(part.index // 3) % 3 == 0).all()
    with pytest.raises(LegatoValueError, match=r"group: expected one of .*; got 'sites'. Did you mean 'site'"):
        data.load(tmp_path / "own.npz", group="sites")
    with pytest.raises(LegatoValueError, match=r"test: expected none, for keras.npz has x_test"):
        data.load(tmp_path / "keras.npz", test=tmp_path / "own.npz")
    np.savez(tmp_path / "a.npz", z=np.zeros(3))
    with pytest.raises(DataError, match="x and y"):
        data.load(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match=r"expected an .npz file"):
        data.load(tmp_path / "a.npz")


def test_data_sets_of_pillow_pictures_and_words():
    pixels = np.random.default_rng(1).integers(0, 256, (12, 5, 4, 3)).astype(np.uint8)
    x, y = data.arrays_of([(Image.fromarray(p), "ab"[i % 2]) for i, p in enumerate(pixels)])
    assert np.array_equal(x, pixels.transpose(0, 3, 1, 2))
    assert y.tolist() == ["a", "b"] * 6
    grey, _ = data.arrays_of([(Image.fromarray(p[..., 0]), 0) for p in pixels])
    assert grey.shape == (12, 5, 4)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "at least one row"),
        ([{"image": 0, "label": 1}], "pairs .input, class.; got a dict"),
        ([(np.zeros(3), 0), (np.zeros(4), 1)], r"inputs: expected one shape; got \[3\] in row 0 and \[4\] in row 1"),
        ([(np.zeros(3), 0), (np.zeros(3), [1, 2])], "classes: expected one shape"),
        ([(np.zeros(3), 0.5)] * 9, "regression"),
    ],
)
def test_data_sets_that_cannot_be_used(rows, words):
    with pytest.raises(DataError, match=words):
        data.from_dataset(rows)


def test_names_and_files_that_are_not_there(tmp_path):
    with pytest.raises(LegatoValueError, match="Did you mean 'fashion-mini'"):
        data.load("fashion-mni")
    for missing in ("nowhere/table.csv", "table.csv", tmp_path / "nothing"):
        with pytest.raises(DataNotFoundError, match="no such file"):
            data.load(missing)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"a .csv, .parquet or .npz file, a folder, or a name; got .txt"):
        data.load(tmp_path / "notes.txt")
    with pytest.raises(DataNotFoundError, match="data_dir: expected an existing folder"):
        data.load("fashion-mnist", data_dir="/nowhere")


@pytest.mark.parametrize("word", ["target", "group", "validation", "test"])
def test_what_means_nothing_for_a_named_set_is_refused(word, tmp_path):
    with pytest.raises(LegatoValueError, match=f"{word}: expected nothing, for digits has no use for it"):
        data.load("digits", **{word: str(tmp_path)})


def test_a_pool_is_read_once_and_handed_out_as_copies(monkeypatch, tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    read = []
    monkeypatch.setattr(registry, "read_npz", lambda path, *rest: read.append(path) or original(path, *rest))
    first = data.load(tmp_path / "a.npz", seed=0)
    kept = [split.inputs.clone() for split in (first.train, first.validation, first.test)]
    for split in (first.train, first.validation, first.test):
        split.inputs.fill_(-1)
        split.targets.fill_(-1)
    again = data.load(tmp_path / "a.npz", seed=0)
    assert all(torch.equal(a, b.inputs) for a, b in zip(kept, (again.train, again.validation, again.test), strict=True))
    data.load(tmp_path / "a.npz", seed=1, classes=("0", "1"))
    assert len(read) == 1
    monkeypatch.chdir(tmp_path)
    assert data.load("a.npz").provenance == first.provenance
    assert len(read) == 1


original = registry.read_npz
