"""The surface against dense Hessians, closed forms and finite differences, and that a reading leaves no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from legato.errors import LegatoTypeError, LegatoValueError
from legato.flatness.surface import Surface


def generator():
    return torch.Generator().manual_seed(0)


def rows(n=10, features=5, classes=3, dtype=torch.float64):
    return torch.randn(n, features, dtype=dtype, generator=generator()), torch.randint(
        classes, (n,), generator=generator()
    )


def own(model, seed=3):
    """The model in float64 with weights and buffers that are far from their defaults."""
    numbers = torch.Generator().manual_seed(seed)
    for t in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
        t.data = 0.5 * torch.rand(t.shape, dtype=torch.float64, generator=numbers) - 0.1
    return model.double()


def smooth():
    return own(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)))


def convolutional():
    layers = (nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.GELU(), nn.Flatten(), nn.Linear(9, 3))
    return own(nn.Sequential(*layers))


def as_function(surface, x, y):
    """The mean loss of the rows as a pure function of the flat weights, in the model's present mode."""
    shapes = {name: p.shape for name, p in surface.model.named_parameters() if p.requires_grad}

    def loss(w):
        weights = {name: w[surface.blocks[name]].view(shape) for name, shape in shapes.items()}
        buffers = {name: b.clone() for name, b in surface.model.named_buffers()}
        return surface.loss(torch.func.functional_call(surface.model, weights | buffers, (x,)), y)

    return loss


def close(got, want, rtol=1e-12, atol=1e-13):
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(want), rtol=rtol, atol=atol)


@pytest.mark.parametrize("make", [smooth, convolutional])
@pytest.mark.parametrize("splits", [[10], [1, 4, 5]])
def test_value_gradient_and_product_are_those_of_the_dense_function(make, splits):
    x, y = rows()
    surface = Surface(make(), F.cross_entropy, list(zip(x.split(splits), y.split(splits), strict=True)))
    loss, w = as_function(surface, x, y), surface.weights()
    surface.model.eval()
    close(surface.value(), float(loss(w)))
    close(surface.gradient(), torch.func.grad(loss)(w))
    v = torch.randn(surface.size, dtype=torch.float64, generator=generator())
    close(surface.product(v), torch.func.hessian(loss)(w) @ v)


def test_softmax_regression_has_its_closed_form():
    """H = mean over rows of (diag p - p p') x x'."""
    x, y = rows()
    surface = Surface(nn.Linear(5, 3, bias=False).double(), F.cross_entropy, [(x[:4], y[:4]), (x[4:], y[4:])])
    p = surface.model(x).softmax(1).detach()
    curvature = p.diag_embed() - p[:, :, None] * p[:, None]
    hessian = torch.einsum("bij,bk,bl->ikjl", curvature, x, x).reshape(15, 15) / 10
    close(torch.stack([surface.product(e) for e in torch.eye(15, dtype=torch.float64)]), hessian)
    close(surface.gradient(), ((p - F.one_hot(y, 3)).T @ x).flatten() / 10)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_reading_leaves_no_trace(mode):
    model = smooth()
    model[3].eval()  # a layer that somebody has put into another mode than the rest
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    surface = Surface(model, F.cross_entropy, [rows(), rows(7)], mode)
    torch.manual_seed(5)
    random = torch.get_rng_state()
    surface.value(), surface.gradient(), surface.product(surface.weights())
    with surface.held() as product:
        product(surface.weights())
    with surface.at(surface.weights()):
        surface.value()
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert all(torch.equal(b, state[name]) for name, b in model.state_dict().items())


def test_after_an_error_the_model_is_what_it_was():
    model = smooth()
    before, random = [p.clone() for p in model.parameters()], torch.get_rng_state()
    surface = Surface(model, lambda output, _: 1 / 0, [rows()])
    with pytest.raises(ZeroDivisionError), surface.at(torch.ones(surface.size)):
        surface.product(surface.weights())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_in_eval_mode_dropout_is_off_and_running_statistics_are_used():
    x, y = rows()
    model = smooth()
    value = Surface(model, F.cross_entropy, [(x, y)]).value()
    close(value, F.cross_entropy(model.eval()(x), y).item())


def by_hand(surface):
    """`smooth` in train mode without dropout, its normalisation written out: torch.func.hessian is wrong for torch's own."""

    def loss(w, x, y):
        a, b, scale, shift, c, d = (
            w[block].view(p.shape) for block, p in zip(surface.blocks.values(), surface.parameters, strict=True)
        )
        h = x @ a.T + b
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() * scale + shift
        return F.cross_entropy(h.tanh() @ c.T + d, y)

    return loss


def test_in_train_mode_each_micro_batch_has_its_own_statistics():
    x, y = rows()
    model = smooth()
    model[3].p = 0.0
    surface = Surface(model, F.cross_entropy, [(x[:4], y[:4]), (x[4:], y[4:])], "train")
    w, v = surface.weights(), torch.randn(surface.size, dtype=torch.float64, generator=generator())
    hand = by_hand(surface)

    def loss(w):
        return 0.4 * hand(w, x[:4], y[:4]) + 0.6 * hand(w, x[4:], y[4:])

    close(surface.value(), float(loss(w)))
    close(surface.gradient(), torch.func.grad(loss)(w))
    close(surface.product(v), torch.func.hessian(loss)(w) @ v)


def test_in_train_mode_dropout_draws_the_same_masks_each_time():
    surface = Surface(smooth(), F.cross_entropy, [rows(), rows()], "train")
    other = Surface(surface.model, F.cross_entropy, surface.batches, "train", seed=1)
    torch.manual_seed(1)
    first = surface.value()
    torch.manual_seed(2)
    assert surface.value() == first != other.value()
    h = 1e-5
    v = torch.ones(surface.size, dtype=torch.float64)
    with surface.at(h * v):
        above = surface.value()
    with surface.at(-h * v):
        below = surface.value()
    close((above - below) / (2 * h), float(surface.gradient() @ v), rtol=1e-7)


class Sparse(nn.Module):
    """One weight that is used, one that enters linearly, one that does not enter, one that is frozen, one that is used twice."""

    def __init__(self):
        super().__init__()
        for name in ("used", "linear", "unused", "frozen"):
            self.register_parameter(name, nn.Parameter(torch.full((2,), 1.5, dtype=torch.float64)))
        self.twin = self.used
        self.frozen.requires_grad = False

    def forward(self, x):
        return (self.used * self.twin * x).sum(1) + (self.linear * self.frozen).sum()


def test_weights_that_do_not_enter_have_zeros_and_tied_ones_count_once():
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    surface = Surface(Sparse(), lambda output, _: output.mean(), [(x, x)])
    assert list(surface.blocks) == ["used", "linear", "unused"]
    assert surface.size == 6
    close(surface.gradient(), torch.tensor([3.0, 6.0, 1.5, 1.5, 0, 0]).double())
    close(surface.product(torch.ones(6)), torch.tensor([2.0, 4.0, 0, 0, 0, 0]).double())


@pytest.mark.parametrize("loss", [lambda output, y: y.mean(), lambda output, y: output.mean()])
def test_a_loss_that_is_constant_or_linear_has_a_product_of_zero(loss):
    x = torch.ones(3, 2)
    surface = Surface(nn.Linear(2, 1), loss, [(x, x)])
    assert torch.equal(surface.product(torch.ones(3)), torch.zeros(3))
    with surface.held() as product:
        assert torch.equal(product(torch.ones(3)), product(torch.zeros(3)))


def test_at_moves_the_weights_and_brings_them_back_bit_for_bit():
    x, y = rows(dtype=torch.float32)
    model = nn.Linear(5, 3)
    surface = Surface(model, F.cross_entropy, [(x, y)])
    before, offset = surface.weights(), torch.rand(18, generator=generator()) / 3
    with surface.at(offset):
        assert torch.equal(surface.weights(), before + offset)
        assert surface.value() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-6)
        with surface.at(-2 * offset):
            assert torch.equal(surface.weights(), before + offset - 2 * offset)
        assert torch.equal(surface.weights(), before + offset)
    assert torch.equal(surface.weights(), before)


def test_products_that_are_held_share_one_graph_and_follow_the_weights():
    calls = []

    def loss(output, target):
        calls.append(len(target))
        return F.cross_entropy(output, target)

    surface = Surface(smooth(), loss, [rows()])
    v = torch.ones(surface.size, dtype=torch.float64)
    want = surface.product(v)
    calls.clear()
    with surface.held() as product:
        assert torch.equal(product(v), want)
        with surface.held() as inner:
            assert torch.equal(inner(2 * v), 2 * want)
        assert torch.equal(product(v), want)
        assert calls == [10]
        with surface.at(v):
            moved = product(v)
        assert not torch.allclose(moved, want)
        assert torch.equal(product(v), want)
    assert surface._held is None
    calls.clear()
    surface.product(v), surface.product(v)
    assert calls == [10, 10]


def test_only_one_graph_is_held_at_a_time():
    x, y = rows()
    surface = Surface(smooth(), F.cross_entropy, [(x[:5], y[:5]), (x[5:], y[5:])])
    v = torch.ones(surface.size, dtype=torch.float64)
    with surface.held() as product:
        assert torch.equal(product(v), product(v))
        assert surface._held is None


def test_a_loader_that_shuffles_gives_the_same_numbers_each_time():
    x, y = rows(dtype=torch.float32)
    surface = Surface(nn.Linear(5, 3), F.cross_entropy, DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True))
    random = torch.get_rng_state()
    assert surface.value() == surface.value()
    assert torch.equal(surface.gradient(), surface.gradient())
    assert surface.rows == surface.rows == 10
    assert torch.equal(torch.get_rng_state(), random)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)

    def forward(self, x):
        return self.layer(x).mean(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0][:, -1]


@pytest.mark.parametrize("make", [Attention, Recurrent])
def test_kernels_without_a_second_derivative_are_left_aside(make):
    """The product against a central difference of the gradient."""
    x = torch.randn(5, 3, 4, dtype=torch.float64, generator=generator())
    surface = Surface(own(make()), F.cross_entropy, [(x, torch.arange(5) % 3)])
    v = torch.randn(surface.size, dtype=torch.float64, generator=generator())
    slopes = []
    for h in (1e-5, -1e-5):
        with surface.at(h * v):
            slopes.append(surface.gradient())
    close(surface.product(v), (slopes[0] - slopes[1]) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("state", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_the_callers_state_does_not_matter(state):
    x, y = rows(dtype=torch.float32)
    surface = Surface(nn.Linear(5, 3), F.cross_entropy, [(x, y)])
    v = torch.ones(18)
    want = surface.value(), surface.gradient(), surface.product(v)
    with state():
        got = surface.value(), surface.gradient(), surface.product(v)
    assert got[0] == want[0]
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[2], want[2])


def test_a_restricted_surface_has_a_diagonal_block():
    x, y = rows()
    surface = Surface(smooth(), F.cross_entropy, [(x, y)])
    block = surface.restricted(["4.weight", "0.bias"])
    hessian = torch.stack([surface.product(e) for e in torch.eye(surface.size, dtype=torch.float64)])
    index = torch.cat([torch.arange(surface.size)[surface.blocks[name]] for name in block.blocks])
    close(torch.stack([block.product(e) for e in torch.eye(block.size, dtype=torch.float64)]), hessian[index][:, index])
    assert torch.equal(block.weights(), surface.weights()[index])


def test_wrappers_are_taken_off_and_empty_micro_batches_skipped():
    x, y = rows()
    plain = smooth()
    compiled = nn.Sequential()
    compiled._orig_mod = nn.DataParallel(plain)
    surface = Surface(compiled, F.cross_entropy, [(x[:0], y[:0]), (x, y)])
    assert surface.model is plain
    close(surface.value(), Surface(plain, F.cross_entropy, [(x, y)]).value())


def test_flat_vectors_have_the_longest_type_of_the_weights():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    surface = Surface(model, lambda output, y: output.mean(), [(torch.ones(1, 2), torch.ones(1))])
    assert surface.weights().dtype == torch.float64
    assert Surface(nn.Linear(2, 1), F.mse_loss, []).weights().dtype == torch.float32
    assert repr(surface) == "Surface(Sequential, 12 weights, mode='eval')"


def test_wrong_arguments_say_what_is_wrong():
    model, batches = nn.Linear(5, 3), [rows(dtype=torch.float32)]
    with pytest.raises(LegatoTypeError, match="again and again"):
        Surface(model, F.cross_entropy, iter(batches))
    with pytest.raises(LegatoValueError, match="Did you mean 'train'"):
        Surface(model, F.cross_entropy, batches, "training")
    with pytest.raises(LegatoValueError, match="requires_grad"):
        Surface(nn.ReLU(), F.cross_entropy, batches)
    with pytest.raises(LegatoValueError, match=r"float16 in weight.*deepcopy"):
        Surface(nn.Linear(5, 3).half(), F.cross_entropy, batches)
    with pytest.raises(LegatoValueError, match="Did you mean 'weight'"):
        Surface(model, F.cross_entropy, batches, only=["wieght"])
    surface = Surface(model, lambda output, y: F.cross_entropy(output, y, reduction="none"), batches)
    with pytest.raises(LegatoValueError, match=r"tensor of shape \[\]; got shape \[10\]"):
        surface.value()
    with pytest.raises(LegatoValueError, match=r"v: expected shape \[18\]"):
        surface.product(torch.ones(3))
    with pytest.raises(LegatoValueError, match=r"offset: expected shape \[18\]"), surface.at(torch.ones(18, 1)):
        pass
    with pytest.raises(LegatoValueError, match="one row or more"):
        Surface(model, F.cross_entropy, []).value()
    with pytest.raises(LegatoTypeError, match="pairs"):
        Surface(model, F.cross_entropy, [torch.ones(2, 5)]).value()
