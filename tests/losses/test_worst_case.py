"""The worst case of several attacks: exact on linear models, repeatable, and what it refuses."""

import math
import sys
import types

import pytest
import torch
from torch import nn

from legato.errors import LegatoValueError, MissingExtraError
from legato.integrations.attacks import run_autoattack, run_torchattacks
from legato.losses.attacks import pgd
from legato.losses.ball import Ball
from legato.losses.robustness import survives, worst_case

FREE = (-math.inf, math.inf)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(weight, bias=None):
    """x -> x W^T + b as a Module, W of shape [C, D]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer


class Counting(nn.Module):
    """A model that counts the rows of each of its forward passes."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, []

    def forward(self, x):
        self.rows.append(len(x))
        return self.inner(x)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_worst_case_finds_the_exact_robust_error_of_linear_models(norm, dual):
    """A row is robust iff for all j: (w_y - w_j) x + b_y - b_j > radius * dual norm of (w_y - w_j)."""
    weight, bias, x = random(4, 10), random(4, seed=1), random(300, 10, seed=2)
    y = (x @ weight.T + bias + 2 * random(300, 4, seed=3)).argmax(1)
    radius = 0.1 if norm == "linf" else 0.3
    h = x @ weight.T + bias
    apart = torch.linalg.vector_norm(weight[y][:, None] - weight, ord=dual, dim=2)
    gaps = h.gather(1, y[:, None]) - h - radius * apart
    exact = (gaps > 0).scatter(1, y[:, None], True).all(1)
    model = linear(weight, bias)
    found = worst_case(model, x, y, norm=norm, radius=radius, bounds=FREE, steps=10, restarts=1, targets=3)
    assert torch.equal(found.robust, exact)
    assert torch.equal(found.correct, h.argmax(1) == y)
    assert found.accuracy == float(exact.double().mean()) < found.clean_accuracy
    assert sum(found.broken_by.values()) == int(found.correct.sum() - exact.sum())


# The worst case of several


def test_the_worst_case_repeats_and_leaves_broken_rows_alone():
    model = Counting(nn.Sequential(linear(random(16, 6)), nn.ReLU(), linear(random(4, 16, seed=1))))
    x = random(50, 6, seed=2)
    y = model(x).argmax(1).where(torch.arange(50) % 5 != 0, 0)
    model.rows.clear()
    options = {"radius": 0.15, "bounds": FREE, "steps": 3}
    first = worst_case(model, x, y, **options)
    rows, correct = model.rows.copy(), int(first.correct.sum())
    assert rows[0] == 50
    assert rows[1] == correct < 50
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < correct
    again = worst_case(model, x, y, **options)
    assert torch.equal(again.robust, first.robust)
    assert again.broken_by == first.broken_by
    small = worst_case(model, x, y, **options, batch_size=7)
    assert torch.equal(small.correct, first.correct)
    assert not (first.robust & ~first.correct).any()
    stronger = worst_case(model, x, y, radius=0.3, bounds=FREE)
    assert stronger.accuracy < first.accuracy < first.clean_accuracy
    model.rows.clear()
    assert worst_case(model, x, y, radius=5.0, bounds=FREE).accuracy == 0
    assert 0 not in model.rows
    assert torch.equal(survives(model, x, y, batch_size=11), first.correct)


def test_each_loss_of_the_worst_case_breaks_what_it_can():
    model, x = linear(random(4, 5)), random(60, 5, seed=1)
    y = model(x).argmax(1)
    for loss in ("cross-entropy", "margin", "dlr", "targeted"):
        found = worst_case(model, x, y, radius=0.2, bounds=FREE, losses=[loss], targets=3)
        assert found.broken_by == {loss: 60 - int(found.robust.sum())}
        assert 0 < found.accuracy < 1
    assert worst_case(linear(random(2, 5)), x, y % 2, radius=0.2, bounds=FREE).accuracy < 0.7


def test_a_step_that_goes_too_far_does_not_save_a_row():
    """Wrong for |x - 0.05| < 0.03 alone: a start in there counts, though the only step, of 0.1, leads out again."""
    x, y = torch.zeros(40, 1, dtype=torch.float64), torch.zeros(40, dtype=torch.int64)
    starts = Ball(0.1, FREE).start(x, "uniform", seeded())[:, 0]
    found = worst_case(
        lambda z: torch.cat([(z - 0.05) ** 2 - 0.03**2, 0 * z], dim=1), x, y, radius=0.1, bounds=FREE, steps=1,
        step_size=0.1, restarts=1, losses=["margin"],
    )  # fmt: skip
    inside = (starts - 0.05).abs() < 0.03
    assert inside.any()
    assert not found.robust[inside].any()
    assert found.robust.any()


def test_nan_scores_are_wrong():
    h = torch.tensor([[math.nan, 0.0], [1.0, 0.0]])
    assert survives(lambda x: h, torch.zeros(2, 1), torch.tensor([0, 0])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"losses": ["kl"]}, "losses: expected one of"),
        ({"losses": []}, "at least one attack loss"),
        ({"targets": 0}, "targets"),
        ({"batch_size": 0}, "batch_size"),
        ({"restarts": 0}, "restarts"),
    ],
)
def test_what_the_worst_case_refuses(change, text):
    with pytest.raises(LegatoValueError, match=text):
        worst_case(
            linear(torch.zeros(2, 3)), torch.zeros(2, 3), torch.tensor([0, 1]), radius=0.1, bounds=FREE, **change
        )


def test_rounding_of_standardised_inputs_is_let_through_and_cut():
    x = torch.tensor([[1 + 5e-6, 0.5]])
    worst = pgd(linear(torch.ones(2, 2)), x, torch.tensor([0]), radius=0.1, bounds=(0.0, 1.0))
    assert worst.max() <= 1


# Attacks of other packages, with stand-ins for the packages


class StandIn:
    """Moves each input by eps; notes what it was given."""

    def __init__(self, model, eps=0.0, device="none", **options):
        self.model, self.eps, self.options, self.device = model, eps, options, device
        StandIn.made = self

    def __call__(self, u, y):
        assert 0 <= u.min() <= u.max() <= 1
        assert not any(layer.training for layer in self.model.modules())
        self.scores = self.model(u)
        return (u + self.eps * torch.rand(()).ceil()).clamp(0, 1)

    def run_standard_evaluation(self, u, y, bs):
        self.batch = bs
        return self(u, y)


def test_other_packages_get_inputs_in_zero_to_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", types.SimpleNamespace(PGD=StandIn))
    monkeypatch.setitem(sys.modules, "autoattack", types.SimpleNamespace(AutoAttack=StandIn))
    model = nn.Sequential(nn.Flatten(), linear(random(3, 4, dtype=torch.float32))).train()
    model[1].eval()
    x, y = 4 * torch.rand(5, 1, 2, 2, generator=seeded()) - 1, torch.arange(5) % 3
    before = torch.get_rng_state()
    attacked = run_torchattacks("PGD", model, x, y, radius=0.4, bounds=(-1.0, 3.0), alpha=0.01)
    torch.testing.assert_close(attacked, (x + 0.4).clamp(-1, 3))
    torch.testing.assert_close(StandIn.made.scores, model(x))
    assert StandIn.made.options == {"alpha": 0.01}
    auto = run_autoattack(model, x, y, norm="l2", radius=0.4, bounds=(torch.full((1, 1, 1), -1.0), 3.0), batch_size=2)
    torch.testing.assert_close(auto, attacked)
    made = StandIn.made
    assert (made.device, made.batch, made.options["norm"], made.options["version"]) == ("cpu", 2, "L2", "standard")
    assert torch.equal(before, torch.get_rng_state())
    assert [model.training, model[1].training] == [True, False]
    with pytest.raises(LegatoValueError, match="name: expected one of PGD"):
        run_torchattacks("PDG", model, x, y, radius=0.4, bounds=(-1.0, 3.0))
    with pytest.raises(LegatoValueError, match=r"pictures \[B, C, H, W\]"):
        run_autoattack(model, x[:, 0], y, radius=0.4, bounds=(-1.0, 3.0))
    widths = (torch.tensor([-1.0, -2.0]), 3.0)
    for bounds, text in ((widths, "widths from 4 to 5"), ((-1.0, math.inf), "finite bounds")):
        with pytest.raises(LegatoValueError, match=text):
            run_torchattacks("PGD", model, x, y, radius=0.4, bounds=bounds)
    with pytest.raises(LegatoValueError, match="outside"):
        run_torchattacks("PGD", model, x + 9, y, radius=0.4, bounds=(-1.0, 3.0))


def test_a_missing_package_names_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    monkeypatch.setitem(sys.modules, "autoattack", None)
    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    with pytest.raises(MissingExtraError, match="pip install --no-deps torchattacks"):
        run_torchattacks("PGD", linear(torch.zeros(2, 4)), x, y, radius=0.1, bounds=(0.0, 1.0))
    with pytest.raises(MissingExtraError, match="auto-attack"):
        run_autoattack(linear(torch.zeros(2, 4)), x, y, radius=0.1, bounds=(0.0, 1.0))
