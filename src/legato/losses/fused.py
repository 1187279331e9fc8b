"""The last layer and the comp-sum loss in one step, for large vocabularies: the logits of a batch never exist all at once."""

from typing import Any

import torch
from torch import Tensor, nn

from legato import errors
from legato.losses.arguments import check_range, is_number
from legato.losses.comp_sum import check_parameters
from legato.losses.rows import reduce

# The logits of a chunk are all that the step holds beside its gradients. Each chunk reads the whole weight and rewrites its
# whole gradient: with 64 rows, that takes a step 1.2 times as long as with 256, and beyond 512 rows there is nothing to gain.
CHUNK_BYTES, FEWEST_ROWS, MOST_ROWS = 64 * 2**20, 128, 512
LINE_BYTES = 64
CLASSES_IN_A_TILE = 8192
REDUCTIONS = ("mean", "sum")
SHORT = (torch.bfloat16, torch.float16)


def fused_linear_comp_sum(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    tau: float = 1.0,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Comp-sum loss of a linear layer's output, with its gradients, in the memory of a few rows of logits.

    h = (hidden @ weight.T + bias) / temperature;  loss = comp_sum(h, target, tau) + z_loss * logsumexp(h)^2.
    d loss / d h_j = p_y^(tau-1) * (p_j - [j = y]) + 2 * z_loss * logsumexp(h) * p_j,  p = softmax(h).

    The rows are taken a chunk at a time: logits, loss and, while the chunk is at hand, all gradients. Nothing is computed twice;
    the backward only multiplies by the gradient that comes in. A second backward through a kept graph computes all anew.

    Under torch.autocast the products are taken in its short type. Short types are summed in float32: losses, softmax, and the
    gradients of weight and bias, over the rows. float16 on the CPU, which multiplies it slowly, is multiplied in float32.
    Compiled, it is one node of the graph. There is no second derivative, and torch.func (vmap, grad, jvp) does not work here:
    `comp_sum_loss(F.linear(hidden, weight, bias), target, tau)` has all of these.

    Args:
        hidden: [N, D] or [B, T, D], floating point: what goes into the last layer.
        weight: [C, D], of the type of hidden (under autocast, any); may be tied to an embedding.
        target: class indices, int64, [N] or [B, T].
        tau: >= 0, no unit; 1 is cross-entropy.
        bias: [C].
        temperature: > 0, divides the logits.
        chunk: rows at a time, >= 1. By default as many as have 64 MiB of logits, within 128 .. 512.
        ignore_index: rows with this class index count nothing; on the CPU they are not computed either.
        z_loss: >= 0, the factor of logsumexp(h)^2, which keeps the logits from drifting; 1e-4 in PaLM. No unit.
        reduction: "mean" divides by the kept rows, and is 0 where there are none; "sum".
    Returns: [], float32 or float64, in nats at tau = 1.
    Raises: LegatoValueError for a number out of range, a shape or type that does not fit, on the CPU a class out of range, and
        for reduction="none"; LegatoTypeError for hidden states that are not floating point.
    Source: Mao, Mohri, Zhong 2023, arXiv 2304.07288, for the loss; the fusion is ours, after the idea of Wijmans et al. 2024,
        arXiv 2411.09009 (memory) and of forming the gradients in the forward pass, as torch's linear_cross_entropy does.
    """
    _check_numbers(tau, temperature, chunk, z_loss, reduction)
    kind = _product_type(hidden)
    _check_tensors(hidden, weight, target, bias)
    if temperature != 1:  # cheaper here than on the logits
        hidden, bias = hidden / temperature, None if bias is None else bias / temperature
    rows, classes = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
    kept = classes != ignore_index
    if classes.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(kept.all()):
        places = kept.nonzero()[:, 0]  # to read them is free on the CPU only
        rows, classes = rows.index_select(0, places), classes.index_select(0, places)
    needed = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (rows, weight, bias)]
    settings = (kind, chunk or _default_chunk(len(weight), _wide(kind)), float(tau), float(z_loss), ignore_index)
    if any(needed):
        total = _Gradients.apply(rows, weight, bias, classes, needed, settings)  # type: ignore[no-untyped-call]
    else:
        total = _operator(rows, weight, bias, classes, needed, *settings)[0]
    return reduce(total, kept, reduction)


class FusedLinearCompSum(nn.Module):
    """`fused_linear_comp_sum` as an object. It has no weight of its own: it is called with that of the last layer.

    Args:
        tau, temperature, chunk, ignore_index, z_loss, reduction: as in the function.
    Raises: LegatoValueError for a number out of range.
    """

    def __init__(
        self,
        tau: float = 1.0,
        *,
        temperature: float = 1.0,
        chunk: int | None = None,
        ignore_index: int = -100,
        z_loss: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_numbers(tau, temperature, chunk, z_loss, reduction)
        self.tau, self.temperature, self.chunk = tau, temperature, chunk
        self.ignore_index, self.z_loss, self.reduction = ignore_index, z_loss, reduction

    def forward(self, hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
        """The loss of a batch."""
        return fused_linear_comp_sum(
            hidden, weight, target, self.tau, bias=bias, temperature=self.temperature, chunk=self.chunk,
            ignore_index=self.ignore_index, z_loss=self.z_loss, reduction=self.reduction,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """`tau=1.7`, and whatever differs from its default."""
        defaults = {"temperature": 1.0, "chunk": None, "ignore_index": -100, "z_loss": 0.0, "reduction": "mean"}
        others = [f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join([f"tau={self.tau:g}", *others])


class _Gradients(torch.autograd.Function):
    """The sum over the rows; its gradients are formed in the forward pass and wait for their factor."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        needed: list[bool],
        settings: tuple[Any, ...],
    ) -> Tensor:
        total: Tensor
        total, *ctx.gradients = _operator(hidden, weight, bias, target, needed, *settings)
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.kinds = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.needed, ctx.settings = needed, settings
        return total

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise errors.argument(
                "create_graph", expected="False: fused_linear_comp_sum has a first derivative only", got="True",
                fix="comp_sum_loss(F.linear(hidden, weight, bias), target, tau) can be differentiated twice",
            )  # fmt: skip
        gradients, ctx.gradients = ctx.gradients, None  # given away, for they are scaled in place
        if gradients is None:
            gradients = _operator(*ctx.saved_tensors, ctx.needed, *ctx.settings)[1:]
        scaled = [
            gradient.mul_(factor).to(kind) if wanted else None
            for gradient, kind, wanted in zip(gradients, ctx.kinds, ctx.needed, strict=True)
        ]
        return (*scaled, None, None, None)


def _sums(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    needed: list[bool],
    kind: torch.dtype,
    chunk: int,
    tau: float,
    z_loss: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of the losses over the kept rows, and its gradients for hidden, weight and bias; empty where not needed. Products are taken in `kind`."""
    if target.device.type == "cpu":
        check_range(target, len(weight), ignore_index)
    results = _results(hidden, weight, needed)
    wide = results[0].dtype
    buffer = hidden.new_empty(min(chunk, len(hidden)), _stride(len(weight), wide), dtype=wide)
    with torch.autocast(hidden.device.type, enabled=False):
        matrix = weight.to(kind).contiguous()
        for start in range(0, len(hidden), chunk):
            rows = hidden[start : start + chunk].to(kind)
            scores = buffer[: len(rows), : len(weight)]
            _multiply(rows, matrix, bias, scores)
            loss = _to_gradient(scores, target[start : start + chunk], tau, z_loss, ignore_index, any(needed))
            results[0].add_(loss)
            _collect(scores, rows, matrix, needed, results[1:], start)
    return results


def _shapes(hidden: Tensor, weight: Tensor, bias: Any, target: Any, needed: list[bool], *settings: Any) -> Any:
    """What comes out of `_sums`, for a compiler."""
    return _results(hidden, weight, needed)


def _refuse_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    raise errors.argument(
        "hidden", expected="a plain tensor, for fused_linear_comp_sum does not work inside torch.vmap", got="a batched one",
        fix="comp_sum_loss(F.linear(hidden, weight, bias), target, tau)",
    )  # fmt: skip


# An operator of torch's, so that a compiler takes it as it is; `torch.library.custom_op` would load the compiler at the first call.
OPERATOR = "legato::fused_linear_comp_sum"
torch.library.define(OPERATOR, torch.library.infer_schema(_sums, mutates_args=()))
torch.library.impl(OPERATOR, "default", _sums)
torch.library.register_fake(OPERATOR, _shapes)
torch.library.register_vmap(OPERATOR, _refuse_vmap)
_operator = torch.ops.legato.fused_linear_comp_sum.default


def _results(hidden: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the sum of the losses and the gradient of weight and bias, in the type of sums, and for that of hidden."""
    wide = _wide(hidden.dtype)
    return (
        hidden.new_zeros((), dtype=wide),
        hidden.new_empty(hidden.shape if needed[0] else (0,)),
        weight.new_zeros(weight.shape if needed[1] else (0,), dtype=wide),
        weight.new_zeros(weight.shape[:1] if needed[2] else (0,), dtype=wide),
    )


def _multiply(rows: Tensor, matrix: Tensor, bias: Tensor | None, scores: Tensor) -> None:
    """Write the logits [n, C] of a chunk to `scores`."""
    if rows.dtype == scores.dtype:
        torch.mm(rows, matrix.T, out=scores)
    else:
        scores.copy_(rows @ matrix.T)
    if bias is not None:
        scores.add_(bias)


def _to_gradient(scores: Tensor, target: Tensor, tau: float, z_loss: float, ignore_index: int, needed: bool) -> Tensor:
    """Sum of the losses of a chunk [n, C]; if needed, the scores become its gradient with respect to them, in place."""
    kept = target != ignore_index
    own = target.where(kept, 0)[:, None]
    top = scores.amax(1, keepdim=True)
    below = scores.gather(1, own) - top
    total = scores.sub_(top).exp_().sum(1, keepdim=True)
    log_total = total.log()
    ce = (log_total - below)[:, 0].masked_fill(~kept, 0)
    lse = (log_total + top)[:, 0].masked_fill(~kept, 0)
    losses = ce if tau == 1 else torch.expm1((1 - tau) * ce) / (1 - tau)
    if z_loss:
        losses = losses + z_loss * lse.square()
    if needed:
        pull = ((1 - tau) * ce).exp() * kept  # p^(tau-1)
        push = pull + 2 * z_loss * lse
        scores.mul_(push[:, None] / total).scatter_add_(1, own, -pull[:, None])
    return losses.sum()


def _collect(
    scores: Tensor, rows: Tensor, matrix: Tensor, needed: list[bool], gradients: tuple[Tensor, ...], start: int
) -> None:
    """What a chunk of gradients with respect to the logits [n, C] means for hidden, weight and bias."""
    if needed[2]:
        gradients[2].add_(scores.sum(0))
    slopes = scores.to(rows.dtype)
    if needed[0]:
        gradients[0][start : start + len(rows)] = slopes @ matrix
    if needed[1] and slopes is scores:
        gradients[1].addmm_(slopes.T, rows)
    elif needed[1]:  # in tiles that stay in the cache while they are widened and added
        for first in range(0, len(matrix), CLASSES_IN_A_TILE):
            tile = slice(first, first + CLASSES_IN_A_TILE)
            gradients[1][tile] += slopes[:, tile].T @ rows


def _product_type(hidden: Tensor) -> torch.dtype:
    """The type of the products: that of autocast or of hidden, except float16 on a CPU."""
    if not isinstance(hidden, Tensor) or not hidden.is_floating_point():
        got = hidden.dtype if isinstance(hidden, Tensor) else type(hidden).__name__
        raise errors.argument_type(
            "hidden", expected="a floating point tensor", got=got, fix="pass what goes into the last layer"
        )
    kind, device = hidden.dtype, hidden.device.type
    if kind != torch.float64 and _in_autocast(device):
        kind = torch.get_autocast_dtype(device)
    return torch.float32 if device == "cpu" and kind == torch.float16 else kind


def _in_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _wide(kind: torch.dtype) -> torch.dtype:
    """The type of sums: float64 stays, everything shorter becomes float32."""
    return torch.float64 if kind == torch.float64 else torch.float32


def _stride(classes: int, kind: torch.dtype) -> int:
    """Length of a row of the buffer: whole cache lines, and an odd number of them."""
    # At 50,257 classes the product that fills the buffer takes 1.4 times as long if rows begin in the middle of a line, and at
    # 32,768 it takes 1.2 times as long if all rows begin in the same few places of the cache.
    line = LINE_BYTES // kind.itemsize
    return (-(-classes // line) | 1) * line


def _default_chunk(classes: int, kind: torch.dtype) -> int:
    """Rows in a chunk, where the user has no wish."""
    return min(max(CHUNK_BYTES // (_stride(classes, kind) * kind.itemsize), FEWEST_ROWS), MOST_ROWS)


def _check_numbers(tau: float, temperature: float, chunk: int | None, z_loss: float, reduction: str) -> None:
    check_parameters(tau, temperature, 0.0, "mean")
    if reduction == "none":
        raise errors.argument(
            "reduction", expected="mean or sum, for the gradients are formed before it is known what each row counts", got="none",
            fix="comp_sum_loss(F.linear(hidden, weight, bias), target, tau, reduction='none'), which holds all logits",
        )  # fmt: skip
    if reduction not in REDUCTIONS:
        raise errors.choice("reduction", str(reduction), REDUCTIONS)
    if not (chunk is None or (isinstance(chunk, int) and chunk >= 1)):
        raise errors.argument("chunk", expected="a whole number of rows >= 1, or None", got=chunk)
    if not (is_number(z_loss) and z_loss >= 0):
        raise errors.argument(
            "z_loss", expected="a plain finite number >= 0", got=z_loss, fix="1e-4 is usual, 0 is none"
        )


def _check_tensors(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> None:
    """Shapes and types; no value is read."""
    width, rows = list(hidden.shape[-1:]), list(hidden.shape[:-1])
    if hidden.dim() == 0 or weight.dim() != 2 or list(weight.shape[1:]) != width:
        raise errors.argument(
            "weight", expected=f"shape [C, D] with the D of hidden, which has shape {list(hidden.shape)}",
            got=f"shape {list(weight.shape)}", fix="pass the weight of torch.nn.Linear(D, C)",
        )  # fmt: skip
    if target.dtype != torch.int64 or list(target.shape) != rows:
        raise errors.argument(
            "target", expected=f"int64 class indices of shape {rows}", got=f"{target.dtype} of shape {list(target.shape)}",
            fix="pass one class index for each row of hidden",
        )  # fmt: skip
    if bias is not None and bias.shape != weight.shape[:1]:
        raise errors.argument("bias", expected=f"shape {list(weight.shape[:1])}", got=f"shape {list(bias.shape)}")
    mixed = _in_autocast(hidden.device.type) and hidden.dtype != torch.float64
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None and x.dtype != hidden.dtype and not (mixed and x.dtype in (torch.float32, *SHORT)):
            raise errors.argument(
                name,
                expected=f"{hidden.dtype}, the type of hidden",
                got=x.dtype,
                fix="torch.autocast, or cast one of them",
            )
