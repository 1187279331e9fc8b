"""SAM and ASAM by their formulas, by other people's numbers, and what every way to a gradient must leave untouched."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato import training
from legato.bench.flatness_peers import sam_two_pass_step
from legato.errors import LegatoTypeError, LegatoValueError
from legato.flatness import perturbation
from legato.flatness.looksam import LookSAM
from legato.flatness.msam import MSAM
from legato.flatness.sam import ASAM, SAM, sam_perturbation

D = torch.float64
SEAMS = {
    "SAM": partial(SAM, radius=0.1),
    "ASAM": partial(ASAM, radius=0.5),
    "LookSAM": partial(LookSAM, radius=0.1, every=3),
    "MSAM": partial(MSAM, radius=0.3),
}
DAVDA = {
    False: (0.3, [1.8640789555508754, 0.9101727019872914, 1.4135788539205658, 0.6321891197023245, 1.3295312756962392]),
    True: (0.7, [1.8640789555508754, 1.0781006215036395, 1.3065101048934245, 0.5655701081656282, 1.3020485055913436]),
}
"""adaptive: (radius, losses) of davda54/sam, commit 3c3afdb, on `problem` with SGD, learning rate 0.5, momentum 0.9."""
KOZISTR = {
    False: [1.8640789555508754, 0.9101727038663263, 1.4135788495413673, 0.6321891045603276, 1.3295313393323194],
    True: [1.8640789555508754, 1.0781006089897223, 1.3065100987759117, 0.5655701088465733, 1.3020484587020442],
}
"""The same of pytorch_optimizer 4.1.0, whose norm has the digits of float32."""
SAMSUNG = [1.8640789555508754, 1.553965167649817, 1.6822417929765865, 0.9146717749728561, 2.3714634402680828]
"""The same of SamsungLabs/ASAM, commit f156a68, with radius 0.7 and eta 0.01."""


@pytest.fixture(params=SEAMS, ids=SEAMS)
def make(request):
    return SEAMS[request.param]


@pytest.fixture(params=["SAM", "ASAM", "LookSAM"])
def make_two_passes(request):
    return SEAMS[request.param]


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


def plain_closure(net, x, y, loss=F.mse_loss):
    def closure():
        net.zero_grad()
        value = loss(net(x), y)
        value.backward()
        return value.detach()

    closure.calls = 0

    def counted():
        closure.calls += 1
        return closure()

    counted.calls = lambda: closure.calls
    return counted


def losses_of(method, net, x, y, steps=4, **options):
    """The loss before each step of SGD, and after the last."""
    optimizer = torch.optim.SGD(net.parameters(), **({"lr": 0.5, "momentum": 0.9} | options))
    found = []
    for _ in range(steps):
        found.append(float(method.gradients(plain_closure(net, x, y))))
        optimizer.step()
    return [*found, F.mse_loss(net(x), y).item()]


def digits_like(rows=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator), torch.randint(4, (rows,), generator=generator)


def noisy_net():
    """BatchNorm and dropout: a pass leaves its traces."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


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


@pytest.mark.parametrize("name", SEAMS)
def test_a_radius_of_zero_is_the_plain_optimizer_to_the_last_bit(name):
    """Weights, running statistics, the loss and the random numbers that are drawn next."""
    x, y = digits_like()
    ends = []
    for kind in (None, type(SEAMS[name](nn.Linear(1, 1)))):
        net = noisy_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(5)
        closure = plain_closure(net, x, y, F.cross_entropy)
        found = []
        method = kind and kind(net, radius=0)
        for _ in range(4):
            found.append(method.gradients(closure) if method else closure())
            optimizer.step()
        ends.append([*net.state_dict().values(), *found, torch.rand(3)])
    assert equal(*ends)


def test_everything_but_the_gradients_is_as_after_one_plain_pass(make):
    x, y = digits_like()
    net = noisy_net()
    twin = copy.deepcopy(net)
    method = make(net)
    for _ in range(3):
        before = copies(net.parameters())
        torch.manual_seed(1)
        loss = method.gradients(plain_closure(net, x, y, F.cross_entropy))
        assert equal(before, net.parameters()), "to the last bit"
        after = torch.rand(2)
        torch.manual_seed(1)
        want = plain_closure(twin, x, y, F.cross_entropy)()
        assert torch.equal(after, torch.rand(2)), "random numbers go on as after one pass"
        if not isinstance(method, MSAM):
            assert torch.equal(loss, want)
            assert equal(net.buffers(), twin.buffers()), "running statistics count one pass"
        assert net[1].num_batches_tracked == twin[1].num_batches_tracked
        assert not loss.requires_grad


def test_both_passes_see_the_same_dropout(make_two_passes):
    masks = []
    net = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 4))
    net[1].register_forward_hook(lambda module, inputs, output: masks.append(output == 0))
    x, y = digits_like()
    make_two_passes(net).gradients(plain_closure(net, x, y, F.cross_entropy))
    assert len(masks) == 2
    assert torch.equal(*masks)


def test_an_accelerator_has_random_numbers_of_its_own(monkeypatch):
    device = torch.device("cuda", 1)
    generators = (torch.Generator(), torch.Generator().manual_seed(3))
    module = type("Module", (), {"default_generators": generators})
    monkeypatch.setattr(torch, "get_device_module", lambda of: module)
    torch.manual_seed(0)

    def draw():
        return torch.cat([torch.rand(2), torch.rand(2, generator=generators[1])])

    states = perturbation.random_states({device})
    first = draw()
    with perturbation.replayed(states):
        assert torch.equal(draw(), first)
        draw()
    second = draw()
    generators[1].manual_seed(3)
    torch.manual_seed(0)
    assert torch.equal(draw(), first)
    assert torch.equal(draw(), second)


def test_a_buffer_that_is_replaced_and_not_written_to_counts_once_too():
    class Counter(nn.Linear):
        def __init__(self):
            super().__init__(6, 4)
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("nothing", None)

        def forward(self, x):
            self.count = self.count + 1
            return super().forward(x)

    net = Counter()
    SAM(net).gradients(plain_closure(net, *digits_like(), F.cross_entropy))
    assert net.count == 1


def test_only_trainable_weights_with_a_gradient_move():
    net = nn.ModuleDict({"a": nn.Linear(6, 4), "frozen": nn.Linear(6, 4), "unused": nn.Linear(6, 4)})
    net["frozen"].requires_grad_(False)
    net["unused"].weight.grad = torch.ones(4, 6)  # of an earlier step
    x, y = digits_like()
    seen = []

    def closure():
        seen.append(copies(net.parameters()))
        loss = F.cross_entropy(net["a"](x) + net["frozen"](x), y)
        loss.backward()
        return loss

    SAM(net, 0.5).gradients(closure)
    moved = [not torch.equal(a, b) for a, b in zip(*seen, strict=True)]
    assert moved == [True, True, False, False, False, False]
    offset = torch.cat([(b - a).flatten() for a, b in zip(*seen, strict=True)])
    assert offset.norm() == pytest.approx(0.5, rel=1e-5), "the norm is over those that move"
    assert net["unused"].weight.grad is None


def test_a_tied_weight_moves_once():
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    net[1].weight = net[0].weight
    seen = []
    x = digits_like()[0]

    def closure():
        seen.append(net[0].weight.detach().clone())
        loss = net(x).square().mean()
        loss.backward()
        return loss

    SAM(net, 0.5).gradients(closure)
    assert (seen[1] - seen[0]).norm() == pytest.approx(0.5, rel=1e-5)


def test_gradients_of_zero_give_a_second_pass_at_the_same_point():
    net = nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.zero_()
    for kind in (SAM, ASAM):
        closure = plain_closure(net, torch.zeros(4, 3), net.bias.detach().repeat(4, 1))
        kind(net).gradients(closure)
        assert closure.calls() == 2
        assert all((weight.grad == 0).all() for weight in net.parameters())


def test_a_closure_need_not_clear_the_gradients(make):
    net, x, y = problem()
    twin = copy.deepcopy(net)

    def careless():
        loss = F.mse_loss(net(x), y)
        loss.backward()
        return loss

    one, other = make(net), make(twin)
    for _ in range(3):
        one.gradients(careless)
        other.gradients(plain_closure(twin, x, y))
        assert equal([w.grad for w in net.parameters()], [w.grad for w in twin.parameters()])


def test_it_can_stand_where_autograd_is_off_and_in_the_closure_of_an_optimizer(make):
    net, x, y = problem()
    method = make(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = F.mse_loss(net(x), y).item()
    with torch.no_grad():
        method.gradients(plain_closure(net, x, y))
        optimizer.step()
        optimizer.step(lambda: method.gradients(plain_closure(net, x, y)))
    assert F.mse_loss(net(x), y) < before


def test_a_pass_that_breaks_off_leaves_the_weights_where_they_were(make):
    net, x, y = problem()
    method = make(net)
    good = plain_closure(net, x, y)
    method.gradients(good)
    method.gradients(good)
    broken = [0]

    def breaks_in_its_last_pass():
        broken[0] += 1
        if broken[0] == (1 if isinstance(method, MSAM) else 2):
            raise MemoryError
        return good()

    before = copies(net.parameters())
    rounds = 3
    for _ in range(rounds):
        try:
            method.gradients(breaks_in_its_last_pass)
        except MemoryError:
            break
    assert broken[0] in (1, 2)
    assert equal(before, net.parameters())


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


# Bad input.


def test_bad_arguments_are_named(make):
    net = nn.Linear(2, 2)
    for radius in (-0.1, float("nan"), float("inf"), None):
        with pytest.raises(LegatoValueError, match="radius: expected a plain finite number >= 0"):
            make.func(net, radius)
    with pytest.raises(
        LegatoTypeError, match=r"model: expected a torch.nn.Module; got list. Fix: pass the model itself"
    ):
        make(list(net.parameters()))
    with pytest.raises(LegatoValueError, match="model: expected trainable parameters; got none"):
        make(net.requires_grad_(False))
    with pytest.raises(LegatoValueError, match="model: expected trainable parameters"):
        make(nn.ReLU())
    whole, part = nn.Linear(2, 2), nn.Linear(2, 2)
    whole.shard = type("FullyShardedDataParallel", (nn.Identity,), {})()
    part.weight.device_mesh = object()
    for sharded in (whole, part):
        with pytest.raises(
            LegatoValueError, match="model: expected whole weights in every process; got weights that are"
        ):
            make(sharded)
    with pytest.raises(LegatoValueError, match="eta: expected a plain finite number"):
        ASAM(nn.Linear(2, 2), eta=float("nan"))


def test_bad_closures_are_named(make):
    net, x, y = problem()
    method = make(net)
    loss = F.mse_loss(net(x), y)
    with pytest.raises(LegatoTypeError, match="closure: expected a function without arguments; got Tensor"):
        method.gradients(loss)
    with pytest.raises(LegatoTypeError, match="closure: expected a function that returns a tensor; got NoneType"):
        method.gradients(loss.backward)
    with pytest.raises(
        LegatoValueError, match=r"closure: expected gradients in .grad .*; got none. Fix: call loss.backward"
    ):
        method.gradients(lambda: F.mse_loss(net(x), y))
    table = nn.Embedding(3, 2, sparse=True)
    with pytest.raises(LegatoValueError, match="closure: expected dense gradients; got a sparse one for weight"):
        make(table).gradients(plain_closure(table, torch.tensor([1]), torch.zeros(1, 2)))
