"""Adversarial losses from scores: their formulas, their extremes, and exact chains on linear models."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.losses import comp_sum_loss
from legato.losses.adversarial import smooth_adversarial_from_scores, smooth_adversarial_loss
from legato.losses.mart import mart_from_scores
from legato.losses.trades import trades_from_scores, trades_loss

ATTACK = {"radius": 0.1, "bounds": (0.0, 1.0), "steps": 3}
FROM_SCORES = {
    "smooth": partial(smooth_adversarial_from_scores, tau=0.5, temperature=2.0, nu=0.7),
    "trades": trades_from_scores,
    "mart": mart_from_scores,
}


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


# Formulas


def smooth_definition(clean, attacked, y, tau, temperature, nu):
    """Row by row from Phi_tau(sum of exp(-margin/rho)), and the norm of the vector of margin changes."""
    losses = []
    for h, g, k in zip(clean, attacked, y.tolist(), strict=True):
        others = [j for j in range(len(h)) if j != k]
        u = sum(math.exp(-float(h[k] - h[j]) / temperature) for j in others)
        phi = math.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)
        shift = math.sqrt(sum(float((g[k] - g[j]) - (h[k] - h[j])) ** 2 for j in others) + 1e-12)
        losses.append(phi + nu * shift)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.7])
def test_the_smooth_loss_is_its_definition(tau):
    clean, attacked, y = random(6, 4), random(6, 4, seed=1), torch.arange(6) % 4
    settings = {"tau": tau, "temperature": 1.7, "nu": 0.3}
    got = smooth_adversarial_from_scores(clean, attacked, y, **settings, reduction="none")
    torch.testing.assert_close(got, smooth_definition(clean, attacked, y, **settings), rtol=1e-12, atol=0)


def test_trades_is_cross_entropy_and_divergence():
    clean, attacked, y = random(6, 4), random(6, 4, seed=1), torch.arange(6) % 4
    divergence = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="batchmean")
    want = F.cross_entropy(clean, y) + 3 * divergence
    torch.testing.assert_close(trades_from_scores(clean, attacked, y, beta=3.0), want, rtol=1e-12, atol=0)


def test_mart_is_its_definition():
    """The published formula in probabilities; the authors' code adds 1e-4 to 1 - p_k, which is 1e-4/(1 - p_k) of the term."""
    clean, attacked, y = random(16, 4), random(16, 4, seed=1), torch.arange(16) % 4
    assert 0 < (attacked.argmax(1) == y).sum() < 16  # the strongest other class is the prediction in some rows only
    p, q = clean.softmax(1), attacked.softmax(1)
    want = []
    for i, k in enumerate(y.tolist()):
        rival = max(float(q[i, j]) for j in range(4) if j != k)
        divergence = sum(float(p[i, j]) * math.log(float(p[i, j] / q[i, j])) for j in range(4))
        want.append(-math.log(float(q[i, k])) - math.log(1 - rival) + 5 * divergence * (1 - float(p[i, k])))
    got = mart_from_scores(clean, attacked, y, reduction="none")
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=0)


def test_mart_keeps_its_digits_and_its_gradient_at_the_extremes():
    """A rival with p_k = 1 - 4e-18 costs 40 + log 2 twice, and the slope stays 1 where a clamp would make it 0."""
    attacked = torch.tensor([[0.0, 40.0, 0.0]], requires_grad=True)
    loss = mart_from_scores(attacked.detach(), attacked, torch.tensor([0]), beta=0.0)
    assert float(loss.detach()) == pytest.approx(40 + 40 - math.log(2), rel=1e-6)
    loss.backward()
    torch.testing.assert_close(attacked.grad, torch.tensor([[-1.5, 2.0, -0.5]]))


@pytest.mark.parametrize("name", FROM_SCORES)
def test_gradients_for_both_scores(name):
    loss = partial(FROM_SCORES[name], y=torch.arange(3) % 4, reduction="none")
    scores = (random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(loss, scores)


@pytest.mark.parametrize("name", FROM_SCORES)
def test_equal_scores_have_a_finite_gradient(name):
    """At x' = x the norm and the divergence are smallest: the attacked scores get no gradient from them, and no NaN."""
    clean, y = random(5, 4, dtype=torch.float32).requires_grad_(), torch.arange(5) % 4
    attacked = clean.detach().clone().requires_grad_()
    FROM_SCORES[name](clean, attacked, y).backward()
    assert clean.grad.isfinite().all()
    assert attacked.grad.isfinite().all()
    if name != "mart":
        torch.testing.assert_close(attacked.grad, torch.zeros(5, 4), rtol=0, atol=1e-6)


def test_without_its_second_term_it_is_the_comp_sum_loss():
    """nu = 0 exactly, and a radius that goes to 0 up to the 1e-6 of the floor under the root."""
    model, (x, y) = network(), sample()
    for tau, temperature in ((0.5, 1.0), (1.0, 2.0), (1.5, 0.7)):
        want = comp_sum_loss(model(x), y, tau, temperature=temperature)
        settings = {"tau": tau, "temperature": temperature, "bounds": (0.0, 1.0), "steps": 2}
        assert torch.equal(smooth_adversarial_loss(model, x, y, radius=0.1, nu=0, **settings), want)
        tiny = smooth_adversarial_loss(model, x, y, radius=1e-12, nu=1.0, **settings)
        assert float((tiny - want).detach()) == pytest.approx(1e-6, rel=1e-2)
    assert torch.equal(trades_loss(model, x, y, beta=0, **ATTACK), F.cross_entropy(model(x), y))


def test_temperature_and_nu_are_one_degree_of_freedom():
    """loss(h; rho, nu) = loss(h/rho; 1, nu rho)."""
    clean, attacked, y = random(6, 4), random(6, 4, seed=1), torch.arange(6) % 4
    got = smooth_adversarial_from_scores(clean, attacked, y, tau=0.5, temperature=3.0, nu=0.2)
    want = smooth_adversarial_from_scores(clean / 3, attacked / 3, y, tau=0.5, temperature=1.0, nu=0.6)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5, 2.5])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_chain_of_inequalities_on_linear_models(tau, classes):
    """Phi(1) [some x' wrong] <= rho-margin loss <= smooth loss at nu = sqrt(C-1)/rho, with suprema over all vertices of the box."""

    def phi(u):
        return u.log1p() if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)

    box = 0.3 * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    for seed in range(15):
        weight, x, y, rho = (
            random(classes, 4, seed=seed),
            random(6, 4, seed=99),
            torch.arange(6) % classes,
            0.3 + seed / 8,
        )
        h, moved = x @ weight.T, (x[:, None] + box) @ weight.T  # [6, C], [6, 16, C]
        own = moved.gather(2, y[:, None, None].expand(6, 16, 1))
        deltas = (own - moved).scatter(2, y[:, None, None].expand(6, 16, 1), math.inf)
        ramp = (1 - deltas / rho).clamp(0, 1).sum(2)
        margin_loss = phi(ramp).amax(1)
        robust_error = (deltas <= 0).any(2).any(1).double() * phi(torch.ones((), dtype=torch.float64))
        each = torch.stack([
            smooth_adversarial_from_scores(
                h, moved[:, i], y, tau=tau, temperature=rho, nu=math.sqrt(classes - 1) / rho, reduction="none"
            ) for i in range(16)
        ])  # fmt: skip
        assert (robust_error <= margin_loss + 1e-12).all()
        assert (margin_loss <= each.amax(0) + 1e-12).all()
