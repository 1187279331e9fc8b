"""Tables of the user: CSV with the standard library, Parquet with pandas."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.data.arrays import pool_of
from legato.data.encoding import Column, Columns, encode, numbers_in
from legato.data.pool import Pool

MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
MOST_CLASSES = 200
SUFFIXES = (".csv", ".parquet")


def read_table(path: Path, target: str | None, group: str | None, validation: Path | None, test: Path | None) -> Pool:
    """A table with the class in column `target`; files for validation and test must have the same columns.

    Numbers stay numbers, with gaps filled by the median; text becomes one column a value, a gap being a value of its own.
    Raises: DataError for a missing column, a table without rows, and targets that are no classes.
    """
    files = {"train": path, "validation": validation, "test": test}
    tables = {part: _read(file) for part, file in files.items() if file is not None}
    for table in tables.values():
        _check_columns(path.name, table, target, group)
    assert target is not None  # _check_columns has refused None
    own = tables["train"]
    matrix, names, notes = encode(list(tables.values()), [name for name in own if name not in (target, group)])
    labels = {part: np.array(table[target].values, dtype=str) for part, table in tables.items()}
    _check_target(path.name, target, [table[target] for table in tables.values()])
    ends = np.cumsum([0, *map(len, labels.values())])
    rows = {part: matrix[a:b] for part, (a, b) in zip(labels, pairwise(ends), strict=True)}
    groups = None if group is None else np.array(own[group].values)
    pool = pool_of(path.name, {part: (rows[part], labels[part]) for part in rows}, f"file: {path.name}", groups)
    return replace(pool, feature_names=names, notes=notes)


def columns_of(frame: Any) -> Columns:
    """The columns of a pandas frame as text; what pandas calls missing is a gap, with an empty text."""
    found = {}
    for name in frame.columns:
        gaps = frame[name].isna().to_numpy(dtype=bool)
        values = ["" if gap else str(value) for value, gap in zip(frame[name], gaps, strict=True)]
        found[str(name)] = Column(values, gaps)
    return found


def _read(path: Path) -> Columns:
    columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    return {name: Column(values, _gaps(values)) for name, values in columns.items()}


def _gaps(values: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([value.lower() in MISSING for value in values])


def _read_parquet(path: Path) -> dict[str, Sequence[str]]:
    pandas = errors.require("pandas", extra="tabular")
    errors.require("pyarrow", extra="tabular")
    try:
        frame = pandas.read_parquet(path)
    except (OSError, ValueError) as problem:  # pyarrow's errors are of these two kinds
        raise errors.DataError(f"{path.name}: not a readable Parquet file: {problem}.") from problem
    return {name: column.values for name, column in columns_of(frame).items()}


def _read_csv(path: Path) -> dict[str, Sequence[str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as problem:
        raise errors.DataError(f"{path.name}: not a CSV file in UTF-8: {problem}. Fix: save it as one.") from problem
    if len(rows) < 2:
        raise errors.DataError(
            errors.message(path.name, expected="a line of column names and rows below it", got=f"{len(rows)} lines")
        )
    header = [name.strip() for name in rows[0]]
    _check_header(path.name, header)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise errors.DataError(
                errors.message(
                    f"{path.name}: line {number}", expected=f"{len(header)} values, as the first line", got=len(row)
                )
            )
    return {name: [row[i].strip() for row in rows[1:]] for i, name in enumerate(header)}


def _check_header(name: str, header: Sequence[str]) -> None:
    for sign, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and sign in header[0]:
            raise errors.DataError(
                errors.message(name, expected="values between commas", got=f"values between {word}", fix="save it with commas")
            )  # fmt: skip
    if len(set(header)) < len(header):
        twice = next(word for word in header if header.count(word) > 1)
        raise errors.DataError(errors.message(f"{name}: column names", expected="each once", got=f"{twice!r} twice"))


def _check_columns(name: str, table: Columns, target: str | None, group: str | None) -> None:
    if target is None:
        raise errors.DataError(errors.message(f"{name}: target", expected="the column with the class", got="none",
                                              fix=f"--target NAME, one of {', '.join(list(table)[:12])}"))  # fmt: skip
    for word, column in (("target", target), ("group", group)):
        if column is not None and column not in table:
            raise errors.choice(f"{name}: {word}", column, table)


def _check_target(name: str, target: str, columns: Sequence[Column]) -> None:
    if gaps := sum(int(column.gaps.sum()) for column in columns):
        raise errors.DataError(
            errors.message(
                f"{name}: {target}", expected="a class in every row", got=f"{gaps} rows without", fix="leave them out"
            )
        )
    values = {value for column in columns for value in column.values}
    fractions = numbers_in(list(values)) is not None and any("." in value and float(value) % 1 for value in values)
    if len(values) > MOST_CLASSES or fractions:
        raise errors.DataError(
            errors.message(f"{name}: {target}", expected=f"at most {MOST_CLASSES} classes", got=f"{len(values)} different values: a regression target",
                           fix="regression is not supported; bin the target, or name another column")
        )  # fmt: skip
