"""The attention logits of a model as it is: which calls are seen, and what is known of their logits at which price."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROWS = 64
"""Query rows in a block of `exact_values`; memory is B * H * ROWS * S numbers."""
FUSED = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
"""The kernels of torch whose second output is the log-sum-exp of each row."""
SOFTMAX = ("_softmax", "_safe_softmax")


class Call(NamedTuple):
    """What one attention was given. The logits are scale * <q_i, k_j>, plus the mask if that is a number."""

    query: Tensor
    """[B, H, T, D]."""
    key: Tensor
    """[B, K, S, D], with H a multiple of K: query head h looks at key head h // (H / K)."""
    mask: Tensor | None
    """Broadcasts to [B, H, T, S]; bool (True: may look) or a number that is added."""
    causal: bool
    """Row i looks at the keys 0 .. i alone."""
    scale: float


@dataclass(frozen=True)
class Values:
    """What is known of the logits of one attention layer in one step; each is [H], float32 or float64."""

    lower: Tensor
    """max is at least this, up to rounding."""
    upper: Tensor
    """max is at most this, up to rounding."""
    entropy: Tensor | None
    """Sum over batch and rows of the entropy of the attention weights, in nats."""
    rows: Tensor
    """How many rows of batch and time look at any key."""
    bound: Tensor | None = None
    """max and absmax are at most this, by Cauchy-Schwarz."""
    maximum: Tensor | None = None
    """max over batch, rows and the keys that each may look at; None where it was not computed."""
    absmax: Tensor | None = None
    """The same of the absolute values."""


def log_sum_exp_interval(lse: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where the largest logit of each head must lie, given the log-sum-exp of each row.

    max_j z_ij <= lse_i <= max_j z_ij + log n_i, hence  max_i (lse_i - log n_i) <= max z <= max_i lse_i.

    Args:
        lse: [B, H, T], in nats.
        counts: broadcasts to [B, H, T]; n_i, how many keys row i may look at. Rows with 0 are left out, since kernels differ in
            what they return there.
    Returns: lower and upper, [H] each; upper - lower <= log max n_i. -inf where no row is left.
    """
    counts = counts.to(lse.dtype).expand_as(lse)
    kept = lse.masked_fill(counts == 0, -math.inf)
    return (kept - counts.clamp(min=1).log()).amax((0, 2)), kept.amax((0, 2))


def key_counts(call: Call) -> Tensor:
    """How many keys each row may look at: int64, broadcasts to [B, H, T]. Numbers below half the least of their type mask."""
    rows, keys = call.query.shape[2], call.key.shape[2]
    if call.mask is not None:
        allowed = _allowed(call.mask)
        return allowed.expand(*allowed.shape[:-1], keys).sum(-1)
    if call.causal:
        return torch.arange(1, rows + 1, device=call.query.device).clamp(max=keys)
    return torch.full((), keys, device=call.query.device)


def norm_bound(call: Call) -> Tensor:
    """max_i |q_i| * max_{j <= i} |k_j| * |scale| for each head, plus the largest absolute number that a mask adds.

    Rotary embeddings keep norms, so it makes no difference whether it is taken before or after them.

    Returns: [H]; neither the largest logit nor the largest absolute one is above it, up to rounding.
    """
    queries, keys = (_norms(call.query), _norms(call.key))
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    if call.causal:
        last = torch.arange(queries.shape[2], device=keys.device).clamp(max=keys.shape[2] - 1)
        keys = keys.cummax(-1).values[..., last]
    else:
        keys = keys.amax(-1, keepdim=True)
    bound = (queries * keys).amax((0, 2)) * abs(call.scale)
    if call.mask is None or call.mask.dtype == torch.bool:
        return bound
    added = call.mask.masked_fill(~_allowed(call.mask), 0).abs()
    heads = added.shape[1] if added.dim() == 4 else 1
    return bound + added.reshape(-1, heads, added.shape[-2] * added.shape[-1]).amax((0, 2))


def logit_values(logits: Tensor, gone: Tensor | None = None) -> Values:
    """Everything, from logits that are there.

    With t = max z of a row and p = softmax(z), the entropy is -log max p - sum p (z - t), which keeps its digits however large t is.

    Args:
        logits: [B, H, T, S], after scale and mask.
        gone: broadcasts to that, True for keys that a row may not look at; by default the logits below half of the least
            number of their type, as masks of -inf and of that number leave them.
    """
    gone = logits < torch.finfo(logits.dtype).min / 2 if gone is None else gone
    return _values_in_place(_wide(logits).clone(), gone)


def _values_in_place(below: Tensor, gone: Tensor) -> Values:
    """`logit_values` of logits that it may write into."""
    below.masked_fill_(gone, -math.inf)
    top = below.amax(-1)
    empty = top == -math.inf
    below.sub_(top[..., None])
    shares = below.softmax(-1)
    below.masked_fill_(gone, 0)
    entropy = -shares.amax(-1).log() - torch.linalg.vecdot(shares, below)
    absmax = torch.maximum(top, -(top + below.amin(-1))).masked_fill(empty, 0).amax((0, 2))
    largest = top.amax((0, 2))
    entropy = entropy.masked_fill(empty, 0).sum((0, 2))
    return Values(largest, largest, entropy, (~empty).sum((0, 2)), maximum=largest, absmax=absmax)


def exact_values(call: Call, rows: int = ROWS) -> Values:
    """As `logit_values`, with the logits made again from queries and keys, `rows` rows at a time.

    A causal block is made for the keys alone that its last row may look at. Types shorter than float32 are computed in float32.
    """
    query, key = _wide(call.query), _wide(call.key)
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    parts = []
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        seen = min(stop, key.shape[2]) if call.causal else key.shape[2]
        block = query[:, :, start:stop].reshape(batch, groups, -1, width)
        logits = (block @ key[:, :, :seen].transpose(-1, -2)).reshape(batch, heads, stop - start, seen)
        logits.mul_(call.scale)
        parts.append(_values_in_place(*_masked(logits, call, start, stop, seen)))
    return _merged(parts)


def kernel_values(call: Call, lse: Tensor, *, entropy: bool = True) -> Values:
    """The interval and the bound, from the log-sum-exp of a fused kernel.

    The entropy of row i is lse_i - scale * <q_i, sum_j p_ij k_j>, and that sum is the same attention with the keys as values: one
    more forward pass of the kernel. It loses digits as logits grow (about 1e-7 of the logits in float32), and is not known in
    this way where the mask adds numbers.

    Args:
        call: queries, keys, mask and scale.
        lse: [B, H, T], in nats.
        entropy: whether to compute it.
    """
    counts = key_counts(call)
    lower, upper = log_sum_exp_interval(lse, counts)
    each = counts.to(lse.dtype).expand_as(lse)
    found = None
    if entropy and (call.mask is None or call.mask.dtype == torch.bool):
        query, key = _wide(call.query), _wide(call.key)
        # Repeated, for not every kernel can share keys, and without a kernel all logits would be made.
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        mean = F.scaled_dot_product_attention(query, key, key, call.mask, 0.0, call.causal, scale=call.scale)
        rest = lse - (query * mean).sum(-1) * call.scale
        rest = torch.minimum(rest.clamp(min=0), each.clamp(min=1).log())
        found = rest.masked_fill(each == 0, 0).sum((0, 2))
    return Values(lower, upper, found, (each > 0).sum((0, 2)), norm_bound(call))


def combined(one: Values, other: Values) -> Values:
    """Of two batches of one layer: the larger maxima, the sum of entropies and rows."""

    def both(name: str, merge: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        a, b = getattr(one, name), getattr(other, name)
        return None if a is None or b is None else merge(a, b)

    return Values(
        torch.maximum(one.lower, other.lower), torch.maximum(one.upper, other.upper), both("entropy", torch.add),
        one.rows + other.rows, both("bound", torch.maximum), both("maximum", torch.maximum), both("absmax", torch.maximum),
    )  # fmt: skip


@final
class Interception(TorchFunctionMode):
    """Sees the attention of whatever runs inside `with`, and hands the values of each to `receive`.

    Seen are calls of F.scaled_dot_product_attention, with the log-sum-exp that its kernel returns, or its logits where torch has
    no kernel (dropout on a CPU); of F.multi_head_attention_forward, the slow path of nn.MultiheadAttention; and of softmax over
    the last axis of a tensor [B, H, T, S], which is how attention is written by hand. Nested and distributed tensors are not read.

    Args:
        receive: called with the values of each attention, on the device, and `softmax`, `kernel` or `blocks`: where they are from.
        exact: also make the exact values, by blocks of rows.
        entropy: also where it costs another pass of the kernel.
    """

    def __init__(self, receive: Callable[[Values, str], None], *, exact: bool = False, entropy: bool = True) -> None:
        super().__init__()
        self.receive, self.exact, self.entropy = receive, exact, entropy
        self.seen: Counter[str] = Counter()
        self._handlers: dict[Any, Callable[..., Any]] = {
            F.scaled_dot_product_attention: self._attention,
            F.multi_head_attention_forward: self._module,
            F.softmax: self._softmax, torch.softmax: self._softmax, Tensor.softmax: self._softmax,
        }  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self._handlers.get(func)
        return func(*args, **(kwargs or {})) if handler is None else handler(func, *args, **(kwargs or {}))

    def _attention(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        with _Kernels() as kernels:
            out = func(*args, **kwargs)
        self.seen["scaled_dot_product_attention"] += 1
        if _readable(kwargs.get("query", args[0] if args else None)):
            with _aside(out):
                call = _call(*args, **kwargs)
                if kernels.lse is not None:
                    self._from_kernel(call, kernels.lse)
                elif kernels.logits is not None:
                    values = logit_values(_four(kernels.logits))
                    self.receive(_with_bound(values, call), "softmax")
                else:
                    self.receive(_with_bound(exact_values(call), call), "blocks")
        return out

    def _module(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        with _Kernels() as kernels:
            out = func(*args, **kwargs)
        self.seen["multi_head_attention_forward"] += 1
        with _aside(out[0]):
            if kernels.lse is not None and kernels.call is not None:
                self._from_kernel(kernels.call, kernels.lse)
            elif kernels.logits is not None:
                heads = kwargs["num_heads"] if "num_heads" in kwargs else args[4]
                logits = kernels.logits
                logits = logits if logits.dim() == 4 else logits.reshape(-1, heads, *logits.shape[-2:])
                self.receive(logit_values(logits), "softmax")
        return out

    def _softmax(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        logits = kwargs.get("input", args[0] if args else None)
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if _readable(logits) and logits.dim() == 4 and axis in (-1, 3) and logits.is_floating_point():
            self.seen["softmax"] += 1
            with _aside(logits):  # before the call, for what follows it may write into the logits
                self.receive(logit_values(logits.detach()), "softmax")
        return func(*args, **kwargs)

    def _from_kernel(self, call: Call, lse: Tensor) -> None:
        added = call.mask is not None and call.mask.dtype != torch.bool
        lse = _wide(lse.reshape(*lse.shape[:3])[..., : call.query.shape[2]])  # kernels pad the rows
        values = kernel_values(call, lse, entropy=self.entropy and not self.exact)
        if self.exact or (self.entropy and added):
            exact = exact_values(call)
            values = Values(
                values.lower, values.upper, exact.entropy, exact.rows, values.bound, exact.maximum, exact.absmax
            )
        self.receive(values, "kernel")


class _Kernels(TorchDispatchMode):
    """Keeps the log-sum-exp of the fused kernel that runs inside, or the input of the softmax if none does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lse: Tensor | None = None
        self.logits: Tensor | None = None
        self.call: Call | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in FUSED and out[1].numel():
            self.lse = out[1].detach()
            named = dict(zip((part.name for part in func._schema.arguments), args, strict=False)) | (kwargs or {})
            mask = named.get("attn_mask", named.get("attn_bias"))
            self.call = _call(
                named["query"], named["key"], None, mask, 0.0, named.get("is_causal", False), scale=named.get("scale")
            )
        elif name in SOFTMAX:
            self.logits = args[0].detach()
        return out


@contextlib.contextmanager
def _aside(like: Tensor) -> Iterator[None]:
    """Measuring leaves no graph behind, and is not rounded by autocast."""
    kind = like.device.type
    rounded = torch.is_autocast_enabled(kind) if torch.amp.is_autocast_available(kind) else False
    with torch.no_grad(), torch.autocast(kind, enabled=False) if rounded else contextlib.nullcontext():
        yield


def _call(
    query: Tensor, key: Tensor, value: Any = None, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Call:  # fmt: skip
    """The arguments of F.scaled_dot_product_attention, in four dimensions and without a graph."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    mask = None if attn_mask is None else attn_mask.detach()
    if mask is not None and query.dim() == 3 and mask.dim() == 3:
        mask = mask.unsqueeze(1)
    elif mask is not None and query.dim() > 4 and mask.dim() > 3:
        mask = mask.expand(*query.shape[:-1], key.shape[-2])
    return Call(_four(query), _four(key), None if mask is None else _four_or_less(mask), bool(is_causal), scale)


def _four(tensor: Tensor) -> Tensor:
    """[B, H, T, D] of [B, T, D], which has one head, or of [..., H, T, D]."""
    tensor = tensor.detach()
    return tensor.unsqueeze(1) if tensor.dim() == 3 else tensor.reshape(-1, *tensor.shape[-3:])


def _four_or_less(mask: Tensor) -> Tensor:
    return mask if mask.dim() <= 4 else mask.reshape(-1, *mask.shape[-3:])


def _readable(tensor: Any) -> TypeGuard[Tensor]:
    """A plain tensor: neither nested nor spread over processes."""
    return isinstance(tensor, Tensor) and not tensor.is_nested and not hasattr(tensor, "to_local")


def _with_bound(values: Values, call: Call) -> Values:
    return Values(
        values.lower, values.upper, values.entropy, values.rows, norm_bound(call), values.maximum, values.absmax
    )


def _wide(tensor: Tensor) -> Tensor:
    """Float64 stays, all shorter types become float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _norms(tensor: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=-1, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return norms


def _allowed(mask: Tensor) -> Tensor:
    """Bool, at least [T, S]; axes that are only repeated are left at one, for masks are often expanded to every head."""
    for axis in range(mask.dim() - 2):
        if mask.stride(axis) == 0:
            mask = mask.narrow(axis, 0, 1)
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _masked(logits: Tensor, call: Call, start: int, stop: int, seen: int) -> tuple[Tensor, Tensor]:
    """The logits of the rows start .. stop - 1 with what the mask adds, and which of them are not looked at."""
    gone = torch.zeros((), dtype=torch.bool, device=logits.device)
    if call.mask is not None:
        whole = call.mask.expand(*call.mask.shape[:-2], call.query.shape[2], call.key.shape[2])
        part = whole[..., start:stop, :seen]
        gone = ~part if part.dtype == torch.bool else part <= torch.finfo(part.dtype).min / 2
        logits = logits if part.dtype == torch.bool else logits + part
    if call.causal:
        row = torch.arange(start, stop, device=logits.device)[:, None]
        gone = gone | (torch.arange(seen, device=logits.device) > row)
    return logits, gone


def _merged(parts: list[Values]) -> Values:
    whole = parts[0]
    for part in parts[1:]:
        whole = combined(whole, part)
    return whole
