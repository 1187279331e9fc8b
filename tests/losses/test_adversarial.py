"""Adversarial objectives: the authors' order of passes, what an attack must leave alone, state, and what is refused."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.bench.adversarial_peers import trades_official_order
from legato.errors import LegatoValueError
from legato.losses import CompSumLoss, Warmup, comp_sum_loss
from legato.losses.adversarial import SmoothAdversarialLoss, smooth_adversarial_from_scores, smooth_adversarial_loss
from legato.losses.attack_losses import cross_entropy
from legato.losses.attacks import pgd
from legato.losses.mart import Mart, mart_from_scores, mart_loss
from legato.losses.pgd_training import PGDAdversarial, pgd_adversarial_loss
from legato.losses.trades import Trades, trades_from_scores, trades_loss
from legato.nets import build
from legato.training import fit
from legato.training.checks import check_parts
from legato.training.plain import flatten, unflatten

ATTACK = {"radius": 0.1, "bounds": (0.0, 1.0), "steps": 3}
comp_sum_rows = partial(comp_sum_loss, tau=0.5, reduction="none")
LOSSES = {
    "smooth": (partial(smooth_adversarial_loss, tau=0.5, temperature=2.0, nu=0.7),
               partial(SmoothAdversarialLoss, tau=0.5, temperature=2.0, nu=0.7),
               partial(smooth_adversarial_from_scores, tau=0.5, temperature=2.0, nu=0.7), "margin-shift", "uniform"),
    "trades": (trades_loss, Trades, trades_from_scores, "kl", "gaussian"),
    "mart": (mart_loss, Mart, mart_from_scores, "cross-entropy", "gaussian"),
    "pgd": (pgd_adversarial_loss, PGDAdversarial,
            lambda clean, attacked, y, reduction="mean": F.cross_entropy(attacked, y, reduction=reduction),
            "cross-entropy", "uniform"),
    "pgd comp-sum": (partial(pgd_adversarial_loss, outer=comp_sum_rows), partial(PGDAdversarial, outer=comp_sum_rows),
                     lambda clean, attacked, y, reduction="mean": comp_sum_loss(attacked, y, 0.5, reduction=reduction),
                     "cross-entropy", "uniform"),
}  # fmt: skip


@pytest.fixture(params=LOSSES, ids=LOSSES)
def row(request):
    return LOSSES[request.param]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(rows=8, dtype=torch.float64):
    x = torch.rand(rows, 5, dtype=torch.float64, generator=seeded(1)).to(dtype)
    return x, torch.arange(rows) % 4


def network(dtype=torch.float64, norm=False):
    """A small model with its weights drawn from a seed."""
    layers = [nn.Linear(5, 12), nn.BatchNorm1d(12) if norm else nn.Identity(), nn.ReLU(), nn.Linear(12, 4)]
    model = nn.Sequential(*layers).to(dtype)
    for i, parameter in enumerate(model.parameters()):
        parameter.data = random(*parameter.shape, seed=i, dtype=dtype)
    return model


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)


# From scores to the model


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_it_is_its_formula_at_the_attacked_inputs(row, mode, reduction):
    """The same x' from `pgd` and the same generator; loss and gradients, with batch normalisation, in both modes of attack."""
    function, _, from_scores, climbed, start = row
    model, twin, (x, y) = network(norm=True), network(norm=True), sample()
    got = function(model, x, y, **ATTACK, attack_mode=mode, generator=seeded(3), reduction=reduction)
    worst = pgd(twin, x, y, **ATTACK, loss=climbed, start=start, attack_mode=mode, generator=seeded(3))
    want = from_scores(twin(x), twin(worst), y, reduction=reduction)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    for ours, theirs in zip(gradients(got.sum(), model), gradients(want.sum(), twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_function_and_object_agree_bit_for_bit(row, dtype):
    function, make, *_ = row
    model, (x, y) = network(dtype), sample(dtype=dtype)
    made, generator = make(**ATTACK, seed=7), seeded(7)
    for step in range(2):
        want = function(model, x, y, **ATTACK, generator=generator)
        assert torch.equal(made.loss(model, (x, y, torch.arange(len(x))), step), want)
        assert want.dtype == dtype
    assert make(**ATTACK, seed=7)(model, x, y) == function(model, x, y, **ATTACK, generator=seeded(7))
    assert made(model, x, y) != make(**ATTACK, seed=8)(model, x, y)


def test_trades_equals_the_authors_order_of_passes():
    """From the same random numbers, for a model with batch normalisation: the same loss and gradients."""
    model, twin, (x, y) = network(norm=True), network(norm=True), sample()
    torch.manual_seed(5)
    want = trades_official_order(twin, x, y, radius=0.1, steps=4, step_size=0.03)
    torch.manual_seed(5)
    got = trades_loss(model, x, y, radius=0.1, bounds=(0.0, 1.0), steps=4, step_size=0.03)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients(got, model), gradients(want, twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_how_many_forward_passes_a_loss_takes():
    passes = []
    model = network(norm=True)
    model[0].register_forward_hook(lambda *_: passes.append(0))
    x, y = sample()

    def count(function, **options):
        passes.clear()
        function(model, x, y, **options)
        return len(passes)

    options = {"radius": 0.1, "bounds": (0.0, 1.0), "steps": 4}
    assert count(smooth_adversarial_loss, **options) == count(trades_loss, **options) == 4 + 3
    assert count(smooth_adversarial_loss, **options, attack_mode="train") == 4 + 2
    assert count(mart_loss, **options) == 4 + 2
    assert count(pgd_adversarial_loss, **options) == 4 + 1
    assert count(trades_official_order, radius=0.1, steps=4, step_size=0.1) == 2 * 4 + 3
    model.eval()
    assert count(smooth_adversarial_loss, **options) == count(trades_loss, **options) == 4 + 2


def test_batch_statistics_come_from_two_passes_and_none_of_the_attack(row):
    function, _, _, climbed, start = row
    x, y = sample()
    model, other = network(norm=True), network(norm=True)
    worst = pgd(model, x, y, **ATTACK, loss=climbed, start=start, generator=seeded())
    function(model, x, y, **ATTACK, generator=seeded())
    for inputs in (worst,) if climbed == "cross-entropy" and start == "uniform" else (x, worst):
        other(inputs)
    for name, value in model[1].named_buffers():
        torch.testing.assert_close(value, other[1].get_buffer(name))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_comp_sum_losses_have_the_worst_inputs_of_cross_entropy():
    model, (x, y) = network(), sample()
    found = [
        pgd(model, x, y, **ATTACK, norm=norm, loss=loss, generator=seeded())
        for norm in ("linf", "l2")
        for loss in (cross_entropy, comp_sum_rows, partial(comp_sum_loss, tau=1.5, reduction="none"))
    ]
    for ours, theirs in ((0, 1), (0, 2), (3, 4), (3, 5)):
        torch.testing.assert_close(found[ours], found[theirs], rtol=0, atol=1e-9)


def test_under_autocast_everything_is_trained(row):
    function, *_ = row
    model, (x, y) = network(torch.float32, norm=True), sample(dtype=torch.float32)
    want = function(copy.deepcopy(model), x, y, **ATTACK, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = function(model, x, y, **ATTACK, generator=seeded())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, want, rtol=0.2, atol=0.1)
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in (model[0].weight, model[3].weight))


def test_it_can_be_read_where_gradients_are_off(row):
    function, *_ = row
    model, (x, y) = network(norm=True).eval(), sample()
    want = function(model, x, y, **ATTACK, generator=seeded()).detach()
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            got = function(model, x.clone(), y.clone(), **ATTACK, generator=seeded())
        assert torch.equal(got, want)


def test_an_empty_batch_costs_nothing(row):
    function, make, *_ = row
    model = network()
    x, y = sample(rows=0)
    made = make(**ATTACK)
    for loss in (function(model, x, y, **ATTACK), made(model, x, y)):
        loss.backward()
        assert loss == 0
        assert all((p.grad == 0).all() for p in model.parameters())
    assert made.last.misclassified == 0


# Objects


def test_diagnostics_are_those_of_the_last_batch():
    model, (x, y) = network(), sample()
    made = SmoothAdversarialLoss(**ATTACK, nu=0.4, seed=3)
    assert made.last is None
    loss = made(model, x, y)
    assert float(made.last.found) == pytest.approx(float((loss - F.cross_entropy(model(x), y)).detach()) / 0.4)
    worst = pgd(model, x, y, **ATTACK, loss="margin-shift", generator=seeded(3))
    assert float(made.last.misclassified) == float((model(worst).argmax(1) != y).double().mean()) > 0
    assert not made.last.found.requires_grad
    trades = Trades(**ATTACK, beta=2.0)
    loss = trades(model, x, y)
    assert float(trades.last.found) == pytest.approx(float((loss - F.cross_entropy(model(x), y)).detach()) / 2)


def test_the_weight_grows_with_the_epochs():
    model, (x, y) = network(), sample()
    made = SmoothAdversarialLoss(**ATTACK, nu=0.8, ramp=4)
    with pytest.raises(LegatoValueError, match=r"call begin_epoch\(epoch\) before each epoch"):
        made(model, x, y)
    weights = []
    for epoch in range(6):
        made.begin_epoch(epoch)
        weights.append(made.nu)
    assert weights == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8])
    assert SmoothAdversarialLoss(**ATTACK, nu=0.8).nu == 0.8
    made.begin_epoch(0)
    assert torch.equal(made(model, x, y), F.cross_entropy(model(x), y))
    assert made.last is None
    made.begin_epoch(2)
    want = smooth_adversarial_loss(model, x, y, **ATTACK, nu=0.4, generator=seeded())
    assert torch.equal(made(model, x, y), want)
    other = SmoothAdversarialLoss(**ATTACK, nu=0.8, ramp=4)
    other.load_state_dict(made.state_dict())
    assert other.nu == made.nu == 0.4


def test_an_outer_loss_is_told_the_epoch_and_keeps_its_state():
    made, other = (
        PGDAdversarial(**ATTACK, outer=CompSumLoss(Warmup(end=1.7, epochs=5), reduction="none")) for _ in "ab"
    )
    made.begin_epoch(3)
    assert made.outer.tau == pytest.approx(1 + 0.7 * 3 / 5)
    other.load_state_dict(made.state_dict())
    assert other.outer.tau == made.outer.tau


def test_a_state_goes_on_where_it_was(row):
    """Also through the form that checkpoints have; the first state is taken before any batch."""
    _, make, *_ = row
    model, (x, y) = network(), sample()
    made = make(**ATTACK, seed=5)
    made.begin_epoch(1)
    for _ in range(3):
        tensors = {}
        state = unflatten(flatten(copy.deepcopy(made.state_dict()), "objective", tensors), tensors)
        other = make(**ATTACK)
        other.load_state_dict(state)
        copied = make(**ATTACK)
        copied.load_state_dict(other.state_dict())
        value = made(model, x, y)
        assert torch.equal(other(model, x, y), value)
        assert torch.equal(copied(model, x, y), value)


class Shuffled:
    """Two batches an epoch."""

    def __len__(self):
        return 2

    def epoch(self, epoch):
        x, y = sample(dtype=torch.float32)
        return iter([(x[:4], y[:4], torch.arange(4)), (x[4:], y[4:], torch.arange(4))])


def test_fit_trains_with_each_and_goes_on_exactly(row, tmp_path):
    _, make, *_ = row

    def run(epochs, **options):
        made = make(**ATTACK)
        check_parts(made, Shuffled())
        model = network(torch.float32, norm=True)
        done = fit(model, made, Shuffled(), epochs=epochs, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), **options)
        return model, done.history

    whole, history = run(2)
    assert len(history) == 2

    def stop(entry):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(2, folder=tmp_path, checkpoint_seconds=0.0, log=stop)
    resumed, again = run(2, folder=tmp_path, checkpoint_seconds=0.0)
    assert [entry["train_loss"] for entry in again] == [entry["train_loss"] for entry in history]
    for ours, theirs in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_pictures_and_a_residual_network(row):
    _, make, *_ = row
    torch.manual_seed(0)
    model = build("resnet", (1, 8, 8), 3)
    x, y = torch.rand(4, 1, 8, 8, generator=seeded()), torch.tensor([0, 1, 2, 0])
    for norm in ("linf", "l2"):
        make(radius=0.1, bounds=(0.0, 1.0), steps=2, norm=norm)(model, x, y).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# What is refused

BAD = [
    (SmoothAdversarialLoss, {"nu": -0.1}, "nu: expected a plain finite number >= 0; got -0.1. Fix: nu=0.5."),
    (SmoothAdversarialLoss, {"nu": math.nan}, "nu"),
    (SmoothAdversarialLoss, {"tau": -1.0}, "tau"),
    (SmoothAdversarialLoss, {"temperature": 0.0}, "temperature"),
    (SmoothAdversarialLoss, {"ramp": 1.5}, "ramp: expected a whole number of epochs >= 0; got 1.5"),
    (SmoothAdversarialLoss, {"ramp": -1}, "ramp"),
    (Trades, {"beta": -1.0}, "beta: expected a plain finite number >= 0; got -1.0. Fix: beta=6.0."),
    (Mart, {"beta": math.inf}, "beta"),
]
EVERY = [({"radius": 0.0}, "radius"), ({"steps": 0}, "steps"), ({"norm": "l3"}, "norm"), ({"seed": 0.5}, "seed"),
         ({"step_size": -1.0}, "step_size"), ({"attack_mode": "x"}, "attack_mode"), ({"bounds": (1.0, 1.0)}, "bounds")]  # fmt: skip
BAD += [
    (made, change, text) for made in (SmoothAdversarialLoss, Trades, Mart, PGDAdversarial) for change, text in EVERY
]


@pytest.mark.parametrize(("make", "change", "text"), BAD)
def test_what_the_objects_refuse(make, change, text):
    with pytest.raises(LegatoValueError) as problem:
        make(**ATTACK | change)
    assert text in str(problem.value)


def test_what_the_functions_refuse(row):
    function, make, *_ = row
    model, (x, y) = network(), sample()
    for call in (lambda **o: function(model, **o), lambda **o: make(**ATTACK)(model, o["x"], o["y"])):
        for change, text in (
            ({"x": 255 * x}, "within bounds"),
            ({"x": x * math.nan}, "finite"),
            ({"y": y + 1}, "got class 4"),
            ({"y": y[:3]}, "one class for each row"),
        ):
            with pytest.raises(LegatoValueError, match=text):
                call(**{"x": x, "y": y} | ATTACK | change)
    with pytest.raises(LegatoValueError, match="reduction"):
        function(model, x, y, **ATTACK, reduction="men")
    with pytest.raises(LegatoValueError, match=r"outer: expected one value a row, shape \[8\]; got shape \[\]"):
        pgd_adversarial_loss(model, x, y, **ATTACK, outer=F.cross_entropy)
