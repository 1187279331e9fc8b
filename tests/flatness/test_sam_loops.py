"""Ways to a gradient with scalers, autocast and compiled models, and in the loop of the package."""

import copy
from functools import partial

import pytest
import torch
from climbs import SEAMS, D, copies, digits_like, equal, noisy_net, plain_closure
from torch import nn
from torch.nn import functional as F

from legato import training
from legato.errors import LegatoValueError
from legato.flatness import perturbation
from legato.flatness.looksam import LookSAM
from legato.flatness.msam import MSAM
from legato.flatness.sam import ASAM, SAM


@pytest.fixture(params=SEAMS, ids=SEAMS)
def make(request):
    return SEAMS[request.param]


# Mixed precision.


def scaled_step(method, net, x, y, scaler, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        return loss.detach()

    calls = [0]

    def counted():
        calls[0] += 1
        return closure()

    loss = method.gradients(counted)
    scaler.step(optimizer)
    scaler.update()
    return loss, calls[0]


def test_with_a_gradient_scaler_the_step_is_that_without(make):
    ends = []
    for enabled in (False, True):
        net = nn.Linear(6, 4)
        with torch.no_grad():
            net.weight.fill_(0.1)
            net.bias.zero_()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=2.0**10)
        method = make(net)
        for _ in range(4):
            scaled_step(method, net, *digits_like(), scaler, optimizer)
        ends.append(torch.cat([net.weight.flatten(), net.bias]))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reads", [True, False], ids=["CPU", "other device"])
def test_a_gradient_that_is_not_finite_is_left_for_the_scaler_to_skip(make, reads, monkeypatch):
    if not reads:
        monkeypatch.setattr(perturbation, "readable", lambda tensor: False)
    net = noisy_net()
    x, y = digits_like()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    method = make(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    before = copies(net.parameters())
    _, calls = scaled_step(method, net, 1e3 * x, y, scaler, optimizer)
    two_passes = not isinstance(method, MSAM)
    assert calls == (2 if two_passes and not reads else 1)
    assert equal(before, net.parameters()), "skipped"
    assert scaler.get_scale() < 1e38
    assert net[1].num_batches_tracked == 1
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for _ in range(4):
        loss, _ = scaled_step(method, net, x, y, scaler, optimizer)
    assert loss.isfinite()
    assert all(weight.isfinite().all() for weight in net.parameters()), "and nothing bad is kept"
    assert not equal(before, net.parameters())


def test_where_nothing_is_read_a_bad_norm_reaches_a_gradient(monkeypatch):
    """The second pass may be finite where the first was not."""
    monkeypatch.setattr(perturbation, "readable", lambda tensor: False)
    net = nn.Linear(2, 1)
    factors = iter([float("inf"), 1.0])

    def closure():
        loss = net.weight.sum() * 0 + net.bias.sum()
        loss.backward()
        net.bias.grad.mul_(next(factors))
        return loss

    SAM(net).gradients(closure)
    assert net.bias.grad.isnan().all()


def test_an_autocast_around_both_passes_does_not_keep_the_old_weights():
    """torch.autocast caches its bfloat16 copies of the weights until it ends."""
    x, y = digits_like()
    found = []
    for around in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(6, 4)

        def closure(net=net):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(net(x), y)
            loss.backward()
            return loss

        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            SAM(net, radius=0.5).gradients(closure)
            inside = net(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            assert torch.equal(inside, net(x)), "nor the moved ones"
        found.append(net.weight.grad)
        plain = nn.Linear(6, 4)
        plain.load_state_dict(net.state_dict())
        plain_closure(plain, x, y, F.cross_entropy)()
        assert (net.weight.grad - plain.weight.grad).abs().max() > 0.01
    assert torch.equal(*found)


def test_in_bfloat16_it_is_close_to_float64(make):
    x, y = digits_like()
    found = []
    for dtype in (torch.bfloat16, D):
        torch.manual_seed(0)
        net = nn.Linear(6, 4).to(dtype)
        method = make(net)
        for _ in range(3):
            before = copies(net.parameters())
            method.gradients(plain_closure(net, x.to(dtype), y, F.cross_entropy))
            assert equal(before, net.parameters())
        found.append(net.weight.grad.double())
    torch.testing.assert_close(*found, rtol=0.1, atol=0.02)


# In loops.


def test_a_compiled_model_gives_the_same_gradients():
    torch._dynamo.reset()
    x, y = digits_like()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager")
    one, other = LookSAM(compiled, radius=0.1), LookSAM(twin, radius=0.1)
    for _ in range(2):
        one.gradients(plain_closure(compiled, x, y, F.cross_entropy))
        other.gradients(plain_closure(twin, x, y, F.cross_entropy))
        torch.testing.assert_close([w.grad for w in net.parameters()], [w.grad for w in twin.parameters()])
    torch.testing.assert_close(dict(net.named_buffers()), dict(twin.named_buffers()))
    other.load_state_dict(one.state_dict())


class Rows:
    """The same batches in every epoch."""

    def __init__(self, x, y, size):
        self.cut = list(zip(x.split(size), y.split(size), torch.arange(len(x)).split(size), strict=True))

    def __len__(self):
        return len(self.cut)

    def epoch(self, epoch):
        return iter(self.cut)


@pytest.mark.parametrize("name", SEAMS)
def test_the_loop_of_the_package_does_what_a_loop_by_hand_does(name):
    """Accumulation over two batches of unequal length, clipping after the second pass, dropout and running statistics."""
    x, y = digits_like(22)
    net = noisy_net()
    twin = copy.deepcopy(net)
    batches = Rows(x, y, 6)
    objective = training.WithGradients(training.Criterion(F.cross_entropy), SEAMS[name](net))
    torch.manual_seed(8)
    training.fit(
        net, objective, batches, epochs=2, optimizer=partial(torch.optim.SGD, lr=0.3), accumulate=2, clip_norm=0.1
    )

    method, optimizer = SEAMS[name](twin), torch.optim.SGD(twin.parameters(), lr=0.3)
    torch.manual_seed(8)
    for _ in range(2):
        for group in (batches.cut[:2], batches.cut[2:]):

            def closure(group=group):
                optimizer.zero_grad()
                rows = sum(len(y) for _, y, _ in group)
                total = 0
                for x, y, _ in group:
                    loss = F.cross_entropy(twin(x), y) * (len(y) / rows)
                    loss.backward()
                    total += loss.detach()
                return total

            method.gradients(closure)
            nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
            optimizer.step()
    assert equal(net.state_dict().values(), twin.state_dict().values())


@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_nothing_is_kept_between_steps(kind):
    method = kind(nn.Linear(2, 2))
    method.load_state_dict(method.state_dict())
    with pytest.raises(LegatoValueError, match=r"state: expected an empty state; got keys \['step'\]"):
        method.load_state_dict({"step": 3})


def test_memory_of_the_offsets_is_given_back_before_the_second_pass():
    weights, offsets = [torch.ones(3)], [torch.ones(3)]
    with perturbation.moved(weights, offsets):
        assert offsets == []
        assert (weights[0] == 2).all()
    assert (weights[0] == 1).all()
