"""Attacks: exact suprema of linear models, what must stay untouched, those of other packages, and what is refused."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoTypeError, LegatoValueError
from legato.losses.attack_losses import cross_entropy, dlr, kl, margin, squared_margin_shift, toward
from legato.losses.attacks import pgd
from legato.losses.ball import Ball
from legato.losses.robustness import worst_case

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


def differences(weight, y):
    """A = rows w_y - w_j over j != y."""
    return weight[y] - torch.cat([weight[:y], weight[y + 1 :]])


def vertices(dimensions, radius):
    return radius * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=dimensions)), dtype=torch.float64)


class Counting(nn.Module):
    """A model that counts the rows of each of its forward passes."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, []

    def forward(self, x):
        self.rows.append(len(x))
        return self.inner(x)


# What is climbed


def test_attack_losses_are_their_definitions():
    h, y = random(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    clean = random(6, 4, seed=1)
    for i, (row, k) in enumerate(zip(h.tolist(), y.tolist(), strict=True)):
        others = max(v for j, v in enumerate(row) if j != k)
        ranked = sorted(row)
        shift = sum(((row[k] - row[j]) - float(clean[i, k] - clean[i, j])) ** 2 for j in range(4) if j != k)
        assert float(margin(h, y)[i]) == pytest.approx(others - row[k], rel=1e-14)
        assert float(dlr(h, y)[i]) == pytest.approx((others - row[k]) / (ranked[-1] - ranked[-3]), rel=1e-10)
        assert float(squared_margin_shift(h, y, clean)[i]) == pytest.approx(shift, rel=1e-13)
        assert float(toward((y + 1) % 4)(h, y)[i]) == pytest.approx(row[(k + 1) % 4] - row[k], rel=1e-14)
        assert float(cross_entropy(h, y)[i]) == pytest.approx(
            math.log(sum(math.exp(v - row[k]) for v in row)), rel=1e-13
        )
    want = F.kl_div(h.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(kl(clean, h), want, rtol=1e-12, atol=1e-14)


@given(st.floats(-20, 20), st.floats(0.1, 10), st.integers(0, 100))
def test_what_a_change_of_scores_does_to_them(shift, scale, seed):
    h, clean, y = random(5, 4, seed=seed), random(5, 4, seed=seed + 1), torch.arange(5) % 4
    torch.testing.assert_close(dlr(scale * h + shift, y), dlr(h, y), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(squared_margin_shift(h + shift, y, clean), squared_margin_shift(h, y, clean))
    torch.testing.assert_close(kl(clean, h + shift), kl(clean, h), rtol=1e-9, atol=1e-12)
    assert (kl(clean, h) >= 0).all()


def test_a_probability_of_zero_gives_no_nan():
    p = torch.tensor([[0.0, -math.inf, 1.0], [0.0, -1e9, 1e9], [1.0, 2.0, 3.0]], requires_grad=True)
    q = torch.tensor([[0.0, -math.inf, 0.0], [1e9, -1e9, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
    value = kl(p, q)
    value.sum().backward()
    assert value.isfinite().all()
    assert value[2] == 0
    assert p.grad.isfinite().all()
    assert q.grad.isfinite().all()


# Exact suprema


@pytest.mark.parametrize("seed", range(3))
def test_l2_supremum_of_the_margin_shift_is_the_largest_singular_value(seed):
    """Linear scores: max over ||d||_2 <= r of ||A d||_2 = r sigma_max(A)."""
    weight, x, y = random(4, 7, seed=seed), random(3, 7, seed=9), torch.tensor([0, 2, 3])
    model = linear(weight)
    worst = pgd(
        model, x, y, norm="l2", radius=0.7, steps=60, step_size=0.7, loss="margin-shift", bounds=FREE, generator=seeded()
    )  # fmt: skip
    got = squared_margin_shift(model(worst), y, model(x)).sqrt()
    exact = 0.7 * torch.stack([torch.linalg.matrix_norm(differences(weight, k), 2) for k in y])
    assert (got <= exact * (1 + 1e-12)).all()
    assert (got >= 0.99 * exact).all()


def test_l_inf_supremum_for_two_classes_is_the_l1_norm():
    weight, x, y = random(2, 9), random(4, 9, seed=1), torch.tensor([0, 1, 0, 1])
    model = linear(weight)
    worst = pgd(model, x, y, radius=0.3, steps=10, loss="margin-shift", bounds=FREE, generator=seeded())
    got = squared_margin_shift(model(worst), y, model(x)).sqrt()
    exact = 0.3 * (weight[0] - weight[1]).abs().sum()
    torch.testing.assert_close(got, exact.expand(4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_l_inf_supremum_over_all_vertices(seed):
    """A convex function is largest at a vertex of the box; gradient ascent from 20 starts finds it."""
    weight, x, y = random(4, 6, seed=seed), random(3, 6, seed=9), torch.tensor([0, 1, 3])
    model = linear(weight)
    worst = pgd(model, x, y, radius=0.5, steps=8, restarts=20, loss="margin-shift", bounds=FREE, generator=seeded())
    got = squared_margin_shift(model(worst), y, model(x)).sqrt()
    exact = torch.stack([(vertices(6, 0.5) @ differences(weight, k).T).norm(dim=1).max() for k in y])
    assert (got <= exact * (1 + 1e-12)).all()
    assert (got >= 0.99 * exact).all()


def test_one_l2_step_goes_along_the_gradient_and_back_to_the_ball():
    weight, x, y = random(2, 5), random(2, 5, seed=1), torch.tensor([0, 1])
    direction = weight[1] - weight[0]
    worst = pgd(
        linear(weight), x, y, norm="l2", radius=0.1, steps=1, step_size=1e6, loss="margin", bounds=FREE, generator=seeded()
    )  # fmt: skip
    want = x + 0.1 * torch.stack([direction, -direction]) / direction.norm()
    torch.testing.assert_close(worst, want, rtol=0, atol=1e-7)


# Where the attacked inputs lie


@given(
    st.sampled_from(["linf", "l2"]), st.sampled_from(["uniform", "gaussian"]), st.floats(1e-3, 2), st.integers(0, 99)
)
def test_attacked_inputs_stay_in_ball_and_bounds(norm, start, radius, seed):
    low = torch.tensor([-1.0, -0.5]).reshape(2, 1, 1)
    x = random(3, 2, 3, 3, seed=seed, dtype=torch.float32).clamp(low, torch.tensor(1.0))
    model = nn.Sequential(nn.Flatten(), linear(random(3, 18, seed=seed, dtype=torch.float32)))
    worst = pgd(
        model, x, torch.arange(3), norm=norm, radius=radius, steps=2, step_size=radius, start=start, bounds=(low, 1.0),
        generator=seeded(seed),
    )  # fmt: skip
    ord_ = math.inf if norm == "linf" else 2
    assert (torch.linalg.vector_norm((worst - x).flatten(1), ord=ord_, dim=1) <= radius * (1 + 1e-5) + 1e-7).all()
    assert (worst >= low).all()
    assert (worst <= 1).all()
    assert worst.dtype == x.dtype
    assert not worst.requires_grad
    assert not torch.equal(worst, x)


def test_starts_are_uniform_in_the_ball():
    """(length/radius)^D is uniform for l2, and each coordinate for l-inf: both have mean 1/2 and variance 1/12."""
    x = torch.zeros(4000, 3, dtype=torch.float64)
    l2 = Ball(2.0, FREE, "l2").start(x, "uniform", seeded())
    share = (l2.norm(dim=1) / 2) ** 3
    box = Ball(2.0, FREE).start(x, "uniform", seeded()) / 4 + 0.5
    for values in (share, *box.T):
        assert float(values.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(values.var()) == pytest.approx(1 / 12, abs=0.005)
    assert l2.mean(0).abs().max() < 0.1
    gaussian = Ball(2.0, FREE).start(x, "gaussian", seeded())
    assert float(gaussian.std()) == pytest.approx(1e-3, rel=0.05)


def test_the_smallest_gradient_still_moves_an_l2_attack():
    """The square of a gradient of 1e-30 is 0 in float32."""
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    options = {"norm": "l2", "radius": 1.0, "steps": 5, "bounds": FREE, "loss": "margin"}
    small = pgd(linear(1e-30 * random(2, 3, dtype=torch.float32)), x, y, **options, generator=seeded())
    large = pgd(linear(random(2, 3, dtype=torch.float32)), x, y, **options, generator=seeded())
    torch.testing.assert_close(small, large)


# What is kept, and what is touched


def test_of_several_starts_each_row_keeps_the_best():
    model = nn.Sequential(linear(random(8, 4)), nn.Tanh(), linear(random(3, 8, seed=1)))
    x, y = random(20, 4, seed=2), torch.arange(20) % 3
    options = {"radius": 1.0, "steps": 2, "bounds": FREE}
    generator = seeded()
    alone = torch.stack([cross_entropy(model(pgd(model, x, y, **options, generator=generator)), y) for _ in range(4)])
    together = cross_entropy(model(pgd(model, x, y, **options, restarts=4, generator=seeded())), y)
    torch.testing.assert_close(together, alone.amax(0))
    assert not torch.equal(alone[0], together)


def test_the_best_step_is_no_worse_than_any():
    model = nn.Sequential(linear(random(8, 4)), nn.Tanh(), linear(random(3, 8, seed=1)))
    x, y = random(20, 4, seed=2), torch.arange(20) % 3
    seen = []

    def watched(h, target):
        seen.append(cross_entropy(h, target))
        return seen[-1]

    best = pgd(model, x, y, radius=1.0, steps=4, step_size=1.9, bounds=FREE, loss=watched, best_step=True)
    assert len(seen) == 5
    torch.testing.assert_close(cross_entropy(model(best), y), torch.stack(seen).amax(0))


@pytest.mark.parametrize(("loss", "passes"), [("cross-entropy", 3), ("kl", 4), ("margin-shift", 4)])
def test_clean_scores_are_computed_once(loss, passes):
    model = Counting(linear(random(3, 4)))
    x, y = random(2, 4, seed=1), torch.tensor([0, 1])
    pgd(model, x, y, radius=0.1, steps=3, bounds=FREE, loss=loss)
    assert len(model.rows) == passes
    pgd(model, x, y, radius=0.1, steps=3, restarts=2, bounds=FREE, loss=loss)
    assert len(model.rows) == passes + (8 if passes == 3 else 9)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_model_is_left_as_it_was(mode):
    frozen = nn.BatchNorm1d(5).eval()
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), frozen, nn.Linear(5, 3)).train()
    frozen.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model[0].weight.grad = torch.ones(5, 4)
    modes = []
    model[1].register_forward_hook(lambda layer, *_: modes.append(layer.training))
    x, y = random(6, 4, dtype=torch.float32), torch.arange(6) % 3
    pgd(model, x, y, radius=0.1, steps=2, bounds=FREE, loss="kl", attack_mode=mode)
    assert set(modes) == {mode == "train"}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [layer.training for layer in model] == [True, True, True, False, True]
    assert model[1].track_running_stats
    assert torch.equal(model[0].weight.grad, torch.ones(5, 4))
    assert model[4].weight.grad is None
    with pytest.raises(LegatoValueError):
        pgd(model, x, y, radius=0.1, steps=2, bounds=FREE, loss=lambda h, target: h, attack_mode=mode)
    assert [layer.training for layer in model] == [True, True, True, False, True]


def test_it_works_where_gradients_are_off_and_repeats():
    model, x, y = linear(random(3, 4)), random(5, 4, seed=1), torch.arange(5) % 3
    before = torch.get_rng_state()
    first = pgd(model, x, y, radius=0.1, bounds=FREE, generator=seeded())
    assert torch.equal(before, torch.get_rng_state())
    with torch.no_grad():
        assert torch.equal(first, pgd(model, x, y, radius=0.1, bounds=FREE, generator=seeded()))
    with torch.inference_mode():
        assert torch.equal(first, pgd(model, x.clone(), y.clone(), radius=0.1, bounds=FREE, generator=seeded()))
    assert not torch.equal(first, pgd(model, x, y, radius=0.1, steps=1, bounds=FREE, generator=seeded(1)))


def test_short_types_are_attacked_in_float32():
    """Ten steps of 0.001 from 0.9 are lost in bfloat16, whose neighbours are 0.004 apart there, but not in float32."""
    model = linear(random(3, 4, dtype=torch.float32))
    x, y = torch.full((5, 4), 0.9, dtype=torch.bfloat16), torch.arange(5) % 3
    options = {"radius": 0.01, "step_size": 0.001, "bounds": (0.0, 1.0), "start": "gaussian", "loss": "margin"}
    short = pgd(model.bfloat16(), x, y, **options, generator=seeded())
    assert short.dtype == torch.bfloat16
    assert ((short - x).abs() >= 0.007).float().mean() > 0.8
    long = pgd(model.double(), x.double(), y, **options, generator=seeded())
    assert long.dtype == torch.float64


def test_an_empty_batch_comes_back():
    model, x, y = linear(random(3, 4)), torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    for norm in ("linf", "l2"):
        for loss in ("margin", "kl"):
            assert pgd(model, x, y, radius=0.1, bounds=FREE, norm=norm, loss=loss, restarts=2).shape == (0, 4)
    found = worst_case(model, x, y, radius=0.1, bounds=FREE)
    assert math.isnan(found.accuracy)


# What is refused

BAD = [
    ({"radius": 0.0}, LegatoValueError, "radius: expected a plain finite number > 0; got 0.0"),
    ({"radius": -0.1}, LegatoValueError, "radius"),
    ({"radius": math.nan}, LegatoValueError, "radius"),
    ({"radius": torch.tensor(0.1)}, LegatoValueError, "radius"),
    ({"steps": 0}, LegatoValueError, "steps: expected a whole number >= 1; got 0"),
    ({"steps": 2.5}, LegatoValueError, "steps"),
    ({"restarts": 0}, LegatoValueError, "restarts"),
    ({"step_size": 0.0}, LegatoValueError, "None is radius/4"),
    ({"norm": "l1"}, LegatoValueError, "norm: expected one of l2, linf; got 'l1'"),
    ({"start": "zero"}, LegatoValueError, "start"),
    ({"attack_mode": "evil"}, LegatoValueError, "Did you mean 'eval'"),
    ({"loss": "crossentropy"}, LegatoValueError, "Did you mean 'cross-entropy'"),
    ({"loss": lambda h, y: h.sum()}, LegatoValueError, 'one value a row, shape [2]; got shape []. Fix: use reduction="none"'),
    ({"loss": "dlr", "model": linear(torch.zeros(2, 3))}, LegatoValueError, "at least 3 scores a row"),
    ({"loss": "margin", "model": linear(torch.zeros(1, 3))}, LegatoValueError, "at least 2 scores a row"),
    ({"bounds": (1.0, 0.0)}, LegatoValueError, "low < high; got (1, 0)"),
    ({"bounds": (0.0, math.nan)}, LegatoValueError, "bounds"),
    ({"bounds": 1.0}, LegatoValueError, "bounds: expected (low, high)"),
    ({"bounds": (torch.zeros(2), 1.0)}, LegatoValueError, "broadcast to the inputs [2, 3]; got shape [2]"),
    ({"x": torch.full((2, 3), 2.0)}, LegatoValueError, "inputs: expected values within bounds; got 2, outside (0, 1). Fix: bounds are"),
    ({"x": torch.full((2, 3), -0.5)}, LegatoValueError, "got -0.5, outside"),
    ({"x": torch.full((2, 3), math.nan)}, LegatoValueError, "inputs: expected finite numbers"),
    ({"x": torch.zeros(2, 3, dtype=torch.int64)}, LegatoTypeError, "got torch.int64. Fix: for pictures, x.float() / 255"),
    ({"x": [[0.0]]}, LegatoTypeError, "got list"),
    ({"y": torch.tensor([0])}, LegatoValueError, "one class for each row of the inputs; got inputs [2, 3] and classes [1]"),
    ({"y": torch.tensor([0, 2])}, LegatoValueError, "target: expected classes in 0 .. 1, for 2 logits a row; got class 2"),
    ({"y": torch.tensor([0, -100])}, LegatoValueError, "got class -100"),
    ({"y": torch.tensor([0.0, 1.0])}, LegatoValueError, "target: expected int64"),
    ({"model": lambda x: x[:, 0]}, LegatoValueError, "model: expected scores of shape [2, C]; got shape [2]"),
    ({"model": lambda x: (x, x)}, LegatoTypeError, "got tuple"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "text"), BAD)
def test_what_pgd_refuses(change, kind, text):
    usual = {"model": linear(torch.zeros(2, 3)), "x": torch.zeros(2, 3), "y": torch.tensor([0, 1])}
    settings = usual | {"radius": 0.1, "bounds": (0.0, 1.0)} | change
    with pytest.raises(kind) as problem:
        pgd(settings.pop("model"), settings.pop("x"), settings.pop("y"), **settings)
    assert text in str(problem.value)
