"""Temporal ensembling against a moving average that is kept sample by sample; what it shares with SAF is tested there."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legato.errors import LegatoValueError
from legato.flatness.ensembling import Averages, TemporalEnsembling
from legato.flatness.saf import SAF
from legato.flatness.trajectory import trajectory_loss

N, C = 5, 3
batches = st.lists(st.lists(st.integers(0, N - 1), max_size=4), max_size=3)


class Diary:
    """The slow twin of `Averages`: the outputs of each epoch, averaged when asked."""

    def __init__(self, momentum):
        self.momentum, self.pages = momentum, {}

    def write(self, index, logits, epoch):
        for row, output in zip(index.tolist(), logits, strict=True):
            if output.isfinite().all():
                self.pages.setdefault(row, {}).setdefault(epoch, output.clone())

    def check(self, averages, index, epoch):
        past, valid = averages.read(index, epoch)
        for row, output, known in zip(index.tolist(), past, valid.tolist(), strict=True):
            before = [said for when, said in sorted(self.pages.get(row, {}).items()) if when < epoch]
            assert known == bool(before)
            if before:
                powers = [(1 - self.momentum) * self.momentum**age for age in reversed(range(len(before)))]
                want = sum(w * said for w, said in zip(powers, before, strict=True)) / (
                    1 - self.momentum ** len(before)
                )
                torch.testing.assert_close(output, want, rtol=1e-12, atol=1e-12)


@given(st.lists(batches, max_size=7), st.sampled_from([0.0, 0.6, 0.99]), st.integers(0, 99))
def test_each_row_reads_the_average_of_the_epochs_before(epochs, momentum, seed):
    """Rows come in any order, not at all, in several batches of an epoch, or twice in one batch; some outputs are NaN."""
    averages, diary = Averages(N, C, momentum, dtype=torch.float64), Diary(momentum)
    for epoch, visits in enumerate(epochs):
        for visit in visits:
            index = torch.tensor(visit, dtype=torch.int64)
            generator = torch.Generator().manual_seed(seed := seed + 1)
            said = torch.randn(len(visit), C, dtype=torch.float64, generator=generator)
            said[:, 1].masked_fill_(torch.rand(len(visit), generator=generator) < 0.2, math.inf)
            for _ in range(2):
                diary.check(averages, index, epoch)
                averages.write(index, said, epoch)
                diary.write(index, said, epoch)
            diary.check(averages, index, epoch)


def test_it_is_the_formula_on_the_average():
    said = torch.randn(3, N, C, generator=torch.Generator().manual_seed(0))
    term = TemporalEnsembling(N, C, lam=0.7, tau=2.0, momentum=0.6, start=1)
    for epoch in (0, 1):
        term.begin_epoch(epoch)
        assert term(said[epoch], torch.arange(N)) == 0
    term.begin_epoch(2)
    average = (0.6 * 0.4 * said[0] + 0.4 * said[1]) / (1 - 0.36)
    torch.testing.assert_close(term(said[2], torch.arange(N)), 0.7 * trajectory_loss(said[2], average, 2.0))


def test_without_momentum_it_is_saf_with_a_lag_of_one():
    said = torch.randn(4, N, C, generator=torch.Generator().manual_seed(0))
    one, other = TemporalEnsembling(N, C, momentum=0.0, start=-1), SAF(N, C, lag=1, start=-1)
    for epoch in range(4):
        for term in (one, other):
            term.begin_epoch(epoch)
        torch.testing.assert_close(one(said[epoch], torch.arange(N)), other(said[epoch], torch.arange(N)))


def test_it_takes_the_memory_that_it_says():
    averages = Averages(100, 7, 0.6)
    assert averages.bytes == sum(
        t.numel() * t.element_size() for t in (averages.sums, averages.updates, averages.stamps)
    )
    assert averages.bytes < 0.6 * SAF(100, 7, lag=3).stats["bytes"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"momentum": 1.0}, r"momentum: expected a plain number in \[0, 1\); got 1.0"),
        ({"momentum": -0.1}, "momentum"),
        ({"dtype": torch.float16}, "dtype: .*an average of short numbers stands still"),
        ({"store": "shared"}, "store: expected a device"),
        ({"store": "./file.bin"}, "store: expected a device"),
        ({"num_classes": 0}, "num_classes"),
        ({"tau": 0}, "tau"),
    ],
)
def test_what_is_refused(change, text):
    with pytest.raises(LegatoValueError, match=text):
        TemporalEnsembling(**{"num_samples": N, "num_classes": C} | change)


def test_states_of_other_tables_are_refused():
    with pytest.raises(LegatoValueError, match=r"\[num_samples, num_classes\] = \[5, 3\]; got \[6, 3\]"):
        TemporalEnsembling(N, C).load_state_dict(TemporalEnsembling(6, C).state_dict())
