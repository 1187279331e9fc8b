"""Arrays of the user, from Python or from an .npz file, checked and brought into the one form."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.data.pool import Array, Labelled, Origin, Pool

Part = tuple[Any, Any]
"""Inputs and classes of one file."""


def pool_of(name: str, parts: Mapping[str, Part], source: str, group: Any = None) -> Pool:
    """A pool from arrays: inputs [N, D], [N, H, W] or [N, C, H, W]; classes [N] as integers or strings.

    Args:
        parts: "train" and, where they are held out, "validation" and "test".
        group: [N] of "train"; rows with equal values stay together in every cut.
    Raises: DataError for NaN or infinite inputs, unequal lengths, regression or multi-label targets.
    """
    said = {part: name if part == "train" else f"{name}, {part}" for part in parts}
    inputs = {part: _checked(said[part], np.asarray(x)) for part, (x, _) in parts.items()}
    labels = {part: _labels(said[part], np.asarray(y), len(inputs[part])) for part, (_, y) in parts.items()}
    _check_alike(said, inputs)
    notes: tuple[str, ...] = ()
    if inputs["train"].ndim == 4:
        inputs, notes = _bytes(name, inputs)
    classes, codes = np.unique(np.concatenate(list(labels.values())), return_inverse=True)
    ends = np.cumsum([len(y) for y in labels.values()])[:-1]
    targets = dict(zip(parts, np.split(codes.astype(np.int64), ends), strict=True))
    files = {part: Labelled(inputs[part], targets[part]) for part in parts}
    return Pool(
        name=name,
        rows=files["train"],
        validation=files.get("validation"),
        test=files.get("test"),
        class_names=tuple(str(label) for label in classes),
        feature_names=tuple(f"column {i}" for i in range(inputs["train"].shape[1]))
        if inputs["train"].ndim == 2
        else (),
        group=None if group is None else _groups(name, np.asarray(group), len(files["train"].targets)),
        origin=Origin(source, (source,)),
        notes=notes,
    )


def read_npz(path: Path, group: str | None, validation: Path | None, test: Path | None) -> Pool:
    """An .npz file with x and y, or x_train, y_train, x_test, y_test as Keras writes them.

    `group` names an array of the file, an array of the name "group" is taken without being named; files for validation and test have
    x and y as well.
    """
    arrays = _load(path)
    parts = {"train": _part(path, arrays)}
    if {"x_test", "y_test"} <= arrays.keys():
        if test is not None:
            raise errors.argument(
                "test", expected=f"none, for {path.name} has x_test and y_test", got=test.name, fix="leave it out"
            )
        parts["test"] = arrays["x_test"], arrays["y_test"]
    for word, file in (("validation", validation), ("test", test)):
        if file is not None:
            parts[word] = _part(file, _load(file))
    if group is not None and group not in arrays:
        raise errors.choice(f"{path.name}: group", group, arrays)
    return pool_of(path.name, parts, f"file: {path.name}", arrays.get(group or "group"))


def arrays_of(dataset: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """The inputs [N, ...] and classes [N] of a map-style Dataset of (input, class), read into memory once.

    Inputs are tensors, arrays, or pictures of Pillow, whose channels come to the front: [H, W] or [C, H, W].
    Raises: DataError for a data set without rows, and for inputs of unequal shapes.
    """
    rows = [dataset[i] for i in range(len(dataset))]
    if not rows:
        raise errors.DataError(errors.message("data set", expected="at least one row", got="none"))
    if not isinstance(rows[0], tuple | list) or len(rows[0]) < 2:
        raise errors.DataError(
            errors.message("data set: rows", expected="pairs (input, class)", got=f"a {type(rows[0]).__name__}")
        )
    inputs = _stacked("inputs", [_input(row[0]) for row in rows])
    return inputs, _stacked("classes", [np.asarray(row[1]) for row in rows])


def _input(x: Any) -> NDArray[Any]:
    array = np.asarray(x)
    is_pillow = hasattr(x, "getbands")
    return array.transpose(2, 0, 1) if is_pillow and array.ndim == 3 else array


def _stacked(word: str, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    for i, row in enumerate(rows):
        if row.shape != rows[0].shape:
            shapes = f"{list(rows[0].shape)} in row 0 and {list(row.shape)} in row {i}"
            raise errors.DataError(errors.message(f"data set: {word}", expected="one shape", got=shapes))
    return np.stack(rows)


def _load(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, BadZipFile, TypeError) as problem:
        raise errors.DataError(f"{path.name}: expected an .npz file of plain arrays; {problem}.") from problem


def _part(path: Path, arrays: Mapping[str, Array]) -> Part:
    for x, y in (("x", "y"), ("x_train", "y_train")):
        if {x, y} <= arrays.keys():
            return arrays[x], arrays[y]
    raise errors.DataError(
        errors.message(path.name, expected="arrays x and y, or x_train and y_train", got=sorted(arrays))
    )


def _checked(name: str, x: Array) -> Array:
    """Inputs [N, D] in float32, or pictures [N, C, H, W] in their own type."""
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "biuf":
        raise errors.DataError(
            errors.message(
                f"{name}: inputs",
                expected="numbers [N, D], [N, H, W] or [N, C, H, W]",
                got=f"{x.dtype} {list(x.shape)}",
            )
        )
    if x.size == 0:
        raise errors.DataError(
            errors.message(f"{name}: inputs", expected="at least one row and column", got=f"{list(x.shape)}")
        )
    with np.errstate(over="ignore"):
        x = x.astype(np.float32) if x.ndim == 2 else x
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
        raise errors.DataError(
            errors.message(
                f"{name}: inputs", expected="finite numbers of float32",
                got=f"NaN or infinity in {bad.sum()} rows, the first is row {bad.argmax()}",
                fix="leave these rows out, or impute them; a CSV file is imputed for you",
            )
        )  # fmt: skip
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) > 4:
        raise errors.DataError(
            errors.message(f"{name}: pictures", expected="channels first, [N, C, H, W]", got=f"{list(x.shape)}",
                           fix="pass x.transpose(0, 3, 1, 2)")
        )  # fmt: skip
    return x[:, None] if x.ndim == 3 else x


def _check_alike(said: Mapping[str, str], inputs: Mapping[str, Array]) -> None:
    own = inputs["train"]
    for part, x in inputs.items():
        if x.shape[1:] != own.shape[1:] or (x.dtype == np.uint8) != (own.dtype == np.uint8):
            raise errors.DataError(
                errors.message(
                    f"{said[part]}: inputs",
                    expected=f"{own.dtype} [N, {', '.join(map(str, own.shape[1:]))}], as the training inputs",
                    got=f"{x.dtype} {list(x.shape)}",
                )
            )


def _bytes(name: str, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Pictures as bytes. Whether 1 or 255 is white is told by all the pictures of the source, not by each part for itself."""
    if all(x.dtype == np.uint8 for x in inputs.values()):
        return dict(inputs), ()
    low = min(float(x.min()) for x in inputs.values())
    high = max(float(x.max()) for x in inputs.values())
    if low < 0 or high > 255:
        raise errors.DataError(
            errors.message(f"{name}: pictures", expected="values in 0 .. 255 or 0 .. 1", got=f"{low:g} .. {high:g}")
        )
    scale = 255.0 if high <= 1 else 1.0
    note = f"pictures of {inputs['train'].dtype} were rounded to bytes, times {scale:g}"
    return {part: np.round(x * scale).astype(np.uint8) for part, x in inputs.items()}, (note,)


def _labels(name: str, y: Array, rows: int) -> NDArray[Any]:
    if y.ndim == 2 and y.shape[1] > 1:
        raise errors.DataError(
            errors.message(f"{name}: targets", expected="one class a row", got=f"{y.shape[1]} columns: multi-label or one-hot targets",
                           fix="for one-hot rows pass y.argmax(1); multi-label targets are not supported")
        )  # fmt: skip
    y = y.reshape(-1)
    if len(y) != rows:
        raise errors.DataError(errors.message(f"{name}: targets", expected=f"{rows} rows, as the inputs", got=len(y)))
    for kind in (str, int):  # a column of pandas has objects
        if y.dtype.kind == "O" and all(isinstance(label, kind) for label in y):
            y = y.astype(kind)
    if y.dtype.kind not in "biufU":
        raise errors.DataError(
            errors.message(f"{name}: targets", expected="classes as integers or strings", got=f"{y.dtype}")
        )
    if y.dtype.kind == "f":
        if not np.isfinite(y).all() or (y != np.round(y)).any():
            raise errors.DataError(
                errors.message(f"{name}: targets", expected="classes", got="numbers with fractions or NaN: a regression target",
                               fix="regression is not supported; bin the target into classes")
            )  # fmt: skip
        y = y.astype(np.int64)
    return y


def _groups(name: str, group: Array, rows: int) -> NDArray[np.int64]:
    if group.shape != (rows,):
        raise errors.DataError(
            errors.message(f"{name}: group", expected=f"one value for each of the {rows} rows", got=f"{list(group.shape)}")
        )  # fmt: skip
    return np.unique(group, return_inverse=True)[1].astype(np.int64)
