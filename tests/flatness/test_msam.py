"""Momentum-SAM by its formula and by its authors' numbers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoValueError
from legato.flatness.msam import MSAM

D = torch.float64
BECKER = [1.8640789555508754, 0.7884932889834582, 1.2036328902280329, 0.5606263140482257, 0.5642672487817506]
BECKER_END = 0.5874488945567249
"""Losses at the moved weights, and at the end after moving back, of MarlonBecker/MSAM, commit 780fa4f, MSAM(lr=0.5, momentum=0.9,
weight_decay=0, rho=0.3), on `problem`."""


def problem():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    start = 0
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.sin(torch.arange(start, start + weight.numel(), dtype=D) + 1).reshape(weight.shape))
            start += weight.numel()
    x = torch.cos(torch.arange(15, dtype=D) * 1.3).reshape(5, 3)
    return net, x, torch.cos(torch.arange(10, dtype=D) * 0.7).reshape(5, 2)


def counted(net, x, y):
    def closure():
        closure.calls += 1
        net.zero_grad()
        value = F.mse_loss(net(x), y)
        value.backward()
        return value

    closure.calls = 0
    return closure


def test_with_the_momentum_of_sgd_the_losses_are_those_of_the_authors():
    net, x, y = problem()
    method, optimizer = MSAM(net, 0.3, momentum=0.9), torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    closure = counted(net, x, y)
    found = []
    for _ in range(5):
        found.append(float(method.gradients(closure)))
        optimizer.step()
    assert found == pytest.approx(BECKER, rel=1e-10)
    assert F.mse_loss(net(x), y).item() == pytest.approx(BECKER_END, rel=1e-10)
    assert closure.calls == 5


def test_on_a_quadratic_by_hand():
    """Oracle: g = A (w - radius v / |v|), then v = momentum v + g."""
    generator = torch.Generator().manual_seed(6)
    root, w = torch.randn(5, 5, dtype=D, generator=generator), torch.randn(5, dtype=D, generator=generator)
    a, v = root @ root.T, torch.zeros(5, dtype=D)
    net = nn.Linear(5, 1, bias=False).double()

    def closure():
        loss = (net.weight @ a @ net.weight.T / 2).sum()
        loss.backward()
        return loss

    method = MSAM(net, 0.3, momentum=0.7)
    for step in range(4):
        with torch.no_grad():
            net.weight.copy_(w)
        there = w - 0.3 * v / v.norm() if step else w
        want = a @ there
        assert method.gradients(closure) == pytest.approx(float(there @ want / 2), rel=1e-12)
        torch.testing.assert_close(net.weight.grad[0], want, rtol=1e-12, atol=1e-13)
        assert torch.equal(net.weight[0], w)
        v = 0.7 * v + want
        w = w - 0.05 * want


def test_a_run_that_is_taken_up_goes_on_as_before():
    found = []
    for stops in (False, True):
        net, x, y = problem()
        method, optimizer = MSAM(net, 0.3), torch.optim.SGD(net.parameters(), lr=0.2)
        for step in range(5):
            if stops and step == 2:
                state = copy.deepcopy(method.state_dict())
                method = MSAM(net, 0.3)
                method.load_state_dict(state)
                state["velocity"]["0.weight"].zero_()  # the state is copied
            method.gradients(counted(net, x, y))
            optimizer.step()
        found.append(torch.cat([weight.flatten() for weight in net.parameters()]))
    assert torch.equal(*found)


def test_gradients_that_are_not_finite_do_not_enter_the_momentum():
    net, x, y = problem()
    method = MSAM(net, 0.3)
    method.gradients(counted(net, x, y))
    before = method.state_dict()["velocity"]
    method.gradients(counted(net, x * float("inf"), y))
    assert not net[0].weight.grad.isfinite().all(), "left for a scaler to skip"
    assert all(torch.equal(method.velocity[name], before[name]) for name in before)


def test_a_weight_that_is_frozen_later_stays():
    net, x, y = problem()
    method = MSAM(net, 0.3)
    method.gradients(counted(net, x, y))
    net[0].requires_grad_(False)
    net[0].weight.grad = None
    seen = []

    def closure():
        seen.append(net[0].weight.clone())
        loss = F.mse_loss(net(x), y)
        loss.backward()
        return loss

    method.gradients(closure)
    assert torch.equal(seen[0], net[0].weight)


def test_bad_arguments_are_named():
    for momentum in (-0.1, 1, 1.5, float("nan")):
        with pytest.raises(LegatoValueError, match=r"momentum: expected a plain number in \[0, 1\)"):
            MSAM(nn.Linear(2, 2), 0.1, momentum=momentum)
    other = MSAM(nn.Linear(2, 3), 0.1)
    with pytest.raises(LegatoValueError, match="state: expected the state of this model; got strange of shape"):
        other.load_state_dict({"velocity": {"strange": torch.ones(2)}})
