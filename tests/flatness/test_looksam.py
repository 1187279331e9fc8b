"""LookSAM by its formulas, by other people's numbers, and at its limits."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoValueError
from legato.flatness.looksam import LookSAM, orthogonal_direction
from legato.flatness.sam import SAM

D = torch.float64
KOZISTR = [1.0681657851179645, 0.9990993660930911, 0.9405955772807078, 0.9005150524495656, 0.8544104137616957,
           0.8214647085485204, 0.7963131964300583, 0.7492486537014755, 0.7114669286954196]  # fmt: skip
"""Losses of pytorch_optimizer 4.1.0, LookSAM(SGD, rho=0.1, k=3, alpha=0.7, lr=0.5), on `problem`, whose one tensor makes
that package's projection of each tensor alone the one of all."""


def problem():
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh()).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.sin(torch.arange(6, dtype=D) + 1).reshape(2, 3))
    x = torch.cos(torch.arange(15, dtype=D) * 1.3).reshape(5, 3)
    return net, x, torch.cos(torch.arange(10, dtype=D) * 0.7).reshape(5, 2)


def counted(net, x, y, loss=F.mse_loss):
    def closure():
        closure.calls += 1
        net.zero_grad()
        value = loss(net(x), y)
        value.backward()
        return value

    closure.calls = 0
    return closure


def grads(net):
    return torch.cat([weight.grad.flatten() for weight in net.parameters()])


def two_layers():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    generator = torch.Generator().manual_seed(2)
    return net, torch.randn(8, 4, dtype=D, generator=generator), torch.randn(8, 2, dtype=D, generator=generator)


def test_the_direction_is_that_of_the_rest_of_a_projection():
    """Oracle: least squares of the perturbed gradient on the plain one, over all tensors together."""
    generator = torch.Generator().manual_seed(0)
    p, g = ([torch.randn(s, dtype=D, generator=generator) for s in ((3, 2), (5,))] for _ in range(2))
    got = torch.cat([part.flatten() for part in orthogonal_direction(p, g)])
    flat_p, flat_g = (torch.cat([part.flatten() for part in parts]) for parts in (p, g))
    rest = flat_p - flat_g * torch.linalg.lstsq(flat_g[:, None], flat_p[:, None]).solution[0]
    torch.testing.assert_close(got, rest / rest.norm(), rtol=1e-12, atol=1e-14)
    assert abs(got @ flat_g) < 1e-14
    assert got @ flat_p > 0


@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_rounding_errors_are_no_direction(dtype):
    g = [torch.randn(1000, dtype=dtype, generator=torch.Generator().manual_seed(3))]
    for p in (g, [1.3 * g[0]], [0 * g[0]], [-g[0]]):
        assert (orthogonal_direction(p, g)[0] == 0).all()
    assert (orthogonal_direction([0 * g[0]], [0 * g[0]])[0] == 0).all()
    tilted = g[0].clone()
    tilted[0] += 0.1
    assert orthogonal_direction([tilted], g)[0].norm() == pytest.approx(1, rel=1e-5)


def test_every_first_is_sam_to_the_last_bit():
    net, x, y = two_layers()
    twin = copy.deepcopy(net)
    one, other = LookSAM(net, 0.2, every=1), SAM(twin, 0.2)
    for model, method in ((net, one), (twin, other)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        for _ in range(4):
            method.gradients(counted(model, x, y))
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert one.directions == {}, "nothing is kept that is never used"


def test_on_a_quadratic_by_hand():
    """Steps 0 and 2 climb; step 1 adds alpha |g| times the direction of step 0."""
    generator = torch.Generator().manual_seed(6)
    root, w = torch.randn(5, 5, dtype=D, generator=generator), torch.randn(5, dtype=D, generator=generator)
    a = root @ root.T
    net = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(w)

    def closure():
        loss = (net.weight @ a @ net.weight.T / 2).sum()
        loss.backward()
        return loss

    method = LookSAM(net, 0.3, every=2, alpha=0.6)
    for step in range(4):
        g = a @ w
        if step % 2 == 0:
            want = a @ (w + 0.3 * g / g.norm())
            v = want - (want @ g) / (g @ g) * g
        else:
            want = g + 0.6 * g.norm() / v.norm() * v
        assert method.gradients(closure) == pytest.approx(float(w @ g / 2), rel=1e-12)
        torch.testing.assert_close(net.weight.grad[0], want, rtol=1e-11, atol=1e-13)
        w = w - 0.05 * want
        with torch.no_grad():
            net.weight.copy_(w)


def test_losses_are_those_of_pytorch_optimizer():
    net, x, y = problem()
    method, optimizer = LookSAM(net, 0.1, every=3, alpha=0.7), torch.optim.SGD(net.parameters(), lr=0.5)
    found = []
    for _ in range(8):
        found.append(float(method.gradients(counted(net, x, y))))
        optimizer.step()
    assert [*found, F.mse_loss(net(x), y).item()] == pytest.approx(KOZISTR, rel=1e-6)


def test_one_pass_in_the_steps_between_and_none_of_them_moves_the_weights():
    net, x, y = two_layers()
    method, closure = LookSAM(net, 0.2, every=4), counted(net, x, y)
    calls = []
    for _ in range(9):
        method.gradients(closure)
        calls.append(closure.calls)
        closure.calls = 0
    assert calls == [2, 1, 1, 1, 2, 1, 1, 1, 2]


def test_alpha_zero_is_plain_between_looks():
    net, x, y = two_layers()
    method = LookSAM(net, 0.2, every=2, alpha=0)
    for step in range(4):
        method.gradients(counted(net, x, y))
        got = grads(net)
        counted(net, x, y)()
        assert torch.equal(got, grads(net)) == (step % 2 == 1)


def test_a_run_that_is_taken_up_in_the_middle_goes_on_as_before():
    found = []
    for stops in (False, True):
        net, x, y = two_layers()
        method, optimizer = LookSAM(net, 0.2, every=3), torch.optim.SGD(net.parameters(), lr=0.2)
        for step in range(7):
            if stops and step == 4:
                state = copy.deepcopy(method.state_dict())
                method = LookSAM(net, 0.2, every=3)
                method.load_state_dict(state)
                state["directions"]["0.weight"].zero_()  # the state is copied
            method.gradients(counted(net, x, y))
            optimizer.step()
        found.append(grads(net))
    assert torch.equal(*found)


def test_a_weight_that_is_frozen_later_has_no_part_in_it():
    net, x, y = two_layers()
    method = LookSAM(net, 0.2, every=3)
    method.gradients(counted(net, x, y))
    net[0].requires_grad_(False)
    net[0].weight.grad = None
    method.gradients(counted(net, x, y))
    assert net[0].weight.grad is None
    assert set(method.directions) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_a_direction_that_is_not_finite_is_not_kept():
    net, x, y = two_layers()
    method = LookSAM(net, 0.2, every=2)
    method.gradients(counted(net, x, y))
    method.gradients(counted(net, x, y))
    before = copy.deepcopy(method.directions)
    method.gradients(counted(net, x * float("nan"), y))
    assert all(torch.equal(method.directions[name], before[name]) for name in before)
    method.gradients(counted(net, x, y))
    assert grads(net).isfinite().all()


def test_bad_arguments_are_named():
    net = nn.Linear(2, 2)
    for every in (0, -1, 2.5):
        with pytest.raises(LegatoValueError, match="every: expected a whole number >= 1"):
            LookSAM(net, 0.1, every=every)
    for alpha in (-1, float("inf"), float("nan")):
        with pytest.raises(LegatoValueError, match="alpha: expected a plain finite number >= 0"):
            LookSAM(net, 0.1, alpha=alpha)
    method = LookSAM(nn.Linear(3, 2), 0.1)
    method.gradients(counted(method.model, torch.ones(4, 3), torch.zeros(4, 2)))
    with pytest.raises(
        LegatoValueError, match=r"state: expected the state of this model; got weight of shape \[2, 3\]"
    ):
        LookSAM(net, 0.1).load_state_dict(method.state_dict())
