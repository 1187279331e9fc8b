"""The fused last layer against the plain one, which holds all logits; and what it does not do: hold them, or compute anything twice."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from legato import errors
from legato.bench.memory import peak_bytes
from legato.losses import comp_sum_loss
from legato.losses.fused import (
    CHUNK_BYTES,
    FusedLinearCompSum,
    _default_chunk,
    _stride,
    _sums,
    fused_linear_comp_sum,
)

TAUS = [0.0, 0.5, 1.0, 1.7, 2.0]
OPTIONS = {"temperature": 1.3, "z_loss": 0.1}


def batch(rows=13, width=3, classes=7, dtype=torch.float64, seed=0):
    """hidden, weight, bias, all of which want a gradient, and target, of which every fifth is ignored."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (classes, width), (classes,))
    tensors = [0.6 * torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    target = torch.randint(classes, (rows,), generator=generator)
    target[::5] = -100
    return *(x.to(dtype).requires_grad_() for x in tensors), target


def plain(hidden, weight, target, tau=1.0, *, bias=None, temperature=1.0, z_loss=0.0, reduction="mean", ignored=-100):
    h = F.linear(hidden, weight, bias)
    kept = target != ignored
    loss = comp_sum_loss(h, target, tau, temperature=temperature, reduction=reduction, ignore_index=ignored)
    squares = (h / temperature).logsumexp(-1)[kept].square()
    return loss + z_loss * (squares.sum() if reduction == "sum" else squares.mean())


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs, retain_graph=True)


def assert_same(got, want, **tolerance):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 1e-11, "atol": 1e-13}))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("tau", TAUS)
def test_loss_and_gradients_are_those_of_the_plain_way(tau, reduction):
    h, w, b, y = batch()
    got = fused_linear_comp_sum(h, w, y, tau, bias=b, chunk=4, reduction=reduction, **OPTIONS)
    want = plain(h, w, y, tau, bias=b, reduction=reduction, **OPTIONS)
    assert_same([got, *gradients(got, h, w, b)], [want, *gradients(want, h, w, b)])


@pytest.mark.parametrize("tau", TAUS)
def test_gradients_by_finite_differences(tau):
    h, w, b, y = batch()
    assert torch.autograd.gradcheck(
        lambda h, w, b: fused_linear_comp_sum(h, w, y, tau, bias=b, chunk=4, **OPTIONS), (h, w, b)
    )


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5, 2.0, 3.0])
def test_two_classes_with_a_margin_of_log_three(tau):
    """By hand: p = 3/4 and 1/4; the loss as for the logits, and d loss / d bias = p_y^(tau-1) (p_j - [j = y])."""
    one, w = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[math.log(3.0)], [0.0]], dtype=torch.float64)
    b = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = fused_linear_comp_sum(one, w, torch.tensor([0]), tau, bias=b)
    want = {0.0: 1 / 3, 1.0: math.log(4 / 3), 1.5: 2 - math.sqrt(3), 2.0: 0.25, 3.0: 7 / 32}[tau]
    assert loss.item() == pytest.approx(want, rel=1e-14)
    assert gradients(loss, b)[0].tolist() == pytest.approx([-(0.75 ** (tau - 1)) / 4, 0.75 ** (tau - 1) / 4], rel=1e-14)


def test_z_loss_of_equal_logits():
    """By hand: C logits of 0 have logsumexp log C and p = 1/C: z (log C)^2 + log C, with slope (1 + 2 z log C)/C - [j = y]."""
    b = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(5, 2, dtype=torch.float64)
    loss = fused_linear_comp_sum(zeros[:1], zeros, torch.tensor([3]), bias=b, z_loss=0.25)
    size = math.log(5)
    assert loss.item() == pytest.approx(0.25 * size**2 + size, rel=1e-14)
    slope = (1 + 0.5 * size) / 5
    assert gradients(loss, b)[0].tolist() == pytest.approx([slope, slope, slope, slope - 1, slope], rel=1e-13)


@given(
    st.integers(1, 20), st.integers(1, 5), st.integers(1, 12), st.integers(1, 25), st.floats(0, 2.5), st.integers(0, 99)
)
def test_the_size_of_a_chunk_changes_nothing(rows, width, classes, chunk, tau, seed):
    h, w, b, y = batch(rows, width, classes, seed=seed)
    got = fused_linear_comp_sum(h, w, y, tau, bias=b, chunk=chunk)
    want = fused_linear_comp_sum(h, w, y, tau, bias=b)
    assert_same([got, *gradients(got, h, w, b)], [want, *gradients(want, h, w, b)], rtol=1e-9, atol=1e-11)


def test_shapes_of_a_language_model():
    h, w, b, y = batch(12)
    want = fused_linear_comp_sum(h, w, y, 1.7, bias=b)
    got = fused_linear_comp_sum(h.reshape(3, 4, 3), w, y.reshape(3, 4), 1.7, bias=b, chunk=5)
    assert_same([got, *gradients(got, h, w, b)], [want, *gradients(want, h, w, b)])
    single = fused_linear_comp_sum(h[1], w, y[1], 1.7, bias=b)
    torch.testing.assert_close(single, plain(h[1:2], w, y[1:2], 1.7, bias=b))


def test_layouts_that_are_not_contiguous():
    h, w, b, y = batch()
    want = fused_linear_comp_sum(h, w, y, 1.7, bias=b)
    views = [
        h.detach().T.contiguous().T, torch.stack([w.detach(), w.detach()], 2)[..., 0], b.detach().repeat_interleave(2)[::2],
    ]  # fmt: skip
    assert not any(x.is_contiguous() for x in views)
    for x in views:
        x.requires_grad_()
    got = fused_linear_comp_sum(views[0], views[1], y.repeat_interleave(2)[::2], 1.7, bias=views[2], chunk=5)
    assert_same([got, *gradients(got, *views)], [want, *gradients(want, h, w, b)])


def test_a_weight_that_is_also_the_embedding_gets_both_gradients():
    _, w, _, y = batch()
    tokens = torch.arange(13) % 7
    for tau in (1.0, 1.7):
        want = gradients(plain(F.embedding(tokens, w).tanh(), w, y, tau), w)
        assert_same(gradients(fused_linear_comp_sum(F.embedding(tokens, w).tanh(), w, y, tau, chunk=4), w), want)


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_only_what_needs_a_gradient_gets_one(frozen):
    h, w, b, y = batch()
    want = gradients(plain(h, w, y, 1.7, bias=b), h, w, b)
    for i in frozen:
        (h, w, b)[i].requires_grad_(False)
    loss = fused_linear_comp_sum(h, w, y, 1.7, bias=b, chunk=4)
    assert loss.requires_grad == (len(frozen) < 3)
    if loss.requires_grad:
        loss.backward()
    for i, x in enumerate((h, w, b)):
        assert (x.grad is None) == (i in frozen)
        if i not in frozen:
            torch.testing.assert_close(x.grad, want[i])
    needed = [i not in frozen for i in range(3)]
    found = _sums(h.detach(), w.detach(), b.detach(), y, needed, torch.float64, 4, 1.7, 0.0, -100)[1:]
    assert [x.numel() > 0 for x in found] == needed


def test_without_a_tape_there_is_the_loss_alone():
    h, w, b, y = batch()
    want = fused_linear_comp_sum(h, w, y, 0.5, bias=b, **OPTIONS)
    with torch.no_grad():
        got = fused_linear_comp_sum(h, w, y, 0.5, bias=b, **OPTIONS)
    assert torch.equal(got, want)
    assert not got.requires_grad


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_mean_over_nothing_is_zero_with_a_gradient_of_zero(reduction):
    h, w, b, y = batch()
    for rows, classes in ((h[:0], y[:0]), (h, torch.full_like(y, -100))):
        loss = fused_linear_comp_sum(rows, w, classes, 1.7, bias=b, reduction=reduction, z_loss=0.1)
        assert loss == 0
        assert all((x == 0).all() for x in gradients(loss, h, w, b))


def test_an_ignored_row_counts_nothing_and_is_not_looked_at():
    h, w, b, y = batch()
    kept = y != -100
    want = fused_linear_comp_sum(h[kept], w, y[kept], 1.7, bias=b, **OPTIONS)
    spoilt = h.detach().masked_fill(~kept[:, None], math.nan).requires_grad_()
    for other in (y, y.where(kept, 9)):
        got = fused_linear_comp_sum(spoilt, w, other, 1.7, bias=b, chunk=4, ignore_index=int(other[0]), **OPTIONS)
        found = gradients(got, spoilt, w, b)
        assert_same([got, *found], [want, *gradients(want, h, w, b)])
        assert (found[0][~kept] == 0).all()


def test_an_ignored_class_may_be_one_of_the_classes():
    h, w, b, y = batch()
    y = y.where(y != -100, 2)
    got = fused_linear_comp_sum(h, w, y, 1.7, bias=b, chunk=4, ignore_index=2)
    want = plain(h, w, y, 1.7, bias=b, ignored=2)
    assert_same([got, *gradients(got, h, w, b)], [want, *gradients(want, h, w, b)])


def test_the_factor_that_comes_in_multiplies():
    h, w, b, y = batch()
    loss = fused_linear_comp_sum(h, w, y, 1.7, bias=b)
    once, thrice = gradients(loss, h, w, b), gradients(3 * loss, h, w, b)
    assert_same(thrice, [3 * x for x in once])


def test_gradients_of_several_calls_add_up():
    h, w, b, y = batch()
    for _ in range(2):
        fused_linear_comp_sum(h, w, y, 1.7, bias=b, chunk=4).backward()
    assert_same([h.grad, w.grad, b.grad], [2 * x for x in gradients(plain(h, w, y, 1.7, bias=b), h, w, b)])


def test_a_kept_graph_can_be_walked_again_and_leaves_earlier_gradients_alone():
    h, w, b, y = batch()
    loss = fused_linear_comp_sum(h, w, y, 1.7, bias=b, chunk=4, **OPTIONS)
    first = gradients(loss, h, w, b)
    before = [x.clone() for x in first]
    assert_same(gradients(5 * loss, h, w, b), [5 * x for x in before], rtol=1e-12, atol=1e-14)
    assert all(torch.equal(x, y) for x, y in zip(first, before, strict=True))


def test_a_second_derivative_is_refused():
    h, w, _, y = batch()
    with pytest.raises(errors.LegatoValueError, match=r"create_graph: .*first derivative only.*Fix: comp_sum_loss"):
        torch.autograd.grad(fused_linear_comp_sum(h, w, y), h, create_graph=True)


@pytest.mark.parametrize("tape", [True, False])
def test_vmap_is_refused(tape):
    h, w, _, y = batch()
    w.requires_grad_(tape)
    with pytest.raises((RuntimeError, errors.LegatoValueError), match="vmap"):
        torch.func.vmap(lambda x: fused_linear_comp_sum(x, w, y[1:5]))(h[:8].view(2, 4, 3).detach())


def test_equal_shards_average_to_the_whole():
    """What two processes with half of the rows each compute is the loss of all: their gradients are averaged."""
    h, w, b, y = batch(16)
    y = y.where(y != -100, 0)
    whole = fused_linear_comp_sum(h, w, y, 1.7, bias=b, **OPTIONS)
    shards = [fused_linear_comp_sum(h[s], w, y[s], 1.7, bias=b, chunk=3, **OPTIONS) for s in (slice(8), slice(8, 16))]
    averages = [(a + c) / 2 for a, c in zip(*(gradients(shard, w, b) for shard in shards), strict=True)]
    assert_same([sum(shards) / 2, *averages], [whole, *gradients(whole, w, b)])


def test_it_compiles_whole():
    h, w, b, y = batch(dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda h, w, b, y: fused_linear_comp_sum(h, w, y, 1.7, bias=b, chunk=4, **OPTIONS),
        backend="aot_eager", fullgraph=True,
    )  # fmt: skip
    for rows in (13, 6):
        inputs = (h[:rows].detach().requires_grad_(), w, b)
        got, want = compiled(*inputs, y[:rows]), fused_linear_comp_sum(inputs[0], w, y[:rows], 1.7, bias=b, **OPTIONS)
        found = torch.autograd.grad(2 * got, inputs)
        assert_same([2 * got, *found], [2 * want, *gradients(2 * want, *inputs)], rtol=1e-5, atol=1e-7)


def test_torch_finds_no_fault_with_the_operator():
    h, w, b, y = batch()
    arguments = (h.detach(), w.detach(), b.detach(), y, [True, True, True], torch.float64, 4, 1.7, 0.1, -100)
    torch.library.opcheck(
        torch.ops.legato.fused_linear_comp_sum.default, arguments, test_utils=("test_schema", "test_faketensor")
    )


def test_off_the_cpu_no_value_is_read():
    """On the device without values, to read one is an error."""
    h, w, b, y = (x.detach().to("meta") for x in batch())
    h, w, b = (x.requires_grad_() for x in (h, w, b))
    fused_linear_comp_sum(h, w, y, 1.7, bias=b, **OPTIONS).backward()
    assert [x.grad.shape for x in (h, w, b)] == [x.shape for x in (h, w, b)]


def test_masked_rows_count_nothing_where_they_cannot_be_left_out():
    """As on a GPU, where to leave them out would be to wait for it."""
    h, w, b, y = batch()
    tensors = [x.detach() for x in (h, w, b)]
    want = plain(h, w, y, 1.7, bias=b, z_loss=0.1, reduction="sum")
    for ignored in (-100, 9):  # below and above the classes
        target = y.where(y != -100, ignored)
        masked = _sums(*tensors, target, [True] * 3, torch.float64, 4, 1.7, 0.1, ignored)
        assert_same(masked, [want.detach(), *gradients(want, h, w, b)])


def test_checkpointing_computes_the_same():
    h, w, b, y = batch()
    loss = checkpoint(lambda h: fused_linear_comp_sum(h.tanh(), w, y, 1.7, bias=b), h, use_reentrant=False)
    loss.backward()
    assert_same([h.grad, w.grad, b.grad], gradients(plain(h.tanh(), w, y, 1.7, bias=b), h, w, b))


def test_the_logits_are_never_there_all_at_once():
    """At most a chunk of logits, the gradients, and a few numbers a row."""
    h, w, _, y = batch(1000, 8, 3000, torch.float32)

    def step():
        fused_linear_comp_sum(h, w, y, 1.7, chunk=50).backward()
        h.grad = w.grad = None

    numbers = 50 * _stride(3000, torch.float32) + h.numel() + w.numel()
    assert peak_bytes(step) <= 4 * (numbers + h.numel() + 20 * 1000)
    assert 4 * numbers <= 0.1 * 4 * 1000 * 3000


def test_nothing_is_computed_twice():
    """Three products a chunk in a step, two for a frozen weight, one where there is no gradient."""
    h, w, _, y = batch(20, 4, 30, torch.float32)
    y = y.where(y != -100, 0)

    def products(run):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
            run()
        names = ("aten::mm", "aten::addmm_", "aten::addmm")
        return sum(event.count for event in recorded.key_averages() if event.key in names)

    assert products(lambda: fused_linear_comp_sum(h, w, y, 1.7, chunk=5).backward()) == 12
    assert products(lambda: fused_linear_comp_sum(h, w.detach(), y, 1.7, chunk=5).backward()) == 8
    with torch.no_grad():
        assert products(lambda: fused_linear_comp_sum(h, w, y, 1.7, chunk=5)) == 4


def test_rows_of_the_buffer_are_an_odd_number_of_cache_lines():
    for kind, line in ((torch.float32, 16), (torch.float64, 8)):
        for classes in (1, 7, 16, 17, 1000, 32768, 50257, 50304):
            stride = _stride(classes, kind)
            assert classes <= stride < classes + 2 * line
            assert stride % (2 * line) == line


def test_the_default_chunk_has_its_budget():
    assert [_default_chunk(classes, torch.float32) for classes in (10, 50257, 256000)] == [512, 333, 128]
    for kind in (torch.float32, torch.float64):
        logits = _default_chunk(50257, kind) * _stride(50257, kind) * kind.itemsize
        assert 0.99 * CHUNK_BYTES < logits <= CHUNK_BYTES


def test_the_object_agrees_bit_for_bit():
    h, w, b, y = batch()
    options = {"ignore_index": 3, "chunk": 5, "reduction": "sum", **OPTIONS}
    made = FusedLinearCompSum(1.7, **options)
    assert torch.equal(
        made(h, w, y.clamp_min(0), b), fused_linear_comp_sum(h, w, y.clamp_min(0), 1.7, bias=b, **options)
    )
    assert torch.equal(FusedLinearCompSum()(h, w, y), fused_linear_comp_sum(h, w, y))
    assert (
        repr(copy.deepcopy(made))
        == "FusedLinearCompSum(tau=1.7, temperature=1.3, chunk=5, ignore_index=3, z_loss=0.1, reduction='sum')"
    )
    assert not list(made.parameters())


def test_a_head_of_a_model_trains_with_it():
    layer = nn.Linear(4, 3, dtype=torch.float64)
    criterion = FusedLinearCompSum(1.7)
    x = torch.eye(4, dtype=torch.float64)[:3]
    optimizer = torch.optim.SGD(layer.parameters(), 5.0)
    losses = []
    for _ in range(30):
        loss = criterion(x, layer.weight, torch.arange(3), layer.bias)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"hidden": torch.ones(4, 3, dtype=torch.int64)}, TypeError, "hidden: expected a floating point tensor; got torch.int64"),
        ({"hidden": [1.0]}, TypeError, "hidden: expected a floating point tensor; got list"),
        ({"weight": torch.ones(5, 2)}, ValueError, r"weight: expected shape \[C, D\] .* \[4, 3\]; got shape \[5, 2\]"),
        ({"weight": torch.ones(3)}, ValueError, r"weight: .* got shape \[3\]"),
        ({"weight": torch.ones(5, 3).double()}, ValueError, "weight: expected torch.float32.* got torch.float64"),
        ({"bias": torch.ones(4)}, ValueError, r"bias: expected shape \[5\]; got shape \[4\]"),
        ({"bias": torch.ones(5).bfloat16()}, ValueError, "bias: expected torch.float32.* got torch.bfloat16"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, r"target: expected int64 class indices of shape \[4\]"),
        ({"target": torch.zeros(4)}, ValueError, "target: expected int64 .* got torch.float32"),
        ({"target": torch.tensor([0, 5, 1, 2])}, ValueError, r"target: expected classes in 0 .. 4.*got class 5"),
        ({"target": torch.tensor([0, -1, 1, 2])}, ValueError, r"got class -1"),
        ({"chunk": 0}, ValueError, "chunk: expected a whole number of rows >= 1"),
        ({"chunk": 2.5}, ValueError, "chunk: "),
        ({"z_loss": -1.0}, ValueError, "z_loss: "),
        ({"z_loss": math.nan}, ValueError, "z_loss: "),
        ({"tau": -1.0}, ValueError, "tau: "),
        ({"temperature": 0.0}, ValueError, "temperature: "),
        ({"reduction": "none"}, ValueError, r"reduction: expected mean or sum, .*Fix: comp_sum_loss\(F.linear"),
        ({"reduction": "men"}, ValueError, "Did you mean 'mean'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, error, words):
    arguments = {"hidden": torch.ones(4, 3), "weight": torch.ones(5, 3), "target": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(error, match=words) as caught:
        fused_linear_comp_sum(**{**arguments, **change})
    assert isinstance(caught.value, errors.LegatoError)


def test_a_bad_object_is_refused_when_it_is_made():
    for options in ({"chunk": 0}, {"tau": -1.0}, {"reduction": "none"}, {"z_loss": -1.0}, {"temperature": 0.0}):
        with pytest.raises(errors.LegatoValueError, match=next(iter(options))):
            FusedLinearCompSum(**options)
