"""The cuts: which rows are for learning, which for choosing, which for the report."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from legato import errors
from legato.data.pool import Labelled, Pool
from legato.data.splits import Provenance, Split, Splits

TEST_FRACTION = 0.2
TEST_SEED = 20230406
"""The test rows of a source without a test file are the same for every seed of a trial."""

Rows = NDArray[np.int64]


def cut(pool: Pool, *, seed: int, validation_fraction: float) -> Splits:
    """Cut a pool into train, validation and test.

    The test rows are the test file, or a fifth of the pool chosen by a constant seed. The validation rows are the
    validation file, or `validation_fraction` of what is left, chosen by `seed`. Both cuts keep the class shares
    (stratified), and rows of one group together.

    Raises: LegatoValueError for a seed or fraction out of range; DataError for a class with too few rows or groups.
    """
    check_cut(seed, validation_fraction)
    _check_counts(pool)
    train_rows = np.arange(len(pool.rows.targets))
    notes = list(pool.notes)
    by = "keeping the class shares" if pool.group is None else "in whole groups, near the class shares"
    if pool.test is None:
        train_rows, test_rows = hold_out_test(pool.rows.targets, pool.group)
        test = _take(pool.rows, test_rows)
        notes.append(f"test: {TEST_FRACTION:.0%} of the rows, chosen by a constant seed, {by}")
    else:
        test = _whole(pool.test)
    if pool.validation is None:
        group = None if pool.group is None else pool.group[train_rows]
        held = _held_out(pool.rows.targets[train_rows], group, validation_fraction, [seed, 1])
        validation = _take(pool.rows, train_rows[held])
        train_rows = train_rows[~held]
        notes.append(f"validation: {validation_fraction:.0%} of the other rows, chosen by seed {seed}, {by}")
    else:
        validation = _whole(pool.validation)
    train = _take(pool.rows, train_rows)
    for name, split in (("train", train), ("validation", validation), ("test", test)):
        notes.extend(_absent(pool, name, split))
    return Splits(train, validation, test, pool.class_names, pool.feature_names, _provenance(pool, notes))


def check_cut(seed: int, validation_fraction: float) -> None:
    """Refuse a seed or fraction that cannot be used, before anything is read."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise errors.argument("seed", expected="a whole number >= 0", got=seed)
    if not 0 < validation_fraction < 1:
        raise errors.argument(
            "validation_fraction", expected="a share above 0 and below 1", got=validation_fraction, fix="0.2 is usual"
        )


def hold_out_test(targets: Rows, group: Rows | None) -> tuple[Rows, Rows]:
    """The rows of a pool for development and for the test: a constant cut, so that no seed ever sees a test row."""
    held = _held_out(targets, group, TEST_FRACTION, [TEST_SEED, 0])
    return np.flatnonzero(~held), np.flatnonzero(held)


def _held_out(targets: Rows, group: Rows | None, fraction: float, seed: Sequence[int]) -> NDArray[np.bool_]:
    """Mark about `fraction` of the rows of each class, in whole groups; without groups each row is one.

    A group counts for the class most of its rows have. Of a class with two or more groups, at least one is marked and
    at least one is not; a single group stays unmarked.
    """
    if group is None:
        unit, unit_class, unit_size = np.arange(len(targets)), targets, np.ones_like(targets)
    else:
        unit = np.unique(group, return_inverse=True)[1]
        votes = np.zeros((unit.max() + 1, targets.max() + 1), dtype=np.int64)
        np.add.at(votes, (unit, targets), 1)
        unit_class, unit_size = votes.argmax(1), votes.sum(1)
    random = np.random.default_rng(seed)
    marked = np.zeros(len(unit_class), dtype=bool)
    for label in np.unique(unit_class):
        units = random.permutation(np.flatnonzero(unit_class == label))
        sizes = unit_size[units]
        middle = np.cumsum(sizes) - sizes / 2  # a group is taken when more than half of it lies within the share
        wanted = int((middle < fraction * sizes.sum()).sum())
        marked[units[: min(max(wanted, 1), len(units) - 1)]] = True
    return marked[unit]


def _take(source: Labelled, rows: Rows) -> Split:
    """Copies, never views: what one caller does to its tensors must not reach the cached pool."""
    return Split(
        inputs=torch.from_numpy(source.inputs[rows]),
        targets=torch.from_numpy(source.targets[rows]),
        index=torch.from_numpy(rows.astype(np.int64)),
    )


def _whole(file: Labelled) -> Split:
    return _take(file, np.arange(len(file.targets)))


def _provenance(pool: Pool, notes: Sequence[str]) -> Provenance:
    return Provenance(
        name=pool.name,
        licence=pool.licence,
        citation=pool.citation,
        source=pool.origin.source,
        sha256=pool.sha256,
        notes=tuple(notes),
        searched=pool.origin.searched,
    )


def _check_counts(pool: Pool) -> None:
    """Each class needs a row for every split that is cut from the pool."""
    if len(pool.class_names) < 2:
        raise errors.DataError(
            errors.message(
                f"{pool.name}: classes",
                expected="at least 2",
                got=f"only {pool.class_names[0]!r}" if pool.class_names else "none",
                fix="add rows of another class, or name another target",
            )
        )
    parts = ["train"] + ["validation"] * (pool.validation is None) + ["test"] * (pool.test is None)
    counts = np.bincount(pool.rows.targets, minlength=len(pool.class_names))
    poor = np.flatnonzero(counts < len(parts))
    if len(poor):
        label, more = poor[0], f", and {len(poor) - 1} more classes are as small" if len(poor) > 1 else ""
        raise errors.DataError(
            errors.message(
                f"{pool.name}: class {pool.class_names[label]!r}",
                expected=f"at least {len(parts)} rows, one for each of {', '.join(parts)}",
                got=f"{counts[label]}{more}",
                fix="add rows of this class, merge it with another, or leave it out",
            )
        )


def _absent(pool: Pool, name: str, split: Split) -> list[str]:
    """What to say of classes without a row in a split, as whole groups and files of the user can leave it.

    Raises: DataError when the split is empty, or when there is nothing to learn a class from.
    """
    counts = torch.bincount(split.targets, minlength=len(pool.class_names))
    missing = ", ".join(repr(pool.class_names[i]) for i in torch.nonzero(counts == 0).flatten().tolist())
    if len(split) == 0 or (missing and name == "train"):
        raise errors.DataError(
            errors.message(
                f"{pool.name}: {name}",
                expected="rows of every class" if len(split) else "at least one row",
                got=f"no row of {missing}",
                fix="use more and smaller groups, another seed, or files for validation and test",
            )
        )
    return [f"{name} has no row of {missing}"] if missing else []
