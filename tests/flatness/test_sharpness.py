"""Sharpness in a ball against quadratics with a known maximum, softmax regression in closed form, and invariances."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoValueError
from legato.flatness.sharpness import m_sharpness, rise_standard_error, sam_sharpness
from legato.flatness.surface import Surface


class Point(nn.Module):
    """Weights that are their own output."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(w, dtype=torch.float64))

    def forward(self, inputs):
        return self.w


def quadratic(a, b, w=None):
    """L(w) = b w + w A w / 2, at w (0 if not given)."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    model = Point(torch.zeros(len(b)) if w is None else w)
    return Surface(model, lambda w, _: b @ w + w @ a @ w / 2, [(torch.zeros(1), torch.zeros(1))])


def trust_region_maximum(a, g, radius):
    """max of g e + e A e / 2 over |e| <= radius, exact: e = (mu - A)^-1 g with mu >= max(lambda_max, 0) and mu (|e| - radius) = 0."""
    values, vectors = np.linalg.eigh(a)
    c = vectors.T @ g

    def length(mu):
        return float(np.sqrt(((c / (mu - values)) ** 2).sum()))

    if values[-1] < 0 and length(0.0) <= radius:
        e = -c / values
    else:
        low = max(values[-1], 0.0)
        at_top = np.isclose(values, values[-1]) & (values[-1] >= 0)
        rest = np.where(at_top, 0, c / np.where(at_top, 1, low - values))
        if np.linalg.norm(c[at_top]) < 1e-12 and np.linalg.norm(rest) <= radius:  # the hard case
            e = rest
            e[-1] = math.sqrt(radius**2 - rest @ rest)
        else:
            mu = brentq(
                lambda mu: length(mu) - radius, low + 1e-12, low + 2 * np.linalg.norm(g) / radius + 1e-9, xtol=1e-14
            )
            e = c / (mu - values)
    return float(c @ e + (values * e**2).sum() / 2)


def symmetric(values, seed):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return basis * np.array(values) @ basis.T


def digits(rows=60, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator, dtype=dtype), torch.randint(3, (rows,), generator=generator)


def network(dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


@pytest.mark.parametrize("seed", range(10))
def test_one_step_is_at_most_more_steps_is_at_most_the_maximum(seed):
    dice = np.random.default_rng(seed)
    size = int(dice.integers(2, 6))
    a, b, radius = symmetric(dice.normal(size=size) * 2, seed), dice.normal(size=size), float(dice.uniform(0.1, 2))
    surface, exact = quadratic(a, b), trust_region_maximum(a, b, radius)
    one, few, many = (sam_sharpness(surface, radius, steps).sharpness for steps in (1, 6, 30))
    again = sam_sharpness(surface, radius, 30, restarts=3).sharpness
    assert 0 <= one <= few <= many <= again <= exact * (1 + 1e-9)
    assert few >= 0.8 * exact and again >= 0.995 * exact


@pytest.mark.parametrize(
    ("values", "g", "radius", "maximum"),
    [
        ([2.0, 1.0], [0.0, 0.0], 0.5, 0.25),  # lambda_max radius^2 / 2
        ([-1.0, -2.0], [0.3, 0.0], 5.0, 0.045),  # inside: g^2 / (2 |lambda|)
        ([0.0, 0.0], [3.0, 4.0], 0.1, 0.5),  # a plane: radius |g|
        ([1.0, 1.0], [3.0, 4.0], 2.0, 12.0),  # a bowl: radius |g| + radius^2 / 2
    ],
)
def test_the_oracle_itself(values, g, radius, maximum):
    assert trust_region_maximum(np.diag(values), np.array(g), radius) == pytest.approx(maximum, rel=1e-6)


def test_one_step_on_a_quadratic():
    """At e = radius g/|g| the rise is radius |g| + radius^2 g A g / (2 |g|^2), here also below 0."""
    a, w = symmetric([2.0, 0.5, -9.0], 3), torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)
    b = np.array([0.2, -0.1, 0.05])
    g = b + a @ w.numpy()
    surface = quadratic(a, b, w)
    for radius in (0.05, 2.0):
        want = radius * np.linalg.norm(g) + radius**2 * g @ a @ g / (2 * g @ g)
        found = sam_sharpness(surface, radius)
        assert found.rises == (pytest.approx(want, rel=1e-12),)
        assert found.sharpness == max(0, found.rises[0])
        assert found.first_order == pytest.approx(radius * np.linalg.norm(g))
        assert found.gradient_norm == pytest.approx(np.linalg.norm(g))
    assert want < 0 and not found.offset.any()


def test_the_adaptive_ball_on_a_plane_and_a_quadratic():
    """e = radius T^2 g / |T g| with T = |w| + eta; on a plane the rise is radius |T g|, which no e in the ball passes."""
    w, b = torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64), np.array([1.0, 0.3, 5.0])
    for eta in (0.0, 0.1):
        t = w.abs().numpy() + eta
        flat = sam_sharpness(quadratic(np.zeros((3, 3)), b, w), 0.2, steps=7, adaptive=True, eta=eta)
        assert flat.sharpness == pytest.approx(0.2 * np.linalg.norm(t * b), rel=1e-12) == flat.first_order
        a = symmetric([1.0, 2.0, 0.1], 0)
        g = b + a @ w.numpy()
        e = 0.2 * t**2 * g / np.linalg.norm(t * g)
        found = sam_sharpness(quadratic(a, b, w), 0.2, adaptive=True, eta=eta)
        assert found.sharpness == pytest.approx(g @ e + e @ a @ e / 2, rel=1e-10)
        np.testing.assert_allclose(found.offset.numpy(), e, rtol=1e-10)
        exact = trust_region_maximum(t[:, None] * a * t, t * g, 0.2)
        many = sam_sharpness(quadratic(a, b, w), 0.2, 30, adaptive=True, eta=eta)
        assert found.sharpness <= many.sharpness == pytest.approx(exact, rel=1e-6)
        assert np.linalg.norm(many.offset.numpy()[t > 0] / t[t > 0]) <= 0.2 * (1 + 1e-12)


def test_softmax_regression_in_closed_form():
    """dL/dW = (p - onehot)' x / N; the loss is convex, so that it rises on either side of a step by at least the gradient's part."""
    x, y = digits()
    model = nn.Linear(6, 3, bias=False).double()
    w = model.weight.detach().numpy()

    def loss(w):
        h = x.numpy() @ w.T
        return float((np.log(np.exp(h).sum(1)) - h[np.arange(60), y.numpy()]).mean())

    p = torch.softmax(x @ model.weight.detach().T, 1) - F.one_hot(y, 3)
    g = (p.T @ x / 60).numpy()
    found = sam_sharpness(Surface(model, F.cross_entropy, [(x[:40], y[:40]), (x[40:], y[40:])]), 0.3)
    assert found.loss == pytest.approx(loss(w), rel=1e-12)
    assert found.sharpness == pytest.approx(loss(w + 0.3 * g / np.linalg.norm(g)) - loss(w), rel=1e-10)
    assert found.sharpness >= found.first_order == pytest.approx(0.3 * np.linalg.norm(g))
    assert (found.rows, found.values, found.gradients, found.mode) == (60, 2, 1, "eval")


def rescaled(model, a):
    """The same function: the first layer times a, the second layer's weight divided by it."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight *= a
        other[0].bias *= a
        other[2].weight /= a
    return other


@pytest.mark.parametrize("steps", [1, 8])
def test_asam_is_invariant_to_rescaled_layers_and_sam_is_not(steps):
    x, y = digits()
    model, other = network(), rescaled(network(), 4.0)
    one, two = (Surface(m, F.cross_entropy, [(x, y)]) for m in (model, other))
    assert one.value() == pytest.approx(two.value(), rel=1e-12)
    adaptive = [sam_sharpness(s, 0.5, steps, adaptive=True).sharpness for s in (one, two)]
    assert adaptive[0] == pytest.approx(adaptive[1], rel=1e-9)
    plain = [sam_sharpness(s, 0.1, steps).sharpness for s in (one, two)]
    assert abs(plain[1] / plain[0] - 1) > 0.3
    near = [sam_sharpness(s, 0.5, steps, adaptive=True, eta=0.5).sharpness for s in (one, two)]
    assert near[0] != pytest.approx(near[1], rel=1e-3)  # eta > 0 gives the invariance up


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_order_of_units_does_not_matter(adaptive):
    x, y = digits()
    model = network()
    other, order = copy.deepcopy(model), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        other[0].weight[:] = model[0].weight[order]
        other[0].bias[:] = model[0].bias[order]
        other[2].weight[:] = model[2].weight[:, order]
    found = [sam_sharpness(Surface(m, F.cross_entropy, [(x, y)]), 0.2, 5, adaptive=adaptive) for m in (model, other)]
    np.testing.assert_allclose(found[0].rises, found[1].rises, rtol=1e-9)


def test_more_steps_find_what_other_starts_find():
    """Other starts find nothing higher, and the point that is handed out is in the ball and as high as it is said to be."""
    x, y = digits(20)
    surface = Surface(network(), F.cross_entropy, [(x, y)])
    found = [sam_sharpness(surface, 0.5, steps).sharpness for steps in (1, 2, 5, 20)]
    assert found == sorted(found)
    best = sam_sharpness(surface, 0.5, 20, restarts=3, generator=torch.Generator().manual_seed(3))
    assert found[-1] <= best.sharpness <= found[-1] * 1.01
    with surface.at(best.offset):
        assert surface.value() - best.loss == pytest.approx(best.sharpness, rel=1e-12)
    assert float(best.offset.norm()) <= 0.5 * (1 + 1e-12)


def test_at_a_stationary_point_restarts_find_the_curvature():
    surface = quadratic(symmetric([4.0, 1.0, -2.0], 5), [0.0, 0.0, 0.0])
    assert sam_sharpness(surface, 0.5, 20).sharpness == 0.0
    assert sam_sharpness(surface, 0.5, 20, restarts=1).sharpness == pytest.approx(4.0 * 0.25 / 2, rel=1e-4)
    assert sam_sharpness(quadratic(-np.eye(2), [0.0, 0.0]), 0.5, 5, restarts=2).sharpness == 0.0  # at a top


def test_m_sharpness_is_the_mean_over_groups():
    x, y = digits(50)
    model = network()
    groups = list(zip(x.split(16), y.split(16), strict=True))
    found = m_sharpness(model, F.cross_entropy, groups, 0.1)
    each = [sam_sharpness(Surface(model, F.cross_entropy, [group]), 0.1) for group in groups]
    rows = np.array([16, 16, 16, 2])
    assert found.each == tuple(one.sharpness for one in each)
    assert found.sharpness == pytest.approx(np.average(found.each, weights=rows), rel=1e-12)
    whole = sam_sharpness(Surface(model, F.cross_entropy, groups), 0.1)
    assert found.loss == pytest.approx(whole.loss, rel=1e-12)
    assert found.gradient_norm == pytest.approx(
        np.average([one.gradient_norm for one in each], weights=rows), rel=1e-12
    )
    assert found.gradient_norm > whole.gradient_norm and found.sharpness > whole.sharpness
    assert (found.groups, found.group_rows, found.rows) == (4, 16, 50)
    even = m_sharpness(model, F.cross_entropy, groups[:3], 0.1)
    assert even.standard_error == pytest.approx(np.std(even.each, ddof=1) / math.sqrt(3), rel=1e-12)
    one = m_sharpness(model, F.cross_entropy, [(x, y)], 0.1, steps=3, adaptive=True)
    assert one.sharpness == sam_sharpness(Surface(model, F.cross_entropy, [(x, y)]), 0.1, 3, adaptive=True).sharpness
    assert math.isnan(one.standard_error)


def test_the_standard_error_of_a_rise():
    """L = w mean(t): each row rises by e t, so that the error is |e| s / sqrt(N), however the rows stand in batches."""
    t = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batches = [(t[:35], t[:35]), (t[35:], t[35:]), (t[:0], t[:0])]
    surface = Surface(Point([2.0]), lambda w, t: w[0] * t.mean(), batches)
    found = rise_standard_error(surface, torch.tensor([-0.7], dtype=torch.float64), groups=60)
    assert found == pytest.approx(0.7 * float(t.std()) / math.sqrt(60), rel=1e-12)
    whole = Surface(Point([2.0]), lambda w, t: w[0] * t.mean(), batches, mode="train")
    means = np.array([float(t[:35].mean()), float(t[35:].mean())])
    share = np.array([35, 25]) / 60
    want = 0.7 * math.sqrt(2 * ((share * (means - share @ means)) ** 2).sum())
    assert rise_standard_error(whole, torch.tensor([-0.7], dtype=torch.float64)) == pytest.approx(want, rel=1e-12)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
        self.calls = 0

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nothing_is_left_behind(mode):
    x, y = digits(dtype=torch.float32)
    torch.manual_seed(0)
    model = Normed()
    model(x)  # running statistics that are not the first ones
    model.net[0].eval()
    F.cross_entropy(model(x), y).backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    modes, dice = [m.training for m in model.modules()], torch.get_rng_state()
    batches = [(x[:30], y[:30]), (x[30:], y[30:])]
    surface = Surface(model, F.cross_entropy, batches, mode)
    found = sam_sharpness(surface, 0.1, 4, restarts=1)
    m_sharpness(model, F.cross_entropy, batches, 0.1, adaptive=True, mode=mode)
    rise_standard_error(surface, found.offset)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(dice, torch.get_rng_state())
    assert found == sam_sharpness(surface, 0.1, 4, restarts=1)
    assert found.mode == mode


def test_a_seed_gives_the_same_and_another_seed_another_climb():
    surface = quadratic(symmetric([4.0, 1.0, -2.0], 5), [0.1, 0.0, 0.0])

    def climbs(seed):
        return sam_sharpness(surface, 0.5, 3, restarts=2, generator=torch.Generator().manual_seed(seed)).rises

    assert climbs(0) == climbs(0) != climbs(1)


def test_float32_agrees_with_float64():
    x, y = digits()
    wide = sam_sharpness(Surface(network(), F.cross_entropy, [(x, y)]), 0.1, 5)
    narrow = sam_sharpness(Surface(network().float(), F.cross_entropy, [(x.float(), y)]), 0.1, 5)
    assert narrow.sharpness == pytest.approx(wide.sharpness, rel=1e-4)
    assert narrow.offset.dtype == torch.float32


def test_a_loss_without_bound_in_the_ball_is_reported_as_such():
    surface = Surface(Point([1.0]), lambda w, _: 1 / (1.5 - w[0]).clamp_min(0), [(torch.zeros(1), torch.zeros(1))])
    assert sam_sharpness(surface, 0.6, 5).sharpness == math.inf


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"radius": 0.0}, "radius: expected a finite number > 0; got 0.0"),
        ({"radius": math.inf}, "radius"),
        ({"radius": math.nan}, "radius"),
        ({"steps": 0}, "steps: expected a whole number >= 1"),
        ({"steps": 1.5}, "steps"),
        ({"eta": -1.0}, "eta"),
        ({"restarts": -1}, "restarts"),
    ],
)
def test_arguments_out_of_range(options, words):
    with pytest.raises(LegatoValueError, match=words):
        sam_sharpness(quadratic(np.eye(2), [1.0, 0.0]), **options)


def test_what_cannot_be_measured_is_named():
    with pytest.raises(LegatoValueError, match="finite loss at the weights; got nan"):
        sam_sharpness(quadratic(np.eye(2), [1.0, 0.0], torch.tensor([math.nan, 0.0])))
    with pytest.raises(LegatoValueError, match="one group or more"):
        m_sharpness(network(), F.cross_entropy, [])
    with pytest.raises(LegatoValueError, match="radius"):
        m_sharpness(network(), F.cross_entropy, [], -1.0)
    with pytest.raises(LegatoValueError, match="groups: expected at least 2"):
        rise_standard_error(quadratic(np.eye(2), [1.0, 0.0]), torch.zeros(2), groups=1)
