"""SAF in wrong hands: what is noticed in a run, and what is refused."""

import math
import warnings

import pytest
import torch

from legato.errors import LegatoError, LegatoTypeError, LegatoValueError, LegatoWarning
from legato.flatness.ensembling import TemporalEnsembling
from legato.flatness.saf import SAF
from legato.flatness.sampler import TrajectorySampler

N, C = 24, 4
pytestmark = pytest.mark.filterwarnings("ignore::legato.errors.LegatoWarning")


def order(epoch):
    return torch.randperm(N, generator=torch.Generator().manual_seed(epoch)).split(7)


def test_records_that_begin_in_the_middle_of_a_run_are_no_sampler_s_fault():
    """A run that goes on in the middle of epoch 4 without a state: half of the rows have no record in epoch 5."""
    saf = SAF(N, C, lag=1, start=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch, rows in ((4, 12), (5, N), (6, N), (7, N)):
            saf.begin_epoch(epoch)
            saf(torch.randn(rows, C), torch.arange(rows))
    assert saf.stats["valid_share"] == 1


def test_going_back_is_refused():
    saf = SAF(N, C)
    saf.set_epoch(3)
    saf.set_epoch(3)
    with pytest.raises(LegatoValueError, match=r"epoch: expected epoch 3 or a later one; got 2\. Fix: .*load a state"):
        saf.set_epoch(2)
    with pytest.raises(LegatoValueError, match="epoch: expected a whole number"):
        saf.set_epoch(3.5)


@pytest.mark.parametrize("make", [lambda: SAF(N, C, lag=2), lambda: TemporalEnsembling(N, C)])
def test_an_epoch_that_never_changes_is_noticed(make):
    term = make()
    with pytest.warns(
        LegatoWarning, match=r"\d+ of \d+ rows came again in epoch 0. Did you forget set_epoch\? Fix: call set_epoch"
    ):
        for epoch in range(3):
            for index in order(epoch):
                term(torch.randn(len(index), C), index)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in order(9):
            term(torch.randn(len(index), C), index)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_that_look_twice_are_not_taken_for_a_forgotten_epoch(accumulate):
    saf = SAF(N, C, lag=1, start=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(4):
            saf.begin_epoch(epoch)
            batches = [
                (torch.randn(4, C), torch.zeros(4, dtype=torch.int64), index) for index in torch.arange(N).split(4)
            ]
            for at in range(0, 6, accumulate):
                for batch in 2 * batches[at : at + accumulate]:
                    saf.penalty(batch[0], batch)
                saf.after_step(None)


def test_a_sampler_that_deals_rows_anew_is_noticed_by_the_share_of_records():
    """One of two processes, each with a table of its own, under a sampler like torch's."""
    saf = SAF(N, C, lag=1, start=-1)
    with pytest.warns(
        LegatoWarning,
        match=r"only \d\d% of the rows in epoch 1 had a record of epoch 0.*deals each row.*TrajectorySampler",
    ) as said:
        for epoch in range(5):
            saf.begin_epoch(epoch)
            for index in torch.randperm(N, generator=torch.Generator().manual_seed(epoch))[::2].split(4):
                saf(torch.randn(len(index), C), index)
    assert len(said) == 1
    share = int(str(said[0].message).partition("only ")[2][:2])
    first, second = (set(torch.randperm(N, generator=torch.Generator().manual_seed(e))[::2].tolist()) for e in (0, 1))
    assert share == round(100 * len(first & second) / 12)


def test_a_penalty_out_of_hand_is_noticed():
    saf = SAF(N, C, lam=9.0, lag=1, start=-1)
    y = torch.zeros(N, dtype=torch.int64)
    with pytest.warns(
        LegatoWarning, match=r"in epoch 1 the penalty, \d+, outweighed the cross-entropy, 0.0.*Fix: a lam below 9"
    ):
        for epoch in range(3):
            saf.begin_epoch(epoch)
            saf.penalty(torch.eye(C)[[epoch % 2] * N] * 9, (None, torch.full_like(y, epoch % 2), torch.arange(N)))


def test_a_penalty_that_is_nan_is_noticed():
    saf = SAF(N, C, lag=1, start=-1)
    saf(torch.zeros(N, C), torch.arange(N))
    saf.begin_epoch(1)
    saf(torch.full((N, C), math.nan), torch.arange(N))
    with pytest.warns(LegatoWarning, match="SAF: the penalty was infinite or NaN in epoch 1.*lower learning rate"):
        saf.begin_epoch(2)


def test_runs_that_do_not_fit_are_noticed():
    with pytest.warns(LegatoWarning, match=r"it never acts: start=5 .* there are 6. Fix: start=1"):
        next(SAF(N, C).epochs(6))
    saf = SAF(N, C)
    with pytest.warns(LegatoWarning, match="10 epochs of 4 steps are few"):
        for epoch in saf.epochs(10):
            for index in order(epoch):
                saf(torch.randn(len(index), C), index)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"index": [0, 1, 2]}, LegatoTypeError, "index: expected int64 rows of the training set, in 0 .. 23, of shape .*got list"),
        ({"index": None}, LegatoTypeError, "index: .*got NoneType. Fix: let the data set return the number"),
        ({"index": torch.arange(3).int()}, LegatoValueError, r"index: .*got torch.int32 of shape \[3\]. Fix: pass index.long"),
        ({"index": torch.ones(3, dtype=torch.bool)}, LegatoValueError, "got torch.bool.*not a mask"),
        ({"index": torch.arange(4)}, LegatoValueError, r"of shape \[3\] for a batch of 3; got torch.int64 of shape \[4\]"),
        ({"index": torch.tensor([0, 24, 1])}, LegatoValueError, r"in 0 .. 23.*got row 24. Fix: num_samples=24 must be the length"),
        ({"index": torch.tensor([0, -1, 1])}, LegatoValueError, "got row -1"),
        ({"logits": torch.zeros(3, 5)}, LegatoValueError, r"logits: expected shape \[B, 4\].*got shape \[3, 5\]. Fix: pass num_classes=5"),
        ({"logits": torch.zeros(3, C, 2, 2)}, LegatoValueError, r"logits: .*got shape \[3, 4, 2, 2\]. Fix: for dense outputs use MESA"),
        ({"logits": torch.zeros(3, C, dtype=torch.int64)}, LegatoTypeError, "logits: expected a floating point tensor"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [SAF, TemporalEnsembling])
def test_batches_that_are_refused(make, change, error, text):
    term = make(N, C)
    with pytest.raises(error, match=text):
        term(**{"logits": torch.zeros(3, C), "index": torch.arange(3)} | change)
    term(torch.zeros(3, C), torch.arange(3))


@pytest.mark.parametrize(
    ("change", "name"),
    [({"tau": 0}, "tau"), ({"lam": -1.0}, "lam"), ({"lag": 0}, "lag"), ({"start": -2}, "start"), ({"num_samples": -1}, "num_samples"),
     ({"rows": torch.tensor([1, 1])}, "rows"), ({"rows": torch.tensor([24])}, "rows"), ({"rows": torch.tensor([0.5])}, "rows"),
     ({"rows": torch.tensor([], dtype=torch.int64)}, "num_samples")],
)  # fmt: skip
def test_settings_that_are_refused(change, name):
    with pytest.raises(LegatoError, match=f"{name}: expected"):
        SAF(**{"num_samples": N, "num_classes": C} | change)


@pytest.mark.parametrize(
    ("arguments", "name"), [((10, 3, 3), "rank"), ((10, -1, 3), "rank"), ((2, 0, 3), "world_size"), ((0,), "num_samples"), ((10, 0, 1, -1), "seed")]
)  # fmt: skip
def test_samplers_that_are_refused(arguments, name):
    with pytest.raises(LegatoValueError, match=f"{name}: expected"):
        TrajectorySampler(*arguments)
