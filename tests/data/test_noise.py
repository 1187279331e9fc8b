"""Labels that are flipped by what their inputs look like."""

import numpy as np
import pytest
import torch

from legato.data.noise import _cut_normal, corrupt_by_input
from legato.errors import LegatoValueError


def inputs(rows=6000, columns=20, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rate", [0.2, 0.3, 0.5])
def test_the_share_that_flips(rate):
    """The normal of deviation 0.1 is cut at 0: at 0.2 that raises its mean by phi(2)/Phi(2)/10 = 0.0055, from 0.3 on by less than 0.0005."""
    x, y = inputs(), torch.arange(6000) % 5
    new = corrupt_by_input(x, y, 5, rate, seed=1)
    want = rate + (0.0055 if rate == 0.2 else 0)
    assert abs(float((new != y).double().mean()) - want) <= 4 * (rate * (1 - rate) / 6000) ** 0.5
    assert torch.equal(new, corrupt_by_input(x, y, 5, rate, seed=1))
    assert not torch.equal(new, corrupt_by_input(x, y, 5, rate, seed=2))
    assert torch.equal(y, torch.arange(6000) % 5)
    assert (int(new.min()), int(new.max())) == (0, 4)


def test_the_rate_differs_between_rows():
    """Which rates were drawn cannot be seen in the labels, so the draw itself is looked at."""
    drawn = _cut_normal(np.random.default_rng(0), 0.3, 0.1, 20_000)
    assert (drawn.mean(), drawn.std()) == (pytest.approx(0.3, abs=0.003), pytest.approx(0.1, abs=0.003))
    assert drawn.min() >= 0


def test_the_input_decides_where_a_label_goes():
    """Oracle: with large inputs the softmax is nearly one class, so equal inputs of a class flip to one class, opposite ones to another."""
    x = 50 * inputs(2, 30).repeat_interleave(400, 0)
    x[400:] = -x[:400]
    y = torch.zeros(800, dtype=torch.int64)
    new = corrupt_by_input(x, y, 6, 0.4, seed=0)
    first, second = (set(half[half > 0].tolist()) for half in (new[:400], new[400:]))
    assert len(first) == len(second) == 1
    assert first != second
    assert (
        len(set(corrupt_by_input(0 * x, y, 6, 0.4, seed=0).tolist())) == 6
    )  # without an input each class is as likely


def test_other_classes_have_other_ways():
    x = 50 * inputs(1, 30).repeat(600, 1)
    ways = set()
    for label in range(6):
        y = torch.full((600,), label)
        new = corrupt_by_input(x, y, 6, 0.4, seed=0)
        (way,) = set(new[new != y].tolist())
        ways.add((way - label) % 6)
    assert len(ways) > 1


def test_pictures_and_edges():
    x, y = inputs(64, 64).view(64, 1, 8, 8), torch.arange(64) % 3
    assert torch.equal(corrupt_by_input(x, y, 3, 0.2, seed=0), corrupt_by_input(x.flatten(1), y, 3, 0.2, seed=0))
    assert torch.equal(corrupt_by_input(x, y, 3, 0.0, seed=0), y)
    assert torch.equal(corrupt_by_input(x[:0], y[:0], 3, 0.2, seed=0), y[:0])
    for rate, classes, words in ((1.0, 3, "label_noise"), (-0.1, 3, "label_noise"), (0.2, 1, "num_classes")):
        with pytest.raises(LegatoValueError, match=words):
            corrupt_by_input(x, y, classes, rate, seed=0)
