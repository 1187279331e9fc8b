"""The objective that changes among losses: it trains with the one that was chosen, and judges all by one measure on held-out rows."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato import errors
from legato.data import Batches
from legato.losses import CompSumLoss, Warmup
from legato.online import Selector
from legato.online.selected_loss import SelectedLoss, expected_error
from legato.training import Criterion, fit

CRITERIA = {"ce": nn.CrossEntropyLoss(), "mae": CompSumLoss(2.0)}
G = torch.Generator().manual_seed(0)
X = torch.randn(96, 5, generator=G)
Y = (X @ torch.randn(5, 3, generator=G)).argmax(1)
HELD_OUT = X[64:], Y[64:]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def trained(objective, epochs=4, **options):
    batches = Batches(X[:64], Y[:64], torch.arange(64), 8)
    return fit(net(), objective, batches, epochs=epochs, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **options)


def test_the_expected_error_is_affine_in_that_on_true_labels_when_labels_flip_evenly():
    """Oracle: the mean over every label that a row can get, weighted by its chance; the chance to be wrong, counted by drawing."""
    h, r = torch.randn(6, 4, dtype=torch.float64, generator=G), 0.3
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    seen = torch.full((6, 4), r / 3).scatter(1, y[:, None], 1 - r)
    noisy = sum(seen[:, k].double() @ (1 - h.softmax(1)[:, k]) for k in range(4)) / 6
    assert float(noisy) == pytest.approx(r + (1 - r * 4 / 3) * float(expected_error(h, y)), rel=1e-6)
    guesses = torch.multinomial(h.softmax(1), 50_000, replacement=True, generator=G)
    assert float((guesses != y[:, None]).double().mean()) == pytest.approx(float(expected_error(h, y)), abs=0.005)
    assert float(expected_error(torch.eye(3) * 1e9, torch.arange(3))) == 0


def test_it_is_the_selector_in_a_loop_by_hand():
    """Twin: a plain loop with `choose` and `report`, the held-out error measured between the steps."""
    selected = SelectedLoss(CRITERIA, HELD_OUT, Selector(list(CRITERIA), memory=20, seed=3), every=2)
    fitted = trained(selected)
    model, selector, last, count = net(), Selector(list(CRITERIA), memory=20, seed=3), None, {"ce": 0, "mae": 0}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches, step = Batches(X[:64], Y[:64], torch.arange(64), 8), 0
    for epoch in range(4):
        for x, y, _ in batches.epoch(epoch):
            name = selector.choose()
            optimizer.zero_grad()
            CRITERIA[name](model.train()(x), y).backward()
            optimizer.step()
            count[name], step = count[name] + 1, step + 1
            if step % 2 == 0:
                with torch.no_grad():
                    now = float(1 - model.eval()(HELD_OUT[0]).softmax(1).gather(1, HELD_OUT[1][:, None]).mean())
                if last is not None:
                    selector.report(last - now)
                last = now
    assert selected.steps == count
    assert selected.selector.picks == selector.picks
    assert min(count.values()) > 0
    for ours, theirs in zip(fitted.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_learns_which_loss_trains():
    """One member trains, the other leaves the weights as they are."""
    still = {"ce": nn.CrossEntropyLoss(), "nothing": lambda output, target: 0 * output.sum()}
    selected = SelectedLoss(still, HELD_OUT, Selector(list(still), memory=30, boldness=3), every=1)
    trained(selected, epochs=12)
    assert selected.steps["ce"] > 0.65 * sum(selected.steps.values())


def test_the_model_stays_in_its_mode_and_its_running_statistics_are_not_touched():
    model = net().train()
    model[3].eval()
    selected = SelectedLoss(CRITERIA, HELD_OUT, every=1)
    selected.loss(model, (X[:8], Y[:8], torch.arange(8)), 0).backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    selected.after_step(model)
    assert [m.training for m in model] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_run_that_was_stopped_goes_on_in_every_bit(tmp_path):
    """Killed in the middle of the third epoch, between two looks; a member with a schedule of its own among them."""
    criteria = lambda: {"ce": nn.CrossEntropyLoss(), "comp-sum": CompSumLoss(Warmup(2.0, 3))}  # noqa: E731
    whole = SelectedLoss(criteria(), HELD_OUT, every=3)
    expected = trained(whole)

    class Stop(Exception):
        pass

    class Stopped:
        def __init__(self, inner, at):
            self.inner, self.at = inner, at

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def loss(self, model, batch, step):
            if step == self.at:
                raise Stop
            return self.inner.loss(model, batch, step)

    with pytest.raises(Stop):
        trained(Stopped(SelectedLoss(criteria(), HELD_OUT, every=3), 20), folder=tmp_path, checkpoint_seconds=0.0)
    again = SelectedLoss(criteria(), HELD_OUT, every=3)
    got = trained(again, folder=tmp_path, checkpoint_seconds=0.0)
    assert again.steps == whole.steps
    assert again.selector.probs() == whole.selector.probs()
    assert again.criteria["comp-sum"].state_dict() == whole.criteria["comp-sum"].state_dict() != {}
    for ours, theirs in zip(got.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert json.loads(json.dumps(again.selector.state_dict()))


def test_a_measure_that_is_not_finite_is_not_reported():
    values = iter([1.0, np.nan, 0.5, np.inf, 0.4, 0.3])
    selected = SelectedLoss(CRITERIA, HELD_OUT, every=1, measure=lambda *_: next(values))
    for _ in range(6):
        selected.loss(net(), (X[:8], Y[:8], torch.arange(8)), 0)
        selected.after_step(net())
    assert sum(selected.selector.picks.values()) == 1  # only from 0.4 to 0.3
    assert sum(selected.steps.values()) == 6


def test_bad_arguments_are_named():
    with pytest.raises(errors.LegatoValueError, match="every"):
        SelectedLoss(CRITERIA, every=0)
    with pytest.raises(errors.LegatoValueError, match="selector: expected one of ce, mae; got one of ce"):
        SelectedLoss(CRITERIA, selector=Selector(["ce"]))
    with pytest.raises(errors.LegatoValueError, match=r"held_out.*selected\.held_out = "):
        SelectedLoss(CRITERIA).loss(net(), (X, Y, torch.arange(96)), 0)


def test_it_trains_what_cross_entropy_trains():
    one, plain = SelectedLoss({"ce": F.cross_entropy}, HELD_OUT), Criterion(F.cross_entropy)
    for a, b in zip(trained(one).model.parameters(), trained(plain).model.parameters(), strict=True):
        assert torch.equal(a, b)
