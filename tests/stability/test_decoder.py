"""The decoder against its closed forms: sizes, spreads, norms, causality, and the gradient of its layer normalisation."""

import math
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from legato.errors import LegatoValueError
from legato.stability.decoder import LAYER_NORM_EPS, Decoder, rotary_table, rotate, truncated_normal_
from legato.stability.watch import watch

SMALL = {"vocabulary": 11, "width": 16, "depth": 2, "heads": 2, "length": 12}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens(rows=3, steps=12, vocabulary=11):
    return torch.randint(vocabulary, (rows, steps), generator=generator(5))


def decoder(**changes):
    return Decoder(**SMALL | {"generator": generator()} | changes)


@pytest.mark.parametrize(("width", "depth", "heads", "qk_norm"), list(product([16, 48], [1, 3], [1, 2], [True, False])))
def test_n_is_12_l_d_squared_and_the_rest_is_gains_embedding_and_head(width, depth, heads, qk_norm):
    model = decoder(width=width, depth=depth, heads=heads, qk_norm=qk_norm)
    assert model.size == 12 * depth * width**2
    gains = (2 * depth + 1) * width + (2 * depth * width // heads if qk_norm else 0)
    assert sum(weight.numel() for weight in model.parameters()) == model.size + gains + 2 * 11 * width


@pytest.mark.parametrize(("width", "depth", "size"), [(256, 3, 2.36e6), (1024, 12, 1.51e8), (4096, 24, 4.83e9)])
def test_the_sizes_of_the_paper(width, depth, size):
    with torch.device("meta"):
        blocks = Decoder(2, width, 1, width // 64, length=1)
    assert depth * blocks.size == pytest.approx(size, rel=3e-3)


def test_first_weights_have_their_spread_after_the_cut():
    model = Decoder(500, 128, 1, 2, length=4, generator=generator())
    for name, weight in model.state_dict().items():
        if weight.dim() == 2:
            want = weight.shape[1] ** -0.5
            assert float(weight.std()) == pytest.approx(want, rel=4 / math.sqrt(weight.numel())), name
            cut = 2 * want / 0.8796256
            assert bool(weight.abs().max() <= cut * 1.0001) == (name != "embedding.weight")
        else:
            assert bool((weight == 1).all())


def test_the_cut_normal_has_the_spread_that_was_asked_for():
    weight = truncated_normal_(torch.empty(400_000, dtype=torch.float64), 3.0, generator())
    assert float(weight.std()) == pytest.approx(3.0, rel=4 / math.sqrt(2 * 400_000))


def test_the_generator_alone_decides_the_weights():
    torch.manual_seed(1)
    first = decoder().state_dict()
    before = torch.random.get_rng_state()
    second = decoder().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(first["head.weight"], decoder(generator=generator(1)).state_dict()["head.weight"])


def test_a_model_that_was_built_without_memory_becomes_the_same():
    with torch.device("meta"):
        model = decoder(generator=None)
    model.to_empty(device="cpu").reset_parameters(generator())
    torch.testing.assert_close(model(tokens()), decoder()(tokens()), rtol=0, atol=0)


def test_half_precision():
    want = decoder()(tokens())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(decoder()(tokens()).float(), want, rtol=0.1, atol=0.1)
    torch.testing.assert_close(decoder().bfloat16()(tokens()).float(), want, rtol=0.1, atol=0.1)


def by_hand(model, inputs):
    """The model's formula once more: loops over heads and positions, dense softmax, complex rotation."""
    heads, width = model.blocks[0].attention.heads, model.width
    size = width // heads
    x = model.embedding.weight[inputs]
    steps = inputs.shape[1]
    turn = torch.polar(
        torch.ones(steps, size // 2, dtype=torch.float64),
        torch.arange(steps, dtype=torch.float64)[:, None] * 10000.0 ** (-2 * torch.arange(size // 2) / size),
    )

    def norm(x, gain):
        return gain * (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + LAYER_NORM_EPS).sqrt()

    def turned(x):
        pair = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * turn
        return torch.cat([pair.real, pair.imag], -1)

    for block in model.blocks:
        a, at = block.attention, norm(x, block.attention_norm.weight)
        mixed = []
        for head in range(heads):
            rows = slice(head * size, (head + 1) * size)
            q, k, v = (at @ layer.weight[rows].T for layer in (a.query, a.key, a.value))
            if not isinstance(a.query_norm, torch.nn.Identity):
                q, k = norm(q, a.query_norm.weight), norm(k, a.key_norm.weight)
            logits = turned(q) @ turned(k).mT * a.scale
            logits = logits.masked_fill(torch.ones(steps, steps).triu(1).bool(), -math.inf)
            mixed.append(logits.softmax(-1) @ v)
        x = x + torch.cat(mixed, -1) @ a.output.weight.T
        x = x + F.gelu(norm(x, block.mlp_norm.weight) @ block.up.weight.T) @ block.down.weight.T
    return norm(x, model.norm.weight) @ model.head.weight.T


@pytest.mark.parametrize(("qk_norm", "scale"), [(True, None), (False, None), (True, 0.125)])
def test_the_model_is_its_formula(qk_norm, scale):
    model = decoder(qk_norm=qk_norm, attention_scale=scale).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.3 * torch.rand(weight.shape, generator=generator(2), dtype=torch.float64))  # gains too
        torch.testing.assert_close(
            model(tokens()), by_hand(model, tokens()), rtol=1e-5, atol=1e-6
        )  # tables are float32


def test_later_tokens_change_no_earlier_logit():
    model, first = decoder(), tokens()
    second = first.clone()
    second[:, 7:] = (second[:, 7:] + 1) % 11
    before, after = model(first), model(second)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_rotation_keeps_norms_and_sees_distances_alone():
    x, y = torch.randn(2, 9, 6, generator=generator())
    cosine, sine = rotary_table(9, 6)
    torch.testing.assert_close(rotate(x, cosine, sine).norm(dim=-1), x.norm(dim=-1))
    products = torch.stack(
        [rotate(x[:1], cosine[[t]], sine[[t]]) @ rotate(y[:1], cosine[[t + 3]], sine[[t + 3]]).T for t in range(6)]
    )
    torch.testing.assert_close(products, products[:1].expand_as(products), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_normalised_queries_and_keys_bound_the_logits_that_the_watcher_sees(qk_norm):
    """|logit| <= sqrt(D) at unit gain, however large the weights; without the normalisation they pass it."""
    model = decoder(qk_norm=qk_norm)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.query.weight.mul_(100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer) as watcher:
        model(tokens()).square().mean().backward()
        optimizer.step()
    seen = watcher.latest.attention
    assert list(seen) == ["blocks.0.attention", "blocks.1.attention"]
    assert all(layer.source == "kernel" and len(layer.max) == 2 for layer in seen.values())
    largest = max(max(layer.absmax) for layer in seen.values())
    assert (largest <= math.sqrt(8) * (1 + 1e-5)) == qk_norm


def test_gradient_of_a_layer_norm():
    """grad_x = (a g - <g, a x> x / (n m)) / sqrt(m) for x of mean 0 and m = mean x^2 + eps; scaling x by c scales it by 1/c (eps 0)."""
    n, eps = 7, 1e-3
    x, gain, g = torch.randn(3, n, dtype=torch.float64, generator=generator())
    x = (x - x.mean()).requires_grad_()
    F.rms_norm(x, (n,), gain, eps).backward(g)
    m = x.square().mean() + eps
    torch.testing.assert_close(x.grad, (gain * g - (g @ (gain * x)) * x / (n * m)) / m.sqrt())
    small, large = (torch.autograd.grad(F.layer_norm(c * x, (n,), gain, eps=0.0) @ g, x)[0] / c for c in (1.0, 8.0))
    torch.testing.assert_close(large, small / 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 3}, "heads: expected a divisor of the width 16"),
        ({"width": 6}, "heads: expected an even width of each head"),
        ({"vocabulary": 1}, "vocabulary: expected a whole number >= 2"),
        ({"depth": 0}, "depth: expected a whole number >= 1"),
        ({"length": 0}, "length: expected"),
    ],
)
def test_sizes_that_do_not_fit(changes, words):
    with pytest.raises(LegatoValueError, match=words):
        decoder(**changes)


def test_a_sequence_that_is_too_long():
    with pytest.raises(LegatoValueError, match=r"T <= 12; got \[3, 13\]"):
        decoder()(tokens(steps=13))
