"""The cuts: nothing lost, nothing twice, shares kept, groups whole, the test the same for all."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legato import data
from legato.errors import DataError, LegatoValueError

SPLITS = ("train", "validation", "test")


@st.composite
def targets(draw):
    """Class indices of 2 .. 5 classes with 3 .. 40 rows each, in any order."""
    counts = draw(st.lists(st.integers(3, 40), min_size=2, max_size=5))
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(np.repeat(np.arange(len(counts)), counts))


def load(y, **options):
    """Rows whose one feature is their own number, so that a wrong row is seen."""
    return data.from_arrays(np.arange(len(y), dtype=float)[:, None], y, **options)


@given(targets(), st.integers(0, 9), st.sampled_from([0.1, 0.2, 0.5, 0.75]))
def test_every_row_is_in_one_split_with_its_own_label(y, seed, fraction):
    splits = load(y, seed=seed, validation_fraction=fraction)
    index = torch.cat([getattr(splits, word).index for word in SPLITS]).numpy()
    assert sorted(index) == list(range(len(y)))
    for word in SPLITS:
        split = getattr(splits, word)
        assert torch.equal(split.inputs[:, 0], split.index.float())
        assert np.array_equal(split.targets.numpy(), y[split.index.numpy()])


@given(targets(), st.integers(0, 9), st.sampled_from([0.1, 0.2, 0.5, 0.75]))
def test_every_class_has_its_share_and_at_least_one_row(y, seed, fraction):
    splits = load(y, seed=seed, validation_fraction=fraction)
    counts = {word: np.bincount(getattr(splits, word).targets, minlength=splits.num_classes) for word in SPLITS}
    rows = np.bincount(y)
    assert all((n >= 1).all() for n in counts.values())
    assert (np.abs(counts["test"] - 0.2 * rows) <= 1).all()
    left = rows - counts["test"]
    assert (np.abs(counts["validation"] - np.clip(fraction * left, 1, left - 1)) <= 1).all()


@given(targets(), st.integers(0, 9))
def test_the_test_rows_are_the_same_for_every_seed_and_fraction(y, seed):
    one, other = load(y, seed=seed), load(y, seed=seed + 1, validation_fraction=0.5)
    assert torch.equal(one.test.index, other.test.index)
    assert torch.equal(one.validation.index, load(y, seed=seed).validation.index)


@given(st.integers(0, 99), st.integers(1, 9), st.integers(12, 40))
def test_groups_are_never_divided(seed, largest, groups):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, largest + 1, groups)
    group = random.permutation(np.repeat(np.arange(groups), sizes))
    splits = load(group % 3, group=[f"patient {g}" for g in group], seed=seed)
    seen = [set(group[getattr(splits, word).index.numpy()]) for word in SPLITS]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert set.union(*seen) == set(range(groups))


def test_a_class_in_one_group_is_learnt_and_its_absence_is_said():
    y = np.array([0, 1] * 20 + [2] * 5)
    splits = load(y, group=np.concatenate([np.arange(40) // 4, [99] * 5]))
    assert (splits.train.targets == 2).sum() == 5
    assert "test has no row of '2'" in splits.provenance.notes


def test_cuts_that_cannot_be_made():
    y = np.arange(30) % 3
    for options, words in [
        ({"seed": -1}, "seed: expected a whole number"),
        ({"seed": True}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"validation_fraction": 0}, "validation_fraction"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
    ]:
        with pytest.raises(LegatoValueError, match=words):
            load(y, **options)
    for options, labels, words in [
        ({}, [0, 0, 0, 1, 1], "class '1': expected at least 3 rows"),
        ({}, np.zeros(9, int), "classes: expected at least 2"),
        ({"group": np.zeros(30)}, y, "no row of"),
        ({"group": np.zeros(7)}, y, "one value for each of the 30 rows"),
    ]:
        with pytest.raises(DataError, match=words):
            load(np.asarray(labels), **options)
