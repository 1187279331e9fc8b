"""What every way to a gradient must leave untouched, and what is refused."""

import copy

import pytest
import torch
from climbs import SEAMS, D, copies, digits_like, equal, noisy_net, plain_closure
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoTypeError, LegatoValueError
from legato.flatness import perturbation
from legato.flatness.msam import MSAM
from legato.flatness.sam import ASAM, SAM


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
