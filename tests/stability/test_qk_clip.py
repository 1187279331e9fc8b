"""QK-clip: after it, the logits of a clipped head reach the threshold and no other head has changed."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoTypeError, LegatoValueError
from legato.stability.qk_clip import Heads, QKClip, find_heads, qk_clip_factors
from legato.stability.readings import AttentionReading, Reading
from legato.stability.watch import watch

WIDTH, HEADS = 16, 4


def reading(tops, step=0, name="attend", exact=True):
    return Reading(step, {name: AttentionReading(tops, tops, None, None, tops if exact else None, None, "kernel")})


def test_factors_are_their_definition():
    top = torch.tensor([-5.0, 0.0, 100.0, 101.0, 400.0, math.inf, math.nan], dtype=torch.float64)
    want = torch.tensor([1.0, 1.0, 1.0, 100 / 101, 0.25, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(qk_clip_factors(top), want, rtol=1e-15, atol=0)
    assert torch.equal(qk_clip_factors(top, 1e9)[:5], torch.ones(5, dtype=torch.float64))


class Attend(nn.Module):
    """Separate projections, of which the keys may have fewer heads."""

    def __init__(self, key_heads=HEADS, bias=True):
        super().__init__()
        self.head_dim = WIDTH // HEADS
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.k_proj = nn.Linear(WIDTH, key_heads * self.head_dim, bias=bias)

    def heads(self, x):
        return (part(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (self.q_proj, self.k_proj))

    def forward(self, x):
        q, k = self.heads(x)
        return F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attend = Attend(**options)

    def forward(self, x):
        return self.attend(x)


def largest(model, x):
    with torch.no_grad():
        q, k = model.attend.heads(x)
    z = q @ k.repeat_interleave(HEADS // k.shape[1], 1).transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
    return z.masked_fill(~torch.ones(z.shape[-2:]).tril().bool(), -math.inf).amax((0, 2, 3))


@pytest.mark.parametrize("key_heads", [HEADS, 2, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_step_brings_heads_to_the_threshold(key_heads, bias):
    torch.manual_seed(0)
    model = Model(key_heads=key_heads, bias=bias).double()
    x = 5 * torch.randn(3, 7, WIDTH, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = largest(model, x)
    threshold = float(before.sort().values[1:3].mean())  # two heads are above
    clip = QKClip(find_heads(model), threshold)
    with watch(model, optimizer) as watcher:
        model(x).sum().backward()
        optimizer.step()
        [factors] = clip.step(watcher.latest).values()
        assert clip.step(watcher.latest) == {}  # once for each reading
    torch.testing.assert_close(largest(model, x), before.clamp(max=threshold), rtol=1e-6, atol=0)
    assert sum(factor < 1 for factor in factors) == 2


def test_shared_keys_are_left_alone():
    model = Model(key_heads=2)
    key = model.attend.k_proj.weight.detach().clone()
    find_heads(model)["attend"].scale_(torch.tensor([0.25, 1.0, 1.0, 1.0]))
    assert torch.equal(model.attend.k_proj.weight, key)
    model = Model()
    query = model.attend.q_proj.weight.detach().clone()
    find_heads(model)["attend"].scale_(torch.tensor([0.25, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(model.attend.q_proj.weight, query * torch.tensor([0.5] * 4 + [1.0] * 12)[:, None])


@pytest.mark.parametrize("options", [{}, {"kdim": 12, "vdim": 12}, {"bias": False}])
def test_multihead_attention_is_known(options):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)
    [heads] = find_heads(layer).values()
    x, y = torch.randn(2, 5, WIDTH), torch.randn(2, 5, options.get("kdim", WIDTH))
    _, before = layer(x, y, y, average_attn_weights=False)
    heads.scale_(torch.tensor([0.0, 1.0, 1.0, 1.0]))
    _, after = layer(x, y, y, average_attn_weights=False)
    torch.testing.assert_close(after[:, 0], torch.full((2, 5, 5), 0.2))  # logits of 0: all keys alike
    torch.testing.assert_close(after[:, 1:], before[:, 1:])


def test_a_transposed_joint_weight_is_known():
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(WIDTH, 3 * WIDTH)), nn.Parameter(torch.ones(3 * WIDTH))

    model = nn.Module()
    model.c_attn, model.num_heads = Conv1D(), HEADS
    [heads] = find_heads(model).values()
    heads.scale_(torch.tensor([1.0, 0.25, 1.0, 1.0]))
    want = torch.ones(3 * WIDTH)
    want[4:8] = want[WIDTH + 4 : WIDTH + 8] = 0.5
    assert torch.equal(model.c_attn.bias, want) and torch.equal(model.c_attn.weight, want.expand(WIDTH, -1))


def test_normalised_queries_and_keys_are_left_out():
    model = Model()
    model.attend.q_norm = nn.LayerNorm(4)
    assert find_heads(model) == {}


def test_the_upper_end_is_taken_where_the_maximum_is_unknown():
    clip = QKClip(find_heads(Model()), 100.0)
    assert clip.step(reading([50.0, 200.0, 0.0, 0.0], exact=False)) == {"attend": [1.0, 0.5, 1.0, 1.0]}
    assert clip.step(None) == {} and clip.step(reading([50.0] * 4, step=1)) == {}


def test_what_cannot_be_used():
    heads = find_heads(Model())
    with pytest.raises(LegatoValueError, match="threshold"):
        qk_clip_factors(torch.ones(2), 0.0)
    with pytest.raises(LegatoTypeError, match="largest: expected a floating point tensor; got list"):
        qk_clip_factors([1.0])
    with pytest.raises(LegatoValueError, match="layers"):
        QKClip({})
    with pytest.raises(LegatoValueError, match=r"reading: expected one with attend; got layers \['other'\]"):
        QKClip(heads).step(reading([1.0] * 4, name="other"))
    with pytest.raises(LegatoValueError, match="factors"):
        heads["attend"].scale_(torch.ones(3))
    weight = torch.ones(6, 2)
    with pytest.raises(LegatoValueError, match="heads: expected a multiple"):
        Heads([weight], [weight], 3, 2)
    with pytest.raises(LegatoValueError, match="query: expected 4 heads in axis 0"):
        Heads([weight], [weight], 4, 2)
