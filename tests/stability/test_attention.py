"""Attention logits: the values against dense twins in float64, and every form of attention that can be seen."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.stability.attention import (
    Call,
    Interception,
    exact_values,
    kernel_values,
    key_counts,
    log_sum_exp_interval,
    logit_values,
    norm_bound,
)

B, H, T, S, D = 2, 4, 13, 13, 8
MASKS = ["none", "causal", "bool", "padding", "added", "empty row"]


def tensors(heads=H, key_heads=H, rows=T, keys=S, dtype=torch.float64, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    q = scale * torch.randn(B, heads, rows, D, dtype=torch.float64, generator=generator)
    k = scale * torch.randn(B, key_heads, keys, D, dtype=torch.float64, generator=generator)
    return q.to(dtype), k.to(dtype)


def mask_of(kind, rows=T, keys=S, dtype=torch.float64):
    """(attn_mask, is_causal)."""
    generator = torch.Generator().manual_seed(1)
    if kind == "bool":
        return torch.rand(rows, keys, generator=generator) < 0.6, False
    if kind == "padding":
        return (torch.arange(keys) < torch.tensor([[5], [keys]]))[:, None, None], False
    if kind == "empty row":
        seen = torch.ones(rows, keys, dtype=torch.bool).tril()
        seen[3] = False
        return seen, False
    if kind == "added":
        added = torch.randn(1, H, rows, keys, generator=generator).to(dtype)
        return added.masked_fill(torch.rand(rows, keys, generator=generator) < 0.3, -math.inf), False
    return None, kind == "causal"


def dense(call):
    """All logits [B, H, T, S] in float64, NaN where a row may not look: the definition, without blocks, groups or kernels."""
    q, k = call.query.double(), call.key.double()
    k = k[:, torch.arange(q.shape[1]) // (q.shape[1] // k.shape[1])]
    z = (q[..., :, None, :] * k[..., None, :, :]).sum(-1) * call.scale
    if call.mask is not None and call.mask.dtype == torch.bool:
        z = z.masked_fill(~call.mask, math.nan)
    elif call.mask is not None:
        z = (z + call.mask).masked_fill(call.mask < -1e30, math.nan)
    if call.causal:
        z = z.masked_fill(~torch.ones(z.shape[-2:], dtype=torch.bool).tril(), math.nan)
    return z


def truth(call):
    """[H] each: max, absmax, sum of entropies, rows; one row after the other."""
    z = dense(call)
    found = torch.zeros(4, z.shape[1], dtype=torch.float64)
    found[:1] = -math.inf
    for h in range(z.shape[1]):
        for row in z[:, h].reshape(-1, z.shape[-1]):
            row = row[~row.isnan()]
            if len(row):
                p = (row - row.max()).exp() / (row - row.max()).exp().sum()
                found[0, h] = max(found[0, h], row.max())
                found[1, h] = max(found[1, h], row.abs().max())
                found[2, h] -= (p * p.clamp(min=1e-300).log()).sum()
                found[3, h] += 1
    return found


def log_sum_exp(call):
    z = dense(call).nan_to_num(nan=-math.inf)
    return z.logsumexp(-1)


def call_of(kind, key_heads=H, rows=T, keys=S, dtype=torch.float64, scale=0.3):
    q, k = tensors(H, key_heads, rows, keys, dtype)
    mask, causal = mask_of(kind, rows, keys, dtype)
    return Call(q, k, mask, causal, scale)


@pytest.mark.parametrize("key_heads", [H, 2, 1])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("rows", [1, 4, 128])
def test_exact_values_are_those_of_all_logits(kind, key_heads, rows):
    call = call_of(kind, key_heads)
    got, want = exact_values(call, rows), truth(call)
    for value, wanted in zip((got.maximum, got.absmax, got.entropy, got.rows.double()), want, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(got.lower, got.maximum) and torch.equal(got.upper, got.maximum)


@pytest.mark.parametrize(("rows", "keys"), [(5, 13), (13, 5)])
def test_causal_rows_and_keys_of_different_length(rows, keys):
    """Row i looks at the keys 0 .. i, as torch has it."""
    call = call_of("causal", rows=rows, keys=keys)
    want = truth(call)
    torch.testing.assert_close(exact_values(call, 4).maximum, want[0], rtol=1e-12, atol=0)
    lower, upper = log_sum_exp_interval(log_sum_exp(call), key_counts(call))
    assert (lower <= want[0] + 1e-12).all() and (upper >= want[0] - 1e-12).all()
    assert (norm_bound(call) >= want[1]).all()


@pytest.mark.parametrize("length", [128, 300])
def test_blocks_equal_the_dense_product(length):
    """The largest logit by blocks is that of one product over everything, bit for bit, in float32 on a CPU."""
    q, k = tensors(rows=length, keys=length, dtype=torch.float32)
    z = (q @ k.transpose(-1, -2)) * 0.3
    gone = ~torch.ones(length, length, dtype=torch.bool).tril()
    assert torch.equal(
        exact_values(Call(q, k, None, True, 0.3)).maximum, z.masked_fill(gone, -math.inf).amax((0, 2, 3))
    )


@pytest.mark.parametrize("key_heads", [H, 2])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("scale", [0.01, 0.3, -10.0])
def test_interval_and_bound_hold_the_truth(kind, key_heads, scale):
    """lse_i - log n_i <= max_j z_ij <= lse_i, and Cauchy-Schwarz; the width is at most log of the most keys."""
    call = call_of(kind, key_heads, scale=scale)
    want, counts = truth(call), key_counts(call)
    lower, upper = log_sum_exp_interval(log_sum_exp(call), counts)
    assert (lower <= want[0] + 1e-12).all() and (want[0] <= upper + 1e-12).all()
    assert (upper - lower <= math.log(int(counts.max())) + 1e-12).all()
    bound = norm_bound(call)
    assert (want[1] <= bound + 1e-12).all()
    values = kernel_values(call, log_sum_exp(call))
    assert torch.equal(values.upper, upper) and torch.equal(values.bound, bound)
    assert torch.equal(values.rows.double(), want[3])


def test_interval_closes_for_one_key_and_for_equal_keys():
    """One key: lse is the logit. n equal logits: lse - log n is. A row without keys says nothing."""
    lse = torch.tensor([[[3.0, 1.0 + math.log(4), 50.0]]], dtype=torch.float64)
    lower, upper = log_sum_exp_interval(lse, torch.tensor([1, 4, 0]))
    assert float(lower) == 3.0 and float(upper) == 3.0
    lower, _ = log_sum_exp_interval(lse[..., 1:], torch.tensor([4, 0]))
    assert float(lower) == pytest.approx(1.0, rel=1e-15)


def test_bound_is_reached_where_queries_and_keys_share_a_direction():
    q = torch.ones(1, 1, 3, 4, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0])[:, None]
    call = Call(q, q, None, True, 0.5)
    assert float(norm_bound(call)) == pytest.approx(0.5 * 9 * 4, rel=1e-15)
    late = Call(q, q.flip(2), None, True, 0.5)  # the large key stands before the small queries, and counts for all
    assert float(norm_bound(late)) == pytest.approx(0.5 * 9 * 4, rel=1e-15)
    early = Call(q.flip(2), q, None, True, 0.5)  # the large query sees none but the small key
    assert float(norm_bound(early)) == pytest.approx(0.5 * max(3 * 1, 2 * 2, 1 * 3) * 4, rel=1e-15)


def test_normalised_queries_and_keys_keep_logits_below_the_root_of_the_width():
    """With unit gain |q| <= sqrt(D), hence |logit| <= sqrt(D)."""
    q, k = tensors(scale=100.0)
    q, k = F.layer_norm(q, (D,)), F.layer_norm(k, (D,))
    call = Call(q, k, None, False, 1 / math.sqrt(D))
    assert (norm_bound(call) <= math.sqrt(D)).all() and (norm_bound(call) > 0.999 * math.sqrt(D)).all()
    assert (exact_values(call).absmax <= math.sqrt(D)).all()


@pytest.mark.parametrize("kind", [kind for kind in MASKS if kind != "added"])
@pytest.mark.parametrize("key_heads", [H, 2])
def test_entropy_from_the_kernel_is_the_entropy(kind, key_heads):
    call = call_of(kind, key_heads)
    want = truth(call)
    torch.testing.assert_close(kernel_values(call, log_sum_exp(call)).entropy, want[2], rtol=1e-10, atol=1e-10)


def test_entropy_limits():
    """Equal logits: log n. One logit far above the others: 0, in float32 too."""
    q = torch.zeros(1, 1, 4, D)
    call = Call(q, torch.randn(1, 1, 6, D, generator=torch.Generator().manual_seed(0)), None, False, 1.0)
    assert float(exact_values(call).entropy) == pytest.approx(4 * math.log(6), rel=1e-6)
    sharp = Call(1e3 * torch.eye(D)[None, None], torch.eye(D)[None, None], None, False, 1.0)
    assert float(exact_values(sharp).entropy) == 0.0
    assert float(kernel_values(sharp, log_sum_exp(sharp).float()).entropy) == pytest.approx(0.0, abs=1e-3)


def test_logits_masked_by_the_least_number_are_left_out():
    z = torch.tensor([[[[1.0, -3.0, torch.finfo(torch.float32).min], [torch.finfo(torch.float32).min] * 3]]])
    values = logit_values(z)
    assert (float(values.maximum), float(values.absmax), int(values.rows)) == (1.0, 3.0, 1)
    assert float(logit_values(z.to(torch.float16).clamp(min=torch.finfo(torch.float16).min)).absmax) == 3.0


def test_not_a_number_is_not_hidden():
    q, k = tensors()
    q[0, 1, 2, 3] = math.nan
    for values in (exact_values(Call(q, k, None, True, 1.0)), logit_values(q @ k.transpose(-1, -2))):
        assert values.maximum[1].isnan() and values.entropy[1].isnan() and values.maximum[[0, 2, 3]].isfinite().all()


def seen(run, **options):
    """The values of each attention that an interception sees."""
    found = []
    with Interception(lambda values, source: found.append((values, source)), **options) as mode:
        run()
    return found, mode.seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_heads", [H, 2])
@pytest.mark.parametrize("kind", MASKS)
def test_every_call_of_sdpa_is_read_from_its_kernel(kind, key_heads, dtype):
    call = call_of(kind, key_heads, dtype=dtype)
    want = truth(call)
    q, k = call.query.requires_grad_(), call.key
    run = lambda: F.scaled_dot_product_attention(  # noqa: E731
        q, k, k, call.mask, 0.0, call.causal, scale=0.3, enable_gqa=key_heads != H
    )
    near = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]  # bfloat16 rounds an added mask anew
    for exact in (False, True):
        [(values, source)], counts = seen(run, exact=exact)
        assert source == "kernel" and counts["scaled_dot_product_attention"] == 1
        assert (values.lower <= want[0] + near).all() and (want[0] <= values.upper + near).all()
        assert (want[1] <= values.bound + near).all() and torch.equal(values.rows.double(), want[3])
        torch.testing.assert_close(values.entropy.double(), want[2], rtol=near, atol=near)
        assert exact or kind == "added" or values.maximum is None
        if exact:
            torch.testing.assert_close(values.maximum.double(), want[0], rtol=near, atol=near)
            torch.testing.assert_close(values.absmax.double(), want[1], rtol=near, atol=near)


def test_default_scale_is_that_of_torch():
    call = call_of("causal")._replace(scale=1 / math.sqrt(D))
    [(values, _)], _ = seen(
        lambda: F.scaled_dot_product_attention(call.query, call.key, call.key, is_causal=True), exact=True
    )
    torch.testing.assert_close(values.maximum, truth(call)[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("key_heads", [H, 2])
def test_dropout_falls_back_to_the_logits(kind, key_heads):
    """The kernel of a CPU knows no dropout: torch then makes the logits, and these are exact."""
    call = call_of(kind, key_heads)
    want = truth(call)
    q, k = call.query.requires_grad_(), call.key
    [(values, source)], _ = seen(
        lambda: F.scaled_dot_product_attention(
            q, k, k, call.mask, 0.5, call.causal, scale=0.3, enable_gqa=key_heads != H
        )
    )
    assert source == "softmax"
    torch.testing.assert_close(values.maximum, want[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(values.absmax, want[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(values.entropy, want[2], rtol=1e-9, atol=1e-9)
    assert (want[1] <= values.bound + 1e-9).all()


@pytest.mark.parametrize("shape", [(3, T, D), (2, 3, H, T, D)])
def test_other_numbers_of_axes(shape):
    """[B, T, D] has one head; what stands before the heads is batch."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask = mask_of("bool")[0]
    [(values, _)], _ = seen(lambda: F.scaled_dot_product_attention(x, x, x, mask), exact=True)
    z = (x @ x.transpose(-1, -2) / math.sqrt(D)).masked_fill(~mask, -math.inf)
    want = z.amax((0, 1, 2))[None] if len(shape) == 3 else z.amax((0, 1, 3, 4))
    torch.testing.assert_close(values.maximum.flatten(), want.flatten(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("causal", [True, False])
def test_multihead_attention_on_its_slow_path(weights, dropout, causal):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(H * D, H, dropout=dropout, batch_first=True, dtype=torch.float64)
    x = 3 * torch.randn(B, T, H * D, dtype=torch.float64)
    mask = ~torch.ones(T, T, dtype=torch.bool).tril() if causal else None
    found, counts = seen(lambda: layer(x, x, x, attn_mask=mask, need_weights=weights), exact=True)
    q, k = ((x @ w.T + b).unflatten(-1, (H, D)).transpose(1, 2)
            for w, b in zip(layer.in_proj_weight.chunk(3)[:2], layer.in_proj_bias.chunk(3)[:2], strict=True))  # fmt: skip
    want = truth(Call(q.detach(), k.detach(), None, causal, 1 / math.sqrt(D)))
    [(values, source)] = found
    assert counts["multi_head_attention_forward"] == 1 and source == ("softmax" if weights or dropout else "kernel")
    torch.testing.assert_close(values.maximum, want[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(values.absmax, want[1], rtol=1e-10, atol=0)
    torch.testing.assert_close(values.entropy, want[2], rtol=1e-10, atol=0)


@pytest.mark.parametrize("softmax", [torch.softmax, F.softmax, torch.Tensor.softmax])
def test_attention_written_by_hand(softmax):
    call = call_of("causal")
    z = dense(call).nan_to_num(nan=-math.inf)
    [(values, source)], counts = seen(lambda: softmax(z, dim=-1))
    assert source == "softmax" and counts["softmax"] == 1
    torch.testing.assert_close(values.maximum, truth(call)[0], rtol=1e-12, atol=0)
    assert seen(lambda: (softmax(z, dim=1), softmax(z[0], dim=-1)))[0] == []  # neither is attention over keys


def test_autocast_does_not_round_what_is_measured():
    call = call_of("causal", dtype=torch.float32)
    q = call.query.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        [(values, _)], _ = seen(
            lambda: F.scaled_dot_product_attention(q, call.key, call.key, is_causal=True, scale=0.3), exact=True
        )
    rounded = call._replace(
        query=q.detach().bfloat16(), key=call.key.bfloat16()
    )  # autocast rounds what the kernel gets
    near = [truth(each)[0].float() for each in (call, rounded)]
    assert any(torch.allclose(values.maximum, want, rtol=1e-5) for want in near)
    assert values.maximum.dtype == torch.float32
