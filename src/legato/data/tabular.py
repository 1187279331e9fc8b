"""Tables of the user: CSV with the standard library, Parquet with pandas; text becomes columns, gaps are filled, both said out loud."""

import csv
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.data.arrays import pool_of
from legato.data.pool import Labelled, Pool

Columns = Mapping[str, Sequence[str]]
MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
MOST_CLASSES = 200


def read_table(path: Path, target: str | None, group: str | None, test: Path | None, validation: Path | None) -> Pool:
    """A table with the class in column `target`; files for test and validation must have the same columns.

    Numbers stay numbers, with gaps filled by the median; text becomes one column a value, a gap being a value of its own.
    Raises: DataError for a missing column, a table without rows, and targets that are no classes.
    """
    tables = [_read(file) for file in (path, test, validation) if file is not None]
    for table in tables:
        _check_columns(path.name, table, target, group)
    assert target is not None  # _check_columns has refused None
    features = [name for name in tables[0] if name not in (target, group)]
    matrix, names, notes = _encode(tables, features)
    counts = np.cumsum([0, *(len(table[target]) for table in tables)])
    labels = [np.array(table[target], dtype=object) for table in tables]
    _check_target(path.name, target, np.concatenate(labels))
    whole = pool_of(path.name, matrix, np.concatenate(labels).astype(str), None, f"file: {path.name}")
    parts = [Labelled(whole.rows.inputs[a:b], whole.rows.targets[a:b]) for a, b in pairwise(counts)]
    held = parts[1:]
    return Pool(
        name=path.name,
        rows=parts[0],
        class_names=whole.class_names,
        feature_names=names,
        group=None if group is None else np.unique(np.array(tables[0][group]), return_inverse=True)[1].astype(np.int64),
        test=held.pop(0) if test is not None else None,
        validation=held.pop(0) if validation is not None else None,
        origin=whole.origin,
        notes=notes,
    )


def _read(path: Path) -> Columns:
    if path.suffix.lower() == ".parquet":
        frame = errors.require("pandas", extra="tabular").read_parquet(path)
        return {
            str(name): ["" if value is None or value != value else str(value) for value in frame[name]]
            for name in frame.columns
        }
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if len(rows) < 2:
        raise errors.DataError(
            errors.message(path.name, expected="a line of column names and rows below it", got=f"{len(rows)} lines")
        )
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise errors.DataError(
            errors.message(f"{path.name}: column names", expected="each once", got=f"{twice!r} twice")
        )
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise errors.DataError(
                errors.message(
                    f"{path.name}: line {number}", expected=f"{len(header)} values, as the first line", got=len(row)
                )
            )
    return {name: [row[i].strip() for row in rows[1:]] for i, name in enumerate(header)}


def _check_columns(name: str, table: Columns, target: str | None, group: str | None) -> None:
    if target is None:
        raise errors.DataError(errors.message(f"{name}: target", expected="the column with the class", got="none",
                                              fix=f"--target NAME, one of {', '.join(list(table)[:12])}"))  # fmt: skip
    for word, column in (("target", target), ("group", group)):
        if column is not None and column not in table:
            raise errors.choice(f"{name}: {word}", column, table)


def _check_target(name: str, target: str, labels: NDArray[Any]) -> None:
    gaps = sum(str(label).lower() in MISSING for label in labels)
    if gaps:
        raise errors.DataError(
            errors.message(
                f"{name}: {target}", expected="a class in every row", got=f"{gaps} rows without", fix="leave them out"
            )
        )
    values = set(labels)
    if len(values) > MOST_CLASSES or (
        _numbers(list(values)) is not None and any("." in v and float(v) % 1 for v in values)
    ):
        raise errors.DataError(
            errors.message(f"{name}: {target}", expected=f"at most {MOST_CLASSES} classes", got=f"{len(values)} different values: a regression target",
                           fix="regression is not supported; bin the target, or name another column")
        )  # fmt: skip


def _encode(
    tables: Sequence[Columns], features: Sequence[str]
) -> tuple[NDArray[np.float32], tuple[str, ...], tuple[str, ...]]:
    """[all rows, D] and the names of the D columns; medians and text values come from the first table alone."""
    blocks, names, notes = [], [], []
    for feature in features:
        missing_columns = [table for table in tables if feature not in table]
        if missing_columns:
            raise errors.choice("column of the test or validation file", feature, missing_columns[0])
        values = [value for table in tables for value in table[feature]]
        own = tables[0][feature]
        gaps = np.array([value.lower() in MISSING for value in values])
        numbers = _numbers([value for value, gap in zip(values, gaps, strict=True) if not gap])
        if numbers is not None and len(numbers):
            column = np.full(len(values), np.nan)
            column[~gaps] = numbers
            median = float(np.nanmedian(column[: len(own)])) if not gaps[: len(own)].all() else 0.0
            column[gaps] = median
            if gaps.any():
                notes.append(f"{feature}: {gaps.sum()} missing values were filled with the median {median:g}")
            blocks.append(column[:, None])
            names.append(feature)
            continue
        levels = sorted(set(own))
        blocks.append(np.array([[value == level for level in levels] for value in values], dtype=np.float64))
        names += [f"{feature}={level or 'missing'}" for level in levels]
        notes.append(
            f"{feature}: text, became {len(levels)} columns, one a value"
            + (f"; {gaps.sum()} gaps are a value of their own" if gaps.any() else "")
        )
        if len(levels) > max(20, len(own) // 2):
            notes.append(f"{feature}: nearly every row has a value of its own; is it an identifier?")
    if not blocks:
        raise errors.DataError(errors.message("table", expected="one or more columns beside the target", got="none"))
    return np.hstack(blocks).astype(np.float32), tuple(names), tuple(notes)


def _numbers(values: Sequence[str]) -> NDArray[np.float64] | None:
    try:
        found = np.array([float(value) for value in values])
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None
