"""SAM and ASAM by their formulas and by other people's numbers."""

import pytest
import torch
from climbs import D, digits_like, noisy_net, plain_closure
from torch import nn
from torch.nn import functional as F

from legato.bench.flatness_peers import sam_two_pass_step
from legato.errors import LegatoValueError
from legato.flatness.sam import ASAM, SAM, sam_perturbation

DAVDA = {
    False: (0.3, [1.8640789555508754, 0.9101727019872914, 1.4135788539205658, 0.6321891197023245, 1.3295312756962392]),
    True: (0.7, [1.8640789555508754, 1.0781006215036395, 1.3065101048934245, 0.5655701081656282, 1.3020485055913436]),
}
KOZISTR = {
    False: [1.8640789555508754, 0.9101727038663263, 1.4135788495413673, 0.6321891045603276, 1.3295313393323194],
    True: [1.8640789555508754, 1.0781006089897223, 1.3065100987759117, 0.5655701088465733, 1.3020484587020442],
}
SAMSUNG = [1.8640789555508754, 1.553965167649817, 1.6822417929765865, 0.9146717749728561, 2.3714634402680828]


def problem():
    """A network of 26 weights and five rows, without random numbers."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    start = 0
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.sin(torch.arange(start, start + weight.numel(), dtype=D) + 1).reshape(weight.shape))
            start += weight.numel()
    x = torch.cos(torch.arange(15, dtype=D) * 1.3).reshape(5, 3)
    return net, x, torch.cos(torch.arange(10, dtype=D) * 0.7).reshape(5, 2)


def losses_of(method, net, x, y, steps=4, **options):
    """The loss before each step of SGD, and after the last."""
    optimizer = torch.optim.SGD(net.parameters(), **({"lr": 0.5, "momentum": 0.9} | options))
    found = []
    for _ in range(steps):
        found.append(float(method.gradients(plain_closure(net, x, y))))
        optimizer.step()
    return [*found, F.mse_loss(net(x), y).item()]


# The formula.


def lists(seed=0, dtype=D):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(s, dtype=D, generator=generator).to(dtype) for s in ((3, 2), (4,), ())] for _ in range(2)]


@pytest.mark.parametrize("adaptive", [False, True, [True, False, True]])
def test_the_offset_is_its_definition(adaptive):
    """Oracle: the formula on one flat vector."""
    weights, gradients = lists()
    got = sam_perturbation(weights, gradients, 0.3, adaptive=adaptive, eta=0.2)
    which = [adaptive] * 3 if isinstance(adaptive, bool) else adaptive
    t = torch.cat([(w.abs() + 0.2 if a else torch.ones_like(w)).flatten() for w, a in zip(weights, which, strict=True)])
    g = torch.cat([g.flatten() for g in gradients])
    want = 0.3 * t**2 * g / (t * g).square().sum().sqrt()
    torch.testing.assert_close(torch.cat([o.flatten() for o in got]), want, rtol=1e-13, atol=0)
    assert [o.shape for o in got] == [w.shape for w in weights]


@pytest.mark.parametrize("adaptive", [False, True])
def test_no_other_offset_of_the_ball_raises_the_linear_loss_more(adaptive):
    weights, gradients = lists(1)
    g = torch.cat([part.flatten() for part in gradients])
    t = torch.cat([w.abs().flatten() + 0.01 for w in weights]) if adaptive else torch.ones(len(g), dtype=D)
    best = torch.cat([o.flatten() for o in sam_perturbation(weights, gradients, 0.5, adaptive=adaptive)])
    assert (best / t).norm() == pytest.approx(0.5, rel=1e-12)
    others = torch.randn(1000, len(g), dtype=D, generator=torch.Generator().manual_seed(2))
    others = 0.5 * t * others / others.norm(dim=1, keepdim=True)
    assert (others @ g).max() < best @ g
    assert (
        sam_perturbation(weights, times(gradients, 7), 0.5, adaptive=adaptive)[0] - best[:6].reshape(3, 2)
    ).abs().max() < 1e-15


def times(tensors, factor):
    return [factor * tensor for tensor in tensors]


def test_asam_does_not_see_the_scale_of_the_weights():
    """Oracle: w -> c w, g -> g / c leaves the loss as it is; with eta = 0 the offset scales with the weights."""
    weights, gradients = lists(4)
    one = sam_perturbation(weights, gradients, 0.5, adaptive=True, eta=0)
    other = sam_perturbation(times(weights, 3), times(gradients, 1 / 3), 0.5, adaptive=True, eta=0)
    torch.testing.assert_close(times(one, 3), other, rtol=1e-13, atol=0)


@pytest.mark.parametrize("adaptive", [False, True])
def test_gradients_of_zero_move_nothing_and_bad_ones_are_seen(adaptive):
    weights, gradients = lists()
    still = sam_perturbation(weights, times(gradients, 0), 0.5, adaptive=adaptive)
    assert all((offset == 0).all() for offset in still)
    for bad in (float("nan"), float("inf")):
        gradients[1][2] = bad
        assert not sam_perturbation(weights, gradients, 0.5, adaptive=adaptive)[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("adaptive", [False, True])
def test_short_types_are_computed_in_float32(dtype, adaptive):
    weights, gradients = lists(dtype=dtype)
    got = sam_perturbation(weights, gradients, 0.5, adaptive=adaptive)
    wide = [[t.double() for t in tensors] for tensors in (weights, gradients)]
    assert {offset.dtype for offset in got} == {torch.float32}
    torch.testing.assert_close(
        [o.double() for o in got], sam_perturbation(*wide, 0.5, adaptive=adaptive), rtol=1e-6, atol=1e-7
    )


def test_bad_arguments_of_the_function_are_named():
    weights, gradients = lists()
    for radius in (-0.1, float("nan"), float("inf"), "far", torch.tensor(0.1)):
        with pytest.raises(LegatoValueError, match="radius: expected a plain finite number >= 0"):
            sam_perturbation(weights, gradients, radius)
    with pytest.raises(LegatoValueError, match="eta: expected"):
        sam_perturbation(weights, gradients, 0.1, eta=-1)
    with pytest.raises(LegatoValueError, match=r"gradients: expected tensors of shapes \[\[3, 2\], \[4\], \[\]\]; got"):
        sam_perturbation(weights, gradients[:2], 0.1)
    with pytest.raises(LegatoValueError, match="weights: expected at least one tensor"):
        sam_perturbation([], [], 0.1)
    with pytest.raises(LegatoValueError, match="adaptive: expected True, False or 3 of these; got 1 values"):
        sam_perturbation(weights, gradients, 0.1, adaptive=[True])


# The two passes.


class Quadratic(nn.Module):
    """w A w / 2, whatever the input."""

    def __init__(self, a, w):
        super().__init__()
        self.a, self.w = a, nn.Parameter(w)

    def forward(self):
        return self.w @ self.a @ self.w / 2

    def closure(self):
        self.w.grad = None
        loss = self()
        loss.backward()
        return loss.detach()


def quadratic(size=5):
    generator = torch.Generator().manual_seed(6)
    root, w = torch.randn(size, size, dtype=D, generator=generator), torch.randn(size, dtype=D, generator=generator)
    return Quadratic(root @ root.T, w)


def test_on_a_quadratic_the_gradient_is_that_at_the_climbed_point():
    """Oracle: A (w + radius g / |g|) with g = A w, and the same in ASAM's ellipsoid."""
    net = quadratic()
    a, w = net.a, net.w.detach().clone()
    g = a @ w
    assert SAM(net, 0.3).gradients(net.closure) == w @ g / 2
    torch.testing.assert_close(net.w.grad, a @ (w + 0.3 * g / g.norm()), rtol=1e-13, atol=0)
    ASAM(net, 0.7, eta=0.1).gradients(net.closure)
    t = w.abs() + 0.1
    torch.testing.assert_close(net.w.grad, a @ (w + 0.7 * t**2 * g / (t * g).norm()), rtol=1e-13, atol=0)


def test_losses_are_those_of_davda54_and_of_pytorch_optimizer():
    radius, want = DAVDA[False]
    net, x, y = problem()
    got = losses_of(SAM(net, radius), net, x, y)
    assert got == pytest.approx(want, rel=1e-10)
    assert got == pytest.approx(KOZISTR[False], rel=1e-6)


def test_the_peer_of_the_bench_takes_the_same_steps():
    net, x, y = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    radius, want = DAVDA[False]
    found = [sam_two_pass_step(net, F.mse_loss, x, y, optimizer, radius=radius).item() for _ in range(4)]
    assert found == pytest.approx(want[:4], rel=1e-10)
    net = noisy_net()
    sam_two_pass_step(net, F.cross_entropy, *digits_like(), torch.optim.SGD(net.parameters(), lr=0.5))
    assert net[1].momentum == 0.1


def test_losses_of_their_adaptive_form_which_has_no_eta_and_moves_biases_too():
    radius, want = DAVDA[True]
    net, x, y = problem()
    net[0].register_parameter("shift", net[0]._parameters.pop("bias"))  # a name that ASAM takes for no bias
    net[2].register_parameter("shift", net[2]._parameters.pop("bias"))
    for layer in (net[0], net[2]):
        layer.forward = lambda h, layer=layer: F.linear(h, layer.weight, layer.shift)
    got = losses_of(ASAM(net, radius, eta=0), net, x, y)
    assert got == pytest.approx(want, rel=1e-10)
    assert got == pytest.approx(KOZISTR[True], rel=1e-6)


def test_losses_of_asam_are_those_of_its_authors():
    net, x, y = problem()
    assert losses_of(ASAM(net, 0.7, eta=0.01), net, x, y) == pytest.approx(SAMSUNG, rel=1e-10)
