"""The last layer and the comp-sum loss in one step, for large vocabularies: the logits of a batch never exist all at once."""

from typing import Any

import torch
from torch import Tensor, nn

from legato import errors
from legato.losses.arguments import check_range, is_number
from legato.losses.comp_sum import check_parameters
from legato.losses.rows import reduce

CHUNK_BYTES = 64 * 2**20
FEWEST_ROWS, MOST_ROWS = 64, 512
LINE_BYTES = 64
CLASSES_IN_A_TILE = 8192
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
        chunk: rows at a time, >= 1. By default as many as have 64 MiB of logits, within 64 .. 512.
        ignore_index: rows with this class index count nothing; on the CPU they are not computed either.
        z_loss: >= 0, the factor of logsumexp(h)^2, which keeps the logits from drifting; 1e-4 in PaLM. No unit.
        reduction: "mean" divides by the kept rows, and is 0 where there are none; "sum".
    Returns: [], float32 or float64, in nats at tau = 1.
    Raises: LegatoValueError for a number out of range, a shape or type that does not fit, on the CPU a class out of range, and
        for reduction="none"; LegatoTypeError for hidden states that are not floating point.
    Source: Mao, Mohri, Zhong 2023, arXiv 2304.07288, for the loss; the fusion is ours, after the idea of Wijmans et al. 2024,
        arXiv 2411.09009 (memory) and of forming the gradients in the forward pass, as torch's linear_cross_entropy does.
    """
    check_parameters(tau, temperature, 0.0, reduction)
    _check_numbers(chunk, z_loss, reduction)
    compute = _compute_type(hidden)
    _check_tensors(hidden, weight, target, bias)
    kept = target.reshape(-1) != ignore_index
    rows, classes = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(kept.all()):
        places = kept.nonzero()[:, 0]  # reading them is free on the CPU only
        rows, classes = rows.index_select(0, places), classes.index_select(0, places)
    needed = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (rows, weight, bias)]
    settings = (
        compute,
        float(tau),
        float(temperature),
        float(z_loss),
        ignore_index,
        chunk or _rows(len(weight), _wide(compute)),
    )
    if any(needed):
        total = _Gradients.apply(rows, weight, bias, classes, needed, settings)
    else:
        total = _sums(rows, weight, bias, classes, needed, *settings)[0]
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
        check_parameters(tau, temperature, 0.0, reduction)
        _check_numbers(chunk, z_loss, reduction)
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
        total, *ctx.gradients = _sums(hidden, weight, bias, target, needed, *settings)
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.needed, ctx.settings = needed, settings
        return total

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise errors.argument(
                "create_graph", expected="False: fused_linear_comp_sum has a first derivative only", got="True",
                fix="comp_sum_loss(F.linear(hidden, weight, bias), target, tau) can be differentiated twice",
            )  # fmt: skip
        hidden, weight, bias, target = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None  # given away, for they are scaled in place
        if gradients is None:
            gradients = _sums(hidden, weight, bias, target, ctx.needed, *ctx.settings)[1:]
        scaled = [
            gradient.mul_(factor).to(x.dtype) if wanted else None
            for gradient, x, wanted in zip(gradients, (hidden, weight, bias), ctx.needed, strict=True)
        ]
        return (*scaled, None, None, None)


@torch.library.custom_op("legato::fused_linear_comp_sum", mutates_args=())
def _sums(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    needed: list[bool],
    compute: torch.dtype,
    tau: float,
    temperature: float,
    z_loss: float,
    ignore_index: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of the losses over the kept rows, and its gradients for hidden, weight and bias; empty where not needed.

    An operator of torch's, and not a plain function, so that the compiler takes it as it is.
    """
    if target.device.type == "cpu":
        check_range(target, len(weight), ignore_index)
    total, *gradients = _results(hidden, weight, needed)
    classes, wide = len(weight), total.dtype
    with torch.autocast(hidden.device.type, enabled=False):
        matrix = weight.to(compute).contiguous()
        buffer = hidden.new_empty(min(chunk, len(hidden)), _stride(classes, wide), dtype=wide)
        for start in range(0, len(hidden), chunk):
            rows = hidden[start : start + chunk].to(compute)
            scores = buffer[: len(rows), :classes]
            _scores(rows, matrix, bias, temperature, scores)
            total += _loss(scores, target[start : start + chunk], tau, temperature, z_loss, ignore_index, any(needed))
            _collect(scores, rows, matrix, needed, gradients, start)
    return total, *gradients


@_sums.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, needed: list[bool], *settings: Any) -> Any:
    return _results(hidden, weight, needed)


@_sums.register_vmap
def _(info: Any, in_dims: Any, *arguments: Any) -> Any:
    raise errors.argument(
        "hidden", expected="a plain tensor: fused_linear_comp_sum does not work inside torch.vmap", got="a batched tensor",
        fix="comp_sum_loss(F.linear(hidden, weight, bias), target, tau)",
    )  # fmt: skip


def _results(hidden: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Zeros for the loss, the gradient of hidden in its own type, those of weight and bias in the type of sums."""
    wide = _wide(hidden.dtype)
    return (
        hidden.new_zeros((), dtype=wide),
        hidden.new_empty(hidden.shape if needed[0] else (0,)),
        weight.new_zeros(weight.shape if needed[1] else (0,), dtype=wide),
        weight.new_zeros(weight.shape[:1] if needed[2] else (0,), dtype=wide),
    )


def _scores(rows: Tensor, matrix: Tensor, bias: Tensor | None, temperature: float, out: Tensor) -> None:
    """Logits [n, C] of a chunk, written to `out`."""
    if rows.dtype == out.dtype:
        torch.mm(rows, matrix.T, out=out)
    else:
        out.copy_(rows @ matrix.T)
    if bias is not None:
        out.add_(bias)
    if temperature != 1:
        out.div_(temperature)


def _loss(
    scores: Tensor,
    target: Tensor,
    tau: float,
    temperature: float,
    z_loss: float,
    ignore_index: int,
    with_gradient: bool,
) -> Tensor:
    """Sum of the losses of a chunk; its scores become the gradient with respect to the logits, in place."""
    kept = target != ignore_index
    own = target.where(kept, 0)[:, None]
    top = scores.amax(1, keepdim=True)
    below = scores.gather(1, own) - top
    total = scores.sub_(top).exp_().sum(1, keepdim=True)
    ce = (total.log() - below)[:, 0].masked_fill(~kept, 0)
    lse = (top + total.log())[:, 0].masked_fill(~kept, 0)
    loss = (ce if tau == 1 else torch.expm1((1 - tau) * ce) / (1 - tau)).sum() + z_loss * lse.square().sum()
    if with_gradient:
        slope = ((1 - tau) * ce).exp() * kept / temperature
        push = slope + 2 * z_loss / temperature * lse
        scores.mul_(push[:, None] / total).scatter_add_(1, own, -slope[:, None])
    return loss


def _collect(
    scores: Tensor, rows: Tensor, matrix: Tensor, needed: list[bool], gradients: list[Tensor], start: int
) -> None:
    """What a chunk of gradients with respect to the logits [n, C] means for hidden, weight and bias."""
    if needed[2]:
        gradients[2] += scores.sum(0)
    slopes = scores if scores.dtype == rows.dtype else scores.to(rows.dtype)
    if needed[0]:
        gradients[0][start : start + len(rows)] = slopes @ matrix
    if needed[1] and slopes is scores:
        gradients[1].addmm_(slopes.T, rows)
    elif needed[1]:  # in tiles that stay in the cache while they are widened and added
        for some in range(0, len(matrix), CLASSES_IN_A_TILE):
            tile = slice(some, some + CLASSES_IN_A_TILE)
            gradients[1][tile] += slopes[:, tile].T @ rows


def _compute_type(hidden: Tensor) -> torch.dtype:
    """The type of the products: that of autocast or of hidden, except float16 on a CPU."""
    if not hidden.is_floating_point():
        raise errors.argument_type(
            "hidden", expected="a floating point tensor", got=hidden.dtype, fix="pass what goes into the last layer"
        )
    kind, device = hidden.dtype, hidden.device.type
    if kind != torch.float64 and torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    return torch.float32 if device == "cpu" and kind == torch.float16 else kind


def _wide(kind: torch.dtype) -> torch.dtype:
    """The type of sums: float64 stays, everything shorter becomes float32."""
    return torch.float64 if kind == torch.float64 else torch.float32


def _stride(classes: int, kind: torch.dtype) -> int:
    """Length of a row of the buffer: whole cache lines, and an odd number of them."""
    # At 50,257 classes the product that fills the buffer takes 1.4 times as long if rows begin in the middle of a line, and at
    # 32,768 it takes 1.2 times as long if all rows begin in the same few places of the cache.
    line = LINE_BYTES // kind.itemsize
    return (-(-classes // line) | 1) * line


def _rows(classes: int, kind: torch.dtype) -> int:
    """Rows in a chunk by default."""
    return min(max(CHUNK_BYTES // (_stride(classes, kind) * kind.itemsize), FEWEST_ROWS), MOST_ROWS)


def _check_numbers(chunk: int | None, z_loss: float, reduction: str) -> None:
    if reduction == "none":
        raise errors.argument(
            "reduction", expected="mean or sum, for the gradients are formed before it is known what each row counts", got="none",
            fix="comp_sum_loss(F.linear(hidden, weight, bias), target, tau, reduction='none'), which holds all logits",
        )  # fmt: skip
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
    mixed = torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None and x.dtype != hidden.dtype and not (mixed and x.dtype in (torch.float32, *SHORT)):
            raise errors.argument(
                name,
                expected=f"{hidden.dtype}, the type of hidden",
                got=x.dtype,
                fix="torch.autocast, or cast one of them",
            )
