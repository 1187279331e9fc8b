"""Columns of text -> one matrix of numbers: text becomes columns, gaps are filled, both said out loud."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from legato import errors


class Column(NamedTuple):
    """One column of a table, as text."""

    values: Sequence[str]
    gaps: NDArray[np.bool_]
    """[N], where nothing was recorded."""


Columns = Mapping[str, Column]
LARGEST_BLOCK = 2**28
"""Numbers that one column of text may become: a gigabyte."""
FEW = 6
"""Columns that the notes speak of one by one."""


class Encoded(NamedTuple):
    """A table as numbers."""

    matrix: NDArray[np.float32]
    """[rows of all tables, D]."""
    names: tuple[str, ...]
    """[D]."""
    notes: tuple[str, ...]


class _Block(NamedTuple):
    """What one column of the tables becomes."""

    feature: str
    matrix: NDArray[np.float32]
    names: list[str]
    is_text: bool
    gaps: int
    note: str
    remarks: Sequence[str] = ()


def encode(tables: Sequence[Columns], features: Sequence[str]) -> Encoded:
    """The columns `features` of all tables, one below the other; medians and text values come from the first table alone.

    Numbers stay numbers, with gaps filled by the median; text becomes one column a value, a gap being a value of its own.
    Raises: LegatoValueError for a column that a later table lacks; DataError for no columns, or text of too many values.
    """
    if not features:
        raise errors.DataError(errors.message("table", expected="one or more columns beside the target", got="none"))
    blocks = [_block(tables, feature) for feature in features]
    filled = [block for block in blocks if not block.is_text and block.gaps]
    spread = [block for block in blocks if block.is_text]
    levels, gaps = sum(len(block.names) for block in spread), sum(block.gaps for block in spread)
    notes = (
        *_said(filled, f"{sum(b.gaps for b in filled):,} missing values were filled with the median of their column"),
        *_said(spread, f"text, became {levels:,} columns together, one a value{_gaps_said(gaps)}"),
        *(remark for block in blocks for remark in block.remarks),
    )
    return Encoded(
        np.hstack([block.matrix for block in blocks]), tuple(name for block in blocks for name in block.names), notes
    )


def numbers_in(values: Sequence[str]) -> NDArray[np.float64] | None:
    """The values as finite numbers, or None where one is something else."""
    try:
        found = np.array([float(value) for value in values])
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


def _block(tables: Sequence[Columns], feature: str) -> _Block:
    for table in tables:
        if feature not in table:
            raise errors.choice("column of the test or validation file", feature, table)
    values = [value for table in tables for value in table[feature].values]
    gaps = np.concatenate([table[feature].gaps for table in tables])
    own = len(tables[0][feature].values)
    numbers = numbers_in([value for value, gap in zip(values, gaps, strict=True) if not gap])
    return (
        _words(feature, values, gaps, own)
        if numbers is None or not len(numbers)
        else _numbers(feature, numbers, gaps, own)
    )


def _numbers(feature: str, numbers: NDArray[np.float64], gaps: NDArray[np.bool_], own: int) -> _Block:
    """Numbers, their gaps filled with the median of the first `own` rows."""
    column = np.full(len(gaps), np.nan)
    column[~gaps] = numbers
    median = float(np.nanmedian(column[:own])) if not gaps[:own].all() else 0.0
    column[gaps] = median
    note = f"{gaps.sum()} missing values were filled with the median {median:g}"
    return _Block(feature, column.astype(np.float32)[:, None], [feature], False, int(gaps.sum()), f"{feature}: {note}")


def _words(feature: str, values: Sequence[str], gaps: NDArray[np.bool_], own: int) -> _Block:
    """A column of 0 and 1 for each value of the first `own` rows."""
    levels = sorted(set(values[:own]))
    note = f"text, became {len(levels)} columns, one a value{_gaps_said(int(gaps.sum()))}"
    remarks = []
    if unseen := set(values[own:]) - set(levels):
        remarks.append(f"{feature}: {len(unseen)} values of the other files are not in the training file: zeros")
    if len(levels) > max(20, own // 2):
        remarks.append(f"{feature}: nearly every row has a value of its own; is it an identifier?")
    names = [f"{feature}={level or 'missing'}" for level in levels]
    return _Block(
        feature, _one_hot(feature, values, levels), names, True, int(gaps.sum()), f"{feature}: {note}", remarks
    )


def _one_hot(feature: str, values: Sequence[str], levels: Sequence[str]) -> NDArray[np.float32]:
    if len(levels) * len(values) > LARGEST_BLOCK:
        raise errors.DataError(
            errors.message(
                feature, expected="numbers, or text of few different values", got=f"{len(levels):,} different values in {len(values):,} rows",
                fix="an identifier teaches nothing: take the column out of the file",
            )
        )  # fmt: skip
    code = {level: i for i, level in enumerate(levels)}
    codes = np.array([code.get(value, -1) for value in values])
    block: NDArray[np.float32] = (codes[:, None] == np.arange(len(levels))).astype(np.float32)
    return block


def _gaps_said(gaps: int) -> str:
    return f"; {gaps:,} gaps are a value of their own" if gaps else ""


def _said(blocks: Sequence[_Block], together: str) -> list[str]:
    """A sentence a column, or one for all where they are many."""
    if len(blocks) <= FEW:
        return [block.note for block in blocks]
    return [f"{len(blocks)} columns from {blocks[0].feature} to {blocks[-1].feature}: {together}"]
