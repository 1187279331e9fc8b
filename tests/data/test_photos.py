"""Folders of pictures: what comes in is what the files hold, and what cannot be used is named."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from legato import data
from legato.data import photos
from legato.data.arrays import pool_of
from legato.errors import DataError, DataNotFoundError, LegatoValueError

RANDOM = np.random.default_rng(0)


def noise(*shape):
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def folder_of(root, shape=(6, 5), rows=5, classes=("cat", "dog"), suffix="png"):
    """[classes * rows, C, H, W] in the order of classes and names."""
    saved = [save(root / name / f"{i}.{suffix}", noise(*shape)) for name in classes for i in range(rows)]
    return np.stack([x[None] if x.ndim == 2 else x.transpose(2, 0, 1) for x in saved])


def all_rows(splits):
    """Inputs and targets in the order of the files."""
    parts = (splits.train, splits.validation, splits.test)
    order = torch.cat([part.index for part in parts]).argsort()
    return tuple(torch.cat([getattr(p, word) for p in parts])[order].numpy() for word in ("inputs", "targets"))


def one(tmp_path, image, name="1.png", **options):
    """The pixels [C, H, W] that one picture becomes, beside another one of black."""
    path = tmp_path / "a" / name
    path.parent.mkdir(parents=True)
    image.save(path, **options)
    grey = image.mode in photos.GREY
    for label in ("a", "b"):
        for i in range(2, 5):
            save(tmp_path / label / f"{i}.png", np.zeros((4, 6) if grey else (4, 6, 3), np.uint8))
    return all_rows(data.load(tmp_path))[0][0]


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_pixels_come_in_as_they_are(tmp_path, shape, suffix):
    saved = folder_of(tmp_path / "pets", shape, suffix=suffix)
    splits = data.load(tmp_path / "pets", seed=2)
    inputs, targets = all_rows(splits)
    assert np.array_equal(inputs, saved)
    assert targets.tolist() == [0] * 5 + [1] * 5
    assert splits.class_names == ("cat", "dog")
    assert (splits.provenance.name, splits.provenance.source) == ("pets", "folder: pets")
    same = data.from_arrays(saved, np.repeat([0, 1], 5))
    assert same.provenance.sha256 == splits.provenance.sha256


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {"quality": 95}), ("webp", {"lossless": True}), ("JPEG", {})])
def test_lossy_forms_come_near(tmp_path, suffix, options):
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    colours = np.stack([smooth, smooth[::-1], smooth.T], 2)
    for label in "ab":
        for i in range(3):
            save(tmp_path / label / f"{i}.{suffix}", colours, **options)
    inputs, _ = all_rows(data.load(tmp_path))
    assert np.abs(inputs[0].astype(int) - colours.transpose(2, 0, 1)).mean() < (1 if suffix == "webp" else 16)


def test_one_colour_picture_makes_all_of_them_rgb(tmp_path):
    saved = folder_of(tmp_path)
    colour = save(tmp_path / "cat" / "0.png", noise(6, 5, 3))
    splits = data.load(tmp_path)
    inputs, _ = all_rows(splits)
    assert np.array_equal(inputs[0], colour.transpose(2, 0, 1))
    assert np.array_equal(inputs[1:], np.repeat(saved[1:], 3, axis=1))
    assert "10 pictures, in RGB, 9 of them were grey" in splits.provenance.notes


def test_transparent_parts_become_white(tmp_path):
    pixels = noise(4, 6, 4)
    pixels[..., 3] = np.where(np.arange(6) < 3, 0, 255)
    got = one(tmp_path, Image.fromarray(pixels))
    want = pixels[..., :3].transpose(2, 0, 1).copy()
    want[:, :, :3] = 255
    assert np.array_equal(got, want)


def test_palettes_bits_and_sixteen_bits(tmp_path):
    wide = (np.arange(24, dtype=np.uint16) * 2800).reshape(4, 6)
    assert np.array_equal(one(tmp_path / "wide", Image.fromarray(wide))[0], wide >> 8)
    bits = np.arange(24).reshape(4, 6) % 2 == 0
    assert np.array_equal(one(tmp_path / "bits", Image.fromarray(bits))[0], bits * 255)
    colours = (noise(4, 6, 3) // 128) * 255
    palette = Image.fromarray(colours).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    assert np.array_equal(one(tmp_path / "palette", palette), colours.transpose(2, 0, 1))


def test_pictures_are_turned_upright(tmp_path):
    pixels = noise(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    got = one(tmp_path, Image.fromarray(pixels), exif=exif)
    assert np.array_equal(got[0], np.rot90(pixels, -1))


def test_resizing_cuts_around_the_centre_and_averages(tmp_path):
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = 100 + 100 * (np.indices((8, 8)).sum(0) % 2)  # a fine chequerboard in the middle square
    for label in "ab":
        for i in range(3):
            save(tmp_path / label / f"{i}.png", wide)
    inputs, _ = all_rows(data.load(tmp_path, image_size=2))
    assert inputs.shape[1:] == (1, 2, 2)
    assert np.abs(inputs.astype(int) - 150).max() <= 1  # neither black from the sides nor a single square
    assert data.load(tmp_path, image_size=(4, 8)).input_shape == (1, 4, 8)


def test_resizing_a_named_set_is_the_same_as_resizing_its_files(tmp_path):
    mini = data.load("fashion-mini", classes=("bag", "coat"))
    for split in ("train", "validation", "test"):
        rows = getattr(mini, split)
        for i in range(0, len(rows), 40):
            save(tmp_path / split / mini.class_names[rows.targets[i]] / f"{i:04}.png", rows.inputs[i, 0].numpy())
    loaded = data.load(tmp_path, image_size=14)
    small = data.load("fashion-mini", classes=("bag", "coat"), image_size=14)
    for split in ("train", "validation", "test"):
        want = getattr(small, split).inputs[::40]
        order = getattr(small, split).targets[::40].argsort(stable=True)
        assert torch.equal(getattr(loaded, split).inputs, want[order])
    assert "resized from 28 x 28 to 14 x 14" in " ".join(small.provenance.notes)
    assert small.provenance.sha256 != mini.provenance.sha256
    assert data.load("digits", image_size=8).provenance == data.load("digits").provenance


@pytest.mark.parametrize("words", [("train", "test"), ("train", "val"), ("train", "validation", "test"), ("train",)])
def test_sub_folders_that_are_splits(tmp_path, words):
    saved = {photos.SPLITS[word]: folder_of(tmp_path / word, rows=3 + i) for i, word in enumerate(words)}
    splits = data.load(tmp_path)
    pooled = 0
    for part in ("train", "validation", "test"):
        split = getattr(splits, part)
        if part in saved and part != "train":
            assert np.array_equal(split.inputs.numpy(), saved[part])
        else:
            pooled += len(split)
    assert pooled == len(saved["train"])


def test_other_folders_can_be_the_test(tmp_path):
    folder_of(tmp_path / "mine")
    held = folder_of(tmp_path / "other")
    splits = data.load(tmp_path / "mine", test=tmp_path / "other")
    assert np.array_equal(splits.test.inputs.numpy(), held)
    with pytest.raises(DataNotFoundError, match=r"test: .*nowhere"):
        data.load(tmp_path / "mine", test=tmp_path / "nowhere")
    folder_of(tmp_path / "both" / "train")
    folder_of(tmp_path / "both" / "test")
    with pytest.raises(LegatoValueError, match="test: expected none"):
        data.load(tmp_path / "both", test=tmp_path / "other")


def test_what_is_no_picture_is_skipped_and_counted(tmp_path):
    saved = folder_of(tmp_path)
    (tmp_path / "cat" / ".hidden").mkdir()
    for name in (".DS_Store", "cat/Thumbs.db", "cat/README", "notes.txt", "cat/.hidden/9.png"):
        (tmp_path / name).touch()
    deep = save(tmp_path / "dog" / "deep" / "9.png", noise(6, 5))
    splits = data.load(tmp_path)
    assert (
        "5 files were skipped: 1 .db, 2 hidden, 1 outside the class folders, 1 without suffix"
        in splits.provenance.notes
    )
    inputs, _ = all_rows(splits)
    assert np.array_equal(inputs, np.concatenate([saved, deep[None, None]]))


def damaged(folder):
    (folder / "dog" / "3.png").write_bytes((folder / "dog" / "3.png").read_bytes()[:60])


def larger(folder):
    save(folder / "dog" / "3.png", noise(20, 30))


def turned(folder):
    save(folder / "dog" / "3.png", noise(5, 6))


def another_class(folder):
    save(folder / "fox" / "1.png", noise(6, 5))


def an_empty_class(folder):
    (folder / "fox").mkdir()


def splits_and_classes(folder):
    (folder / "train").mkdir()
    (folder / "test").mkdir()


def only_a_file(folder):
    for name in ("cat", "dog"):
        (folder / name).rename(folder.parent / name)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damaged, r"pets/dog/3.png: not a readable picture"),
        (larger, r"6 x 5 \(pets/cat/0.png\) and 20 x 30 \(pets/dog/3.png\). Fix: image_size=5 .*--image-size 5 "),
        (turned, r"6 x 5 \(pets/cat/0.png\) and 5 x 6 \(pets/dog/3.png\)"),
        (another_class, "class 'fox': expected at least 3 rows"),
        (an_empty_class, r"pets/fox: expected one or more pictures \(.png"),
        (splits_and_classes, "train with test"),
        (only_a_file, "a sub-folder of pictures for each class"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, spoil, words):
    folder_of(tmp_path / "pets")
    spoil(tmp_path / "pets")
    with pytest.raises(DataError, match=words):
        data.load(tmp_path / "pets")


def test_sizes_that_cannot_be_used(tmp_path):
    for size in (0, -3, (4,), (4, 5, 6), 2.5, True, "4"):
        with pytest.raises(LegatoValueError, match="image_size: expected a whole number"):
            data.load("digits", image_size=size)
    with pytest.raises(LegatoValueError, match="no pictures"):
        data.load("breast_cancer", image_size=8)


def test_a_picture_that_changes_is_read_again(tmp_path):
    folder_of(tmp_path)
    before = data.load(tmp_path)
    changed = save(tmp_path / "cat" / "0.png", noise(6, 5))
    after = data.load(tmp_path)
    assert before.provenance.sha256 != after.provenance.sha256
    assert np.array_equal(all_rows(after)[0][0, 0], changed)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 255))
def test_resizing_keeps_shape_type_and_a_flat_picture(height, width, channels, value):
    pool = pool_of("flat", {"train": (np.full((4, channels, 6, 7), value, np.uint8), [0, 1, 0, 1])}, "arrays")
    out = photos.resized(pool, (height, width)).rows.inputs
    assert out.dtype == np.uint8
    assert out.shape == (4, channels, height, width)
    assert (out == value).all()
