"""Pictures: a folder with one sub-folder a class, and pictures of another size."""

import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from legato import errors
from legato.data.arrays import pool_of
from legato.data.pool import Array, Labelled, Pool

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
"""Sub-folders that are splits and no classes, as torchvision's ImageFolder and `datasets` have them."""
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
"""Pillow's words for pictures without colour."""
THREADS = 4
"""Pillow decodes outside Python's lock."""

Size = tuple[int, int]
"""(height, width)."""


class _File(NamedTuple):
    """One picture of a class."""

    path: Path
    label: str
    name: str
    """For messages: the path from the folder on."""


@dataclass
class Listed:
    """What lies in the folder of one split."""

    files: list[_File] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Files that are no pictures of a class, by kind."""


class _Header(NamedTuple):
    """What a file says of its picture before it is decoded."""

    mode: str
    size: Size
    transparent: bool


def read_photos(folder: Path, image_size: Size | None, validation: Path | None, test: Path | None) -> Pool:
    """The pictures of a folder, with one sub-folder a class, or with train/, test/ and val/ that have one sub-folder a class each.

    Grey if all pictures are, else RGB. Pictures are turned upright as their EXIF says; what is transparent becomes white.

    Args:
        image_size: cut to this aspect around the centre and resized, antialiased; None takes pictures of one size as they are.
        validation, test: folders of the same form, instead of sub-folders.
    Raises: DataError for a folder without pictures, a picture that cannot be read, and sizes that differ.
    """
    folders = splits_of(folder)
    for word, other in (("validation", validation), ("test", test)):
        if other is not None and word in folders:
            raise errors.argument(word, expected=f"none, for {folder.name} has its own", got=other.name)
        if other is not None:
            folders[word] = other
    found = {part: files_in(root) for part, root in folders.items()}
    files = [file for listed in found.values() for file in listed.files]
    with ThreadPoolExecutor(THREADS) as threads:
        headers = list(threads.map(_header, files))
        mode = "L" if all(header.mode in GREY for header in headers) else "RGB"
        if image_size is None:
            _check_sizes(folder, files, [header.size for header in headers], turned=True)
        pixels = list(threads.map(partial(_pixels, mode=mode, size=image_size), files))
    _check_sizes(folder, files, [(array.shape[1], array.shape[2]) for array in pixels])
    ends = np.cumsum([0, *(len(listed.files) for listed in found.values())])
    parts = {
        part: (np.stack(pixels[a:b]), np.array([file.label for file in files[a:b]]))
        for part, (a, b) in zip(found, pairwise(ends), strict=True)
    }
    notes = [*_pictures_noted(headers, mode, image_size), *_skipped_noted(found.values())]
    return replace(pool_of(folder.name, parts, f"folder: {folder.name}"), notes=tuple(notes))


def resized(pool: Pool, size: Size) -> Pool:
    """The pool with pictures of another size: cut to the aspect around the centre, antialiased.

    Raises: LegatoValueError for vectors.
    """
    if pool.rows.inputs.ndim != 4:
        raise errors.argument(
            "image_size", expected=f"none, for the rows of {pool.name} are no pictures", got=shown(size), fix="leave it out"
        )  # fmt: skip
    before = (pool.rows.inputs.shape[2], pool.rows.inputs.shape[3])
    if before == size:
        return pool
    small = pool.each(lambda file: Labelled(_fit_all(file.inputs, size), file.targets))
    note = f"resized from {shown(before)} to {shown(size)}: centre crop to the aspect, antialiased"
    return replace(small, notes=(*pool.notes, note))


def shown(size: Size) -> str:
    """Height x width."""
    return f"{size[0]} x {size[1]}"


def splits_of(folder: Path) -> dict[str, Path]:
    """The folder of each split; a folder of classes is "train" alone."""
    below = {child.name: child for child in sorted(folder.iterdir()) if child.is_dir() and not _is_hidden(child.name)}
    words = [name for name in below if name.lower() in SPLITS]
    if "train" not in map(str.lower, words) or len(words) == 1 < len(below):
        return {"train": folder}
    splits = {SPLITS[name.lower()]: below[name] for name in words}
    if len(words) < len(below) or len(splits) < len(words):
        raise errors.DataError(
            errors.message(
                folder.name, expected="sub-folders that are classes, or train with test and val", got=", ".join(below),
                fix="move the others out of the folder",
            )
        )  # fmt: skip
    return splits


def files_in(root: Path) -> Listed:
    """The pictures below each class folder, however deep, in the order of their names."""
    listed = Listed()
    for child in sorted(root.iterdir()):
        if _is_hidden(child.name):
            listed.skipped["hidden"] += 1
        elif not child.is_dir():
            listed.skipped["outside the class folders"] += 1
        else:
            _list_class(child, f"{root.name}/{child.name}", listed)
    if not listed.files:
        raise errors.DataError(_no_pictures(root.name, "a sub-folder of pictures for each class"))
    return listed


def _list_class(root: Path, name: str, listed: Listed) -> None:
    before = len(listed.files)
    for folder, folders, files in os.walk(root, followlinks=True):
        listed.skipped["hidden"] += sum(map(_is_hidden, [*folders, *files]))
        folders[:] = sorted(word for word in folders if not _is_hidden(word))
        for path in (Path(folder, word) for word in sorted(files) if not _is_hidden(word)):
            if path.suffix.lower() in SUFFIXES:
                listed.files.append(_File(path, root.name, f"{name}/{path.relative_to(root)}"))
            else:
                listed.skipped[path.suffix.lower() or "without suffix"] += 1
    if len(listed.files) == before:
        raise errors.DataError(_no_pictures(name, "one or more pictures"))


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _no_pictures(name: str, expected: str) -> str:
    return errors.message(name, expected=f"{expected} ({', '.join(SUFFIXES)})", got="none")


@contextmanager
def _opened(file: _File) -> "Iterator[Image.Image]":
    from PIL import Image

    try:
        with Image.open(file.path, formats=FORMATS) as image:
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as problem:
        raise errors.DataError(
            f"{file.name}: not a readable picture: {problem}. Fix: replace it, or take it out of the folder."
        ) from problem


def _header(file: _File) -> _Header:
    with _opened(file) as image:
        return _Header(image.mode, (image.height, image.width), image.has_transparency_data)


def _pixels(file: _File, *, mode: str, size: Size | None) -> Array:
    """One picture as bytes [C, H, W]."""
    from PIL import Image, ImageOps

    with _opened(file) as opened:
        if size is not None:
            opened.draft(mode, (2 * max(size), 2 * max(size)))  # JPEG of many pixels is decoded to fewer
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits a value
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.asarray(_fit(image.convert(mode), size))
    return np.ascontiguousarray(pixels[None] if mode == "L" else pixels.transpose(2, 0, 1))


def _fit(image: "Image.Image", size: Size | None) -> "Image.Image":
    """The largest part of this aspect around the centre, resized; nothing outside that part has a say."""
    from PIL import Image

    if size is None:
        return image
    height, width = size
    scale = min(image.height / height, image.width / width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    left, top = (image.width - wide) // 2, (image.height - tall) // 2
    return image.crop((left, top, left + wide, top + tall)).resize((width, height), Image.Resampling.BILINEAR)


def _fit_all(inputs: Array, size: Size) -> Array:
    from PIL import Image

    planes = inputs.reshape(-1, *inputs.shape[2:])
    out = np.empty((len(planes), *size), np.uint8)
    for plane, target in zip(planes, out, strict=True):
        target[:] = np.asarray(_fit(Image.fromarray(plane), size))
    return out.reshape(*inputs.shape[:2], *size)


def _check_sizes(folder: Path, files: Sequence[_File], sizes: Sequence[Size], *, turned: bool = False) -> None:
    """Refuse sizes that differ; `turned` lets height and width be exchanged, as EXIF may still do."""
    key = sorted if turned else tuple[int, ...]
    other = next((i for i, size in enumerate(sizes) if key(size) != key(sizes[0])), None)
    if other is not None:
        side = min(224, *map(min, sizes))
        raise errors.DataError(
            errors.message(
                f"{folder.name}: pictures", expected="one size",
                got=f"{shown(sizes[0])} ({files[0].name}) and {shown(sizes[other])} ({files[other].name})",
                fix=f"image_size={side} makes them equal, --image-size {side} on the command line",
            )
        )  # fmt: skip


def _pictures_noted(headers: Sequence[_Header], mode: str, image_size: Size | None) -> Iterator[str]:
    grey = sum(header.mode in GREY for header in headers)
    yield f"{len(headers):,} pictures, " + (
        "all grey" if mode == "L" else "in RGB" + (f", {grey:,} of them were grey" if grey else "")
    )
    if image_size is not None:
        others = sum(header.size != image_size for header in headers)
        yield f"{others:,} were resized to {shown(image_size)}: centre crop to the aspect, antialiased"
    if transparent := sum(header.transparent for header in headers):
        yield f"{transparent:,} have an alpha channel: what is transparent became white"
    if deep := sum(header.mode.startswith("I") for header in headers):
        yield f"{deep:,} of 16 bits a value became 8"


def _skipped_noted(found: Iterable[Listed]) -> Iterator[str]:
    skipped = sum((listed.skipped for listed in found), Counter[str]())  # a sum of counters leaves zeros out
    if skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items()))
        yield f"{skipped.total():,} files were skipped: {kinds}"
