"""The object of EnsLoss: its random numbers, its states, its schedule, and what it refuses."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from legato.errors import LegatoValueError, LegatoWarning
from legato.losses.ens_derivatives import ORDERED_ROWS
from legato.losses.ens_stream import BATCHES
from legato.losses.ensloss import EnsLoss, ens_loss
from legato.losses.margin_losses import logistic_loss
from legato.training.plain import flatten, unflatten


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(rows=64, seed=0, dtype=torch.float64):
    generator = seeded(seed)
    f = 3 * torch.randn(rows, dtype=torch.float64, generator=generator)
    return f.to(dtype), torch.randint(2, (rows,), generator=generator)


def gradient(loss, f, y, **options):
    f = f.clone().requires_grad_()
    return torch.autograd.grad(loss(f, y, **options), f)[0]


# the object


@pytest.mark.parametrize("rows", [16, 128, ORDERED_ROWS])
@pytest.mark.parametrize("lambda_", [0.0, 0.5])
def test_object_and_function_agree_bit_for_bit(rows, lambda_):
    """Drawing for many batches at once changes no number, for multiples of 16 rows."""
    f, y = batch(rows, dtype=torch.float32)
    made, generator = EnsLoss(lambda_, seed=3), seeded(3)
    for _ in range(3):
        assert torch.equal(made(f, y), ens_loss(f, y, lambda_, generator=generator))
    assert torch.equal(EnsLoss(random=False)(f, y), ens_loss(f, y, random=False))


def test_options_reach_the_function():
    f, y = batch(32, dtype=torch.float32)
    options = {"tail_power": 2.0, "clip": 0.5, "pos_weight": 2.0, "reduction": "none"}
    assert torch.equal(EnsLoss(0.3, **options)(f, y), ens_loss(f, y, 0.3, generator=seeded(), **options))
    h, w = torch.stack([f, -f], 1), torch.tensor([1.0, 2.0])
    assert torch.equal(EnsLoss(weight=w)(h, y), ens_loss(h, y, weight=w, generator=seeded()))


def test_draws_are_independent_of_type_and_other_batch_sizes():
    """Two sizes of batch take from two blocks; each call still is another draw."""
    f, y = batch(48, dtype=torch.float32)
    made = EnsLoss(reduction="none")
    got = [made(f[:rows], y[:rows]) for rows in [48, 32] * (BATCHES + 1)]
    assert len({tuple(row.tolist()) for row in got}) == 2 * (BATCHES + 1)


def test_eval_mode_is_binary_cross_entropy_and_draws_nothing():
    f, y = batch(dtype=torch.float32)
    made = EnsLoss(pos_weight=2.0)
    made(f, y)
    state = copy.deepcopy(made.state_dict())
    made.eval()
    want = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))(f, y.float())
    torch.testing.assert_close(made(f, y), want)
    h = torch.randn(64, 3, generator=seeded())
    assert torch.equal(EnsLoss().eval()(h, y), logistic_loss(h, y))
    assert torch.equal(
        made.state_dict()["_extra_state"]["stream"]["generator"], state["_extra_state"]["stream"]["generator"]
    )


@pytest.mark.parametrize("calls", [0, 1, BATCHES, BATCHES + 3])
@pytest.mark.parametrize("period", [None, 2])
@pytest.mark.parametrize("epochs", [(3, 3, 4, 5), (5, 6)], ids=["in the middle", "at the end of an epoch"])
def test_a_resumed_object_draws_what_it_would_have_drawn(calls, period, epochs):
    f, y = batch(48, dtype=torch.float32)
    first, second = EnsLoss(0.2, period=period, seed=5), EnsLoss(0.2, period=period)
    second.begin_epoch(7)
    for _ in range(9):
        second(f, y)  # what it did before is forgotten
    first.begin_epoch(3)
    for _ in range(calls):
        first(f, y)
        first(f[:20], y[:20])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    third = EnsLoss(0.2, period=period)
    third.load_state_dict(copy.deepcopy(second.state_dict()))  # before it was called
    for made in (second, third, copy.deepcopy(first)):
        going_on = copy.deepcopy(first)
        for epoch in epochs:
            made.begin_epoch(epoch)
            going_on.begin_epoch(epoch)
            assert made.lambda_ == going_on.lambda_
            for rows in (48, 20):
                assert torch.equal(made(f[:rows], y[:rows]), going_on(f[:rows], y[:rows]))


def test_a_state_fits_into_a_checkpoint():
    """Of `legato.fit`, which keeps plain data and tensors."""
    f, y = batch()
    first, second, tensors = EnsLoss(), EnsLoss(), {}
    first(f, y)
    second.load_state_dict(unflatten(flatten(first.state_dict(), "objective", tensors), tensors))
    assert torch.equal(first(f, y), second(f, y))


def test_a_state_fits_into_a_file(tmp_path):
    f, y = batch()
    first, second = EnsLoss(), EnsLoss()
    first(f, y)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(first(f, y), second(f, y))


def test_a_state_of_another_device_begins_anew_with_a_warning():
    f, y = batch()
    first, second = EnsLoss(), EnsLoss()
    first(f, y)
    state = first.state_dict()
    state["_extra_state"]["stream"]["device"] = "cuda"
    second.load_state_dict(state)
    with pytest.warns(LegatoWarning, match="of a run on cuda cannot go on on cpu") as caught:
        value = second(f, y)
    assert [w.filename for w in caught] == [__file__]
    assert torch.equal(value, EnsLoss()(f, y))


def test_lambda_follows_the_epoch_and_the_seed_as_in_the_official_schedule():
    """The official loop counts epochs from 1 and draws lambda when epoch % period == 0."""
    made = EnsLoss(0.25, period=3)
    lambdas = []
    for epoch in range(9):
        made.begin_epoch(epoch)
        lambdas.append(made.lambda_)
    assert lambdas[:2] == [0.25, 0.25]
    assert lambdas[2] == lambdas[3] == lambdas[4] != lambdas[5]
    assert lambdas[8] != lambdas[5]
    made.begin_epoch(4)
    assert made.lambda_ == lambdas[4]
    every = EnsLoss(period=1, seed=1)
    drawn = [(every.begin_epoch(epoch), every.lambda_)[1] for epoch in range(400)]
    assert np.abs(drawn).max() <= 1
    assert np.mean(drawn) == pytest.approx(0, abs=0.1)
    assert np.var(drawn) == pytest.approx(1 / 3, abs=0.05)


def test_it_says_what_differs_from_the_defaults():
    assert repr(EnsLoss()) == "EnsLoss(lambda_=0.0)"
    made = EnsLoss(0.5, period=10, clip=2.0, pos_weight=3.0, random=False, seed=4, tail_power=2.0, reduction="sum")
    assert repr(made) == (
        "EnsLoss(lambda_=0.5, period=10, tail_power=2.0, clip=2.0, pos_weight=3.0, random=False, seed=4, reduction='sum')"
    )


def test_in_inference_mode_it_draws_for_later_training_too():
    f, y = batch(32, dtype=torch.float32)
    made = EnsLoss()
    with torch.inference_mode():
        made(f, y)
    assert gradient(made, f, y).isfinite().all()


@pytest.mark.parametrize(
    ("logits", "target", "words"),
    [
        (torch.zeros(7), torch.full((7,), 0.5), "got 0.5. Fix: round soft labels"),
        (torch.zeros(7), torch.full((7,), 2), "got 2. Fix: for more than two classes"),
        (torch.full((7,), math.nan), torch.zeros(7), "got 7 NaN of 7. Fix: look for NaN in the inputs"),
    ],
)
def test_the_object_looks_at_the_values_of_its_first_call_only(logits, target, words):
    made = EnsLoss()
    with pytest.raises(LegatoValueError) as caught:
        made(logits, target)
    assert words in str(caught.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(logits, target)


@pytest.mark.parametrize(
    "options", [{"period": 0}, {"period": 1.5}, {"seed": -1}, {"seed": 0.5}, {"clip": -1.0}, {"lambda_": math.inf}]
)
def test_an_object_refuses_numbers_out_of_range(options):
    with pytest.raises(LegatoValueError, match=next(iter(options))):
        EnsLoss(**options)
