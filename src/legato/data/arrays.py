"""Arrays of the user, from Python or from an .npz file, checked and brought into the one form."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.data.pool import Array, Labelled, Origin, Pool


def pool_of(name: str, x: Any, y: Any, test: tuple[Any, Any] | None, source: str, group: Any = None) -> Pool:
    """A pool from arrays: inputs [N, D], [N, H, W] or [N, C, H, W]; classes [N] as integers or strings.

    Raises: DataError for NaN or infinite inputs, unequal lengths, regression or multi-label targets.
    """
    inputs, notes = _inputs(name, np.asarray(x))
    labels = [_labels(name, np.asarray(y), len(inputs))]
    held = None
    if test is not None:
        test_inputs, _ = _inputs(f"{name}, test", np.asarray(test[0]))
        labels.append(_labels(f"{name}, test", np.asarray(test[1]), len(test_inputs)))
    classes, codes = np.unique(np.concatenate(labels), return_inverse=True)
    codes = codes.astype(np.int64)
    if test is not None:
        held = Labelled(test_inputs, codes[len(inputs) :])
    return Pool(
        name=name,
        rows=Labelled(inputs, codes[: len(inputs)]),
        test=held,
        class_names=tuple(str(label) for label in classes),
        feature_names=tuple(f"column {i}" for i in range(inputs.shape[1])) if inputs.ndim == 2 else (),
        group=None if group is None else np.unique(np.asarray(group), return_inverse=True)[1].astype(np.int64),
        origin=Origin(source, (source,)),
        notes=notes,
    )


def read_npz(path: Path) -> Pool:
    """An .npz file with x and y, or x_train, y_train, x_test, y_test as Keras writes them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as problem:
        raise errors.DataError(f"{path.name}: expected an .npz file of plain arrays; {problem}.") from problem
    test = (arrays["x_test"], arrays["y_test"]) if {"x_test", "y_test"} <= arrays.keys() else None
    for x, y in (("x", "y"), ("x_train", "y_train")):
        if {x, y} <= arrays.keys():
            return pool_of(path.name, arrays[x], arrays[y], test, f"file: {path.name}", arrays.get("group"))
    raise errors.DataError(
        errors.message(path.name, expected="arrays x and y, or x_train and y_train", got=sorted(arrays))
    )


def _inputs(name: str, x: Array) -> tuple[Array, tuple[str, ...]]:
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "biuf":
        raise errors.DataError(
            errors.message(
                f"{name}: inputs",
                expected="numbers [N, D], [N, H, W] or [N, C, H, W]",
                got=f"{x.dtype} {list(x.shape)}",
            )
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
        raise errors.DataError(
            errors.message(
                f"{name}: inputs", expected="finite numbers", got=f"NaN or infinity in {bad.sum()} rows, the first is row {bad.argmax()}",
                fix="leave these rows out, or impute them; a CSV file is imputed for you",
            )
        )  # fmt: skip
    if x.ndim == 2:
        return x.astype(np.float32), ()
    images = x[:, None] if x.ndim == 3 else x
    if images.dtype == np.uint8:
        return images, ()
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 255:
        raise errors.DataError(
            errors.message(f"{name}: pictures", expected="values in 0 .. 255 or 0 .. 1", got=f"{low:g} .. {high:g}")
        )
    scale = 255.0 if high <= 1 else 1.0
    return np.round(images * scale).astype(np.uint8), (f"pictures of {x.dtype} were rounded to bytes, times {scale:g}",)


def _labels(name: str, y: Array, rows: int) -> NDArray[Any]:
    if y.ndim == 2 and y.shape[1] > 1:
        raise errors.DataError(
            errors.message(f"{name}: targets", expected="one class a row", got=f"{y.shape[1]} columns: multi-label or one-hot targets",
                           fix="for one-hot rows pass y.argmax(1); multi-label targets are not supported")
        )  # fmt: skip
    y = y.reshape(-1)
    if len(y) != rows:
        raise errors.DataError(errors.message(f"{name}: targets", expected=f"{rows} rows, as the inputs", got=len(y)))
    if y.dtype.kind == "f":
        if not np.isfinite(y).all() or (y != np.round(y)).any():
            raise errors.DataError(
                errors.message(f"{name}: targets", expected="classes", got="numbers with fractions or NaN: a regression target",
                               fix="regression is not supported; bin the target into classes")
            )  # fmt: skip
        y = y.astype(np.int64)
    return y
