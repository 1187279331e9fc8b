"""Landscapes against closed forms and invariances, and the line between two models against its ends."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoValueError
from legato.flatness.landscape import Path, filter_normalised_direction, landscape, path_between
from legato.flatness.surface import Surface


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(count=40, seed=0):
    return torch.randn(count, 6, generator=dice(seed), dtype=torch.float64), torch.randint(
        3, (count,), generator=dice(seed)
    )


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def normed(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        for _ in range(30):
            net(3 * torch.randn(16, 6, dtype=torch.float64) + seed)
        return net.eval()


def surface_of(model, batches=None, mode="eval"):
    return Surface(model, F.cross_entropy, batches or [rows()], mode)


def error(output, target):
    return (output.argmax(1) != target).double().mean()


def test_each_filter_has_the_norm_that_it_has_in_the_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
    surface = surface_of(model, [(torch.zeros(2, 2, 3, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.long))])
    d = filter_normalised_direction(surface, dice())
    for name, block in surface.blocks.items():
        weight, part = model.get_parameter(name), d[block]
        if weight.dim() < 2:
            assert not part.any(), name
        else:
            norms = [t.detach().reshape(len(weight), -1).norm(dim=1) for t in (part, weight)]
            np.testing.assert_allclose(*norms, rtol=1e-12, err_msg=name)
    drawn = torch.randn(4, 2, 3, 3, generator=dice(), dtype=torch.float64)[0]  # the direction itself is the drawn one
    np.testing.assert_allclose(d[:18].view(2, 3, 3) / d[:18].norm(), drawn / drawn.norm(), rtol=1e-12)
    assert torch.equal(d, filter_normalised_direction(surface, dice()))
    assert not torch.equal(d, filter_normalised_direction(surface, dice(1)))


def test_rescaled_layers_have_the_same_landscape():
    """A ReLU network times a in one layer and 1/a in the next is the same function, and its directions scale with it."""
    model, other = network(), network()
    with torch.no_grad():
        other[0].weight *= 5
        other[0].bias *= 5
        other[2].weight /= 5
    one, two = (landscape(surface_of(m), dice(), points=5) for m in (model, other))
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-10)
    assert one.lengths[0] != pytest.approx(two.lengths[0], rel=0.1)


class Matrix(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, _):
        return self.w


def test_the_loss_on_a_line_and_on_a_grid_is_that_of_the_quadratic():
    w = torch.randn(2, 3, generator=dice(), dtype=torch.float64)
    c = torch.randn(2, 3, generator=dice(1), dtype=torch.float64)
    surface = Surface(Matrix(w.clone()), lambda w, _: (c * w**2).sum(), [(torch.zeros(1), torch.zeros(1))])
    line = landscape(surface, dice(2), points=7, span=0.6)
    d = line.directions[0].view(2, 3)
    np.testing.assert_allclose(line.steps, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6], atol=1e-15)
    np.testing.assert_allclose(line.loss, [float((c * (w + a * d) ** 2).sum()) for a in line.steps], rtol=1e-12)
    assert line.loss[3] == surface.value() and line.metric is None
    assert line.lengths == (pytest.approx(float(d.norm())),)
    grid = landscape(surface, dice(2), axes=2, points=3)
    d, e = grid.directions.view(2, 2, 3)
    want = [[float((c * (w + a * d + b * e) ** 2).sum()) for b in grid.steps] for a in grid.steps]
    np.testing.assert_allclose(grid.loss, want, rtol=1e-12)
    assert torch.equal(d, line.directions[0].view(2, 3)) and not torch.equal(d, e)


def test_directions_of_ones_own():
    surface = surface_of(network())
    d = torch.ones(1, surface.size, dtype=torch.float64)
    found = landscape(surface, dice(), points=3, span=0.5, directions=d)
    with surface.at(0.5 * d[0]):
        assert found.loss[2] == surface.value()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_metric_comes_from_the_same_passes_and_nothing_is_left_behind(mode):
    x, y = rows()
    model = normed()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    calls, ticks = [], []

    def counted(output, target):
        calls.append(len(target))
        return error(output, target)

    surface = surface_of(model, [(x[:25], y[:25]), (x[25:], y[25:])], mode)
    found = landscape(surface, dice(), points=5, metric=counted, tick=lambda: ticks.append(1))
    assert calls == [25, 15] * 5 and len(ticks) == 5
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(state, torch.get_rng_state()) and all(p.grad is None for p in model.parameters())
    alone = Surface(model, error, surface.batches, mode)
    for a, share in zip(found.steps, found.metric, strict=True):
        with alone.at(a * found.directions[0]):
            assert share == pytest.approx(alone.value(), abs=1e-12)
    again = landscape(surface, dice(), points=5)
    np.testing.assert_array_equal(again.loss, found.loss)
    assert (found.mode, found.rows) == (mode, 40)


def test_both_ends_of_a_path_are_the_models_themselves():
    one, two = normed(0), normed(1)
    first = surface_of(one)
    states = [copy.deepcopy(m.state_dict()) for m in (one, two)]
    path = path_between(first, two, points=4, statistics="interpolated", metric=error)
    assert path.steps.tolist() == [-0.25, 0.0, 0.25, 0.75, 1.0, 1.25]
    assert path.loss[1] == first.value() and path.loss[4] == surface_of(two).value()
    assert path.metric[4] == Surface(two, error, [rows()]).value()
    half = copy.deepcopy(one)
    state = {k: torch.lerp(v, states[1][k], 0.25) if v.is_floating_point() else v for k, v in states[0].items()}
    half.load_state_dict(state)
    assert path.loss[2] == pytest.approx(surface_of(half).value(), rel=1e-12)
    gap = sum(float((p - q).detach().square().sum()) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert path.distance == pytest.approx(math.sqrt(gap)) and path.statistics == "interpolated"
    for model, state in zip((one, two), states, strict=True):
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_statistics_are_estimated_anew_at_each_point():
    """Oracle: one batch, normalised by its own mean and by the unbiased variance that torch keeps for evaluation."""
    x, y = rows()
    one, two = normed(0), normed(1)
    path = path_between(surface_of(one), two, points=5, margin=0.0)
    assert path.statistics == "re-estimated"
    for step, loss in zip(path.steps, path.loss, strict=True):
        w, b, g, s, v, c = (torch.lerp(p, q, step) for p, q in zip(one.parameters(), two.parameters(), strict=True))
        h = x @ w.T + b
        h = (h - h.mean(0)) / (h.var(0) + 1e-5).sqrt() * g + s
        assert loss == pytest.approx(F.cross_entropy(h.relu() @ v.T + c, y).item(), rel=1e-10)
    parts = [(x[:30], y[:30]), (x[30:], y[30:])]
    split = path_between(surface_of(one, parts), two, points=3, margin=0.0)
    w, b, g, s, v, c = one.parameters()
    h = [x @ w.T + b for x, _ in parts]
    mean, var = (0.75 * f(h[0], 0) + 0.25 * f(h[1], 0) for f in (torch.mean, torch.var))
    h = (torch.cat(h) - mean) / (var + 1e-5).sqrt() * g + s
    assert split.loss[0] == pytest.approx(F.cross_entropy(h.relu() @ v.T + c, y).item(), rel=1e-10)


def test_a_barrier_stands_above_the_straight_line_between_the_two_models():
    """Between losses of 1 and 3 the line is at 2 halfway, where the loss is 4; what lies beyond the two does not count."""
    path = Path(np.array([-0.5, 0, 0.5, 1, 1.5]), np.array([9.0, 1, 4, 3, 9]), None, "eval", 2, 1.0, "none")
    assert path.barrier == 2.0


def test_a_convex_loss_has_no_barrier_and_reordered_units_have_one():
    x, y = rows()
    torch.manual_seed(0)
    convex = [nn.Linear(6, 3).double() for _ in range(2)]
    path = path_between(surface_of(convex[0]), convex[1])
    assert path.barrier == 0.0 and path.statistics == "none"
    assert (np.diff(path.loss, 2)[:2] > 0).all()
    model = network()
    for _ in range(100):
        slopes = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        with torch.no_grad():
            for p, slope in zip(model.parameters(), slopes, strict=True):
                p -= 0.5 * slope
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[:], other[0].bias[:] = model[0].weight.flip(0), model[0].bias.flip(0)
        other[2].weight[:] = model[2].weight.flip(1)
    path = path_between(surface_of(model), other, points=7)
    start, end = path.loss[path.steps == 0][0], path.loss[path.steps == 1][0]
    assert start == pytest.approx(end, rel=1e-12)
    assert path.barrier == pytest.approx(path.loss[(path.steps >= 0) & (path.steps <= 1)].max() - start, rel=1e-9)
    assert path.barrier > 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"points": 4}, "points: expected an odd whole number >= 3"),
        ({"points": 1}, "points"),
        ({"axes": 3}, "axes: expected 1 or 2; got 3"),
        ({"span": 0.0}, "span"),
        ({"span": math.inf}, "span"),
        ({"directions": torch.zeros(1, 5)}, "directions: expected shape"),
    ],
)
def test_landscapes_that_cannot_be_drawn(options, words):
    with pytest.raises(LegatoValueError, match=words):
        landscape(surface_of(network()), dice(), **options)


def test_weights_without_filters_have_no_filter_normalised_direction():
    surface = Surface(Matrix(torch.ones(3)), lambda w, _: w.sum(), [(torch.zeros(1), torch.zeros(1))])
    with pytest.raises(LegatoValueError, match=r"there alone are filters.*directions of your own"):
        landscape(surface, dice())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"points": 2}, "points: expected a whole number >= 3"),
        ({"margin": -0.1}, "margin"),
        ({"statistics": "re-estimate"}, "Did you mean 're-estimated'"),
        ({"other": nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))}, r"model of equal shape: 0.weight \[8, 6\]; got \[9, 6\]"),
        ({"other": nn.Sequential(nn.Linear(6, 8), nn.ReLU())}, "2.*got nothing of that name"),
    ],
)  # fmt: skip
def test_paths_that_cannot_be_drawn(options, words):
    with pytest.raises(LegatoValueError, match=words):
        path_between(surface_of(network()), options.pop("other", network(1)), **options)


def test_a_batch_of_one_row_has_no_variance():
    x, y = rows()
    with pytest.raises(LegatoValueError, match=r"2 rows or more.*statistics=.interpolated."):
        path_between(surface_of(normed(), [(x[:39], y[:39]), (x[39:], y[39:])]), normed(1))
