"""What is read from a model at one step: norms of gradients, weights, updates and blocks, output logits, and the reading as a whole."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from legato.stability.attention import Values

CELLS = 2**22
"""How many output logits are looked at in one go."""


@dataclass(frozen=True)
class AttentionReading:
    """One attention layer at one step; one number for each head."""

    lower: list[float]
    """The largest logit is at least this, up to rounding."""
    upper: list[float]
    """The largest logit is at most this, up to rounding: the log-sum-exp, or the bound where that is less."""
    entropy: list[float] | None
    """Mean over rows of the entropy of the attention weights, in nats."""
    bound: list[float] | None
    """The largest logit and the largest absolute one are at most this, by Cauchy-Schwarz; None where queries are not seen."""
    max: list[float] | None
    """The largest logit; None at steps where it was not made."""
    absmax: list[float] | None
    """The largest absolute logit; None at steps where it was not made."""
    source: str
    """`kernel`: log-sum-exp of a fused kernel; `softmax`: the logits themselves; `blocks`: logits made again; `given`."""

    @property
    def largest(self) -> list[float]:
        """The largest logit of each head where it is known, else the upper end of its interval."""
        return self.upper if self.max is None else self.max


@dataclass(frozen=True)
class LogitReading:
    """The output logits of a model at one step."""

    log_z: float
    """Mean over rows of the log-normaliser logsumexp, in nats."""
    log_z_rms: float
    """Root of the mean square of the log-normaliser; its square times the coefficient is the z-loss."""
    smallest: float
    """The least logit; those of -inf are left out."""
    largest: float
    """The largest logit."""


@dataclass(frozen=True)
class Reading:
    """What one watched step showed. RMS is the root of the mean square; norms over all processes where there are several."""

    step: int
    """Optimizer steps that were done before this one."""
    attention: dict[str, AttentionReading] = field(default_factory=dict)
    """By the name of the module that was running."""
    logits: LogitReading | None = None
    """None where the model returns no logits."""
    block_rms: dict[str, float] = field(default_factory=dict)
    """RMS of the output of each block."""
    gradient_rms: dict[str, float] = field(default_factory=dict)
    """RMS of the gradient of each parameter as the optimizer sees it: after clipping, without a GradScaler's factor."""
    parameter_rms: dict[str, float] = field(default_factory=dict)
    """RMS of each parameter before the step."""
    update_rms: dict[str, float] = field(default_factory=dict)
    """RMS of what the step added to each parameter."""
    eps: dict[str, float] = field(default_factory=dict)
    """The optimizer's eps for each parameter, where it has one."""
    learning_rate: dict[str, float] = field(default_factory=dict)
    """The learning rate of each parameter, where it is a plain number."""

    def metrics(self) -> dict[str, float]:
        """One flat table for trackers: `attention/NAME/head0/upper`, `gradient_rms/NAME`, `logits/log_z` and so on."""
        table: dict[str, float] = {}
        for name, layer in self.attention.items():
            for kind in ("lower", "upper", "bound", "entropy", "max", "absmax"):
                heads = getattr(layer, kind) or []
                table |= {f"attention/{name}/head{head}/{kind}": value for head, value in enumerate(heads)}
        if self.logits is not None:
            table |= {f"logits/{kind}": value for kind, value in vars(self.logits).items()}
        for kind in ("block_rms", "gradient_rms", "parameter_rms", "update_rms"):
            table |= {f"{kind}/{name}": value for name, value in getattr(self, kind).items()}
        for name, share in self.adam_shares().items():
            table[f"adam_share/{name}"] = share
        return table

    def adam_shares(self) -> dict[str, float]:
        """`adam_share` of each parameter that has a gradient and an eps."""
        return {
            name: adam_share(rms, self.eps[name])
            for name, rms in self.gradient_rms.items()
            if name in self.eps and rms > 0
        }


def adam_share(rms: float, eps: float) -> float:
    """|g| / (|g| + eps), the part of a full step that Adam takes under a constant gradient g; 0.5 where the gradient is eps."""
    return rms / (rms + eps) if rms + eps > 0 else 1.0


def sums_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of each of the tensors, [P] on the device of the first, in float64 where the device has it.

    Norms are taken in float32, or float64 if any tensor is: numbers below about 1e-19 count as 0 in float32. Of a distributed tensor the
    part of this process counts, of a sparse one its values.
    """
    parts = [_dense(tensor.detach()) for tensor in tensors]
    device = parts[0].device
    kind = torch.float64 if any(part.dtype in (torch.float64, torch.complex128) for part in parts) else torch.float32
    norms = torch.stack([norm.to(device) for norm in torch._foreach_norm(parts, 2, kind)])
    return (norms if device.type == "mps" else norms.double()).square()


def sizes(tensors: Sequence[Tensor]) -> list[int]:
    """How many numbers of each of the tensors this process holds."""
    return [local(tensor).numel() for tensor in tensors]


def parameter_names(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The trainable parameters of the model that the optimizer has, by their names without what wrappers put before them."""
    own = {id(weight) for settings in optimizer.param_groups for weight in settings["params"]}
    return {
        plain_name(name): weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and id(weight) in own
    }


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of each nn.ModuleList or nn.Sequential whose parts are all of one kind and have parts themselves, by name."""
    found: dict[str, nn.Module] = {}

    def search(prefix: str, module: nn.Module) -> None:
        parts = list(module.named_children())
        kinds = {type(part) for _, part in parts}
        alike = isinstance(module, nn.ModuleList | nn.Sequential) and len(kinds) == 1
        for name, part in parts:
            path = f"{prefix}.{name}" if prefix else name
            if alike and any(True for _ in part.children()):
                found[plain_name(path)] = part
            else:
                search(path, part)

    search("", model)
    return found


def plain_name(name: str) -> str:
    """The name of a module or parameter without the parts that DistributedDataParallel and torch.compile put before it."""
    parts = name.split(".")
    while parts and parts[0] in ("module", "_orig_mod"):
        del parts[0]
    return ".".join(part for part in parts if part != "_orig_mod")


def output_logits(output: Any) -> Tensor | None:
    """The logits of what a model returns: the tensor itself, its `logits`, or the first tensor with two axes in a tuple.

    Returns: a floating point tensor [..., V] with V >= 2, or None.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if found is None and isinstance(output, tuple | list):
        found = next((part for part in output if _is_logits(part)), None)
    return found if _is_logits(found) else None


def logit_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits [..., V]: [sum of log Z, sum of (log Z)^2, rows], and [largest, -smallest] without those of -inf."""
    flat = logits.detach().reshape(-1, logits.shape[-1])
    sums, ends = [], []
    for part in flat.split(max(1, CELLS // flat.shape[1])):
        part = part.to(torch.promote_types(part.dtype, torch.float32))
        log_z = part.logsumexp(-1)
        sums.append(torch.stack([log_z.sum(), log_z.square().sum(), log_z.new_tensor(float(len(part)))]))
        smallest = torch.where(part == -math.inf, math.inf, part).amin()
        ends.append(torch.stack([part.amax(), -smallest]))
    return torch.stack(sums).sum(0), torch.stack(ends).amax(0)


@final
class Ledger:
    """Numbers on the device under names, read in one copy; over several processes, maxima and sums of all of them."""

    def __init__(self) -> None:
        self._largest: dict[Any, Tensor] = {}
        self._totals: dict[Any, Tensor] = {}
        self._plain: dict[Any, list[float]] = {}

    def largest(self, key: Any, values: Tensor) -> None:
        """[n] numbers of which the maximum over processes is wanted."""
        self._largest[key] = values

    def total(self, key: Any, values: Tensor | Sequence[float]) -> None:
        """[n] numbers of which the sum over processes is wanted."""
        if isinstance(values, Tensor):
            self._totals[key] = values
        else:
            self._plain[key] = list(values)

    def layout(self) -> list[tuple[Any, int]]:
        """What is kept and how many numbers each, the same in all processes if they can be reduced."""
        return [
            (key, len(values)) for table in (self._largest, self._totals, self._plain) for key, values in table.items()
        ]

    def read(self, group: Any = None) -> dict[Any, list[float]]:
        """All numbers as plain floats, after `group`, if any, has reduced them: the one time that the device is waited for."""
        tensors = [*self._largest.values(), *self._totals.values()]
        plain = [value for values in self._plain.values() for value in values]
        device = tensors[0].device if tensors else torch.device("cpu")
        tops, sums = (
            torch.cat([part.to(device) for part in table.values()]) if table else torch.zeros(0, device=device)
            for table in (self._largest, self._totals)
        )
        if group is None:
            flat = [*torch.cat([tops, sums]).tolist(), *plain]
        else:
            sums = torch.cat([sums, torch.tensor(plain, dtype=sums.dtype, device=device)])
            torch.distributed.all_reduce(tops, torch.distributed.ReduceOp.MAX, group)
            torch.distributed.all_reduce(sums, torch.distributed.ReduceOp.SUM, group)
            flat = torch.cat([tops, sums]).tolist()
        table, start = {}, 0
        for key, count in self.layout():
            table[key] = flat[start : start + count]
            start += count
        return table


def enter(ledger: Ledger, name: str, values: Values) -> None:
    """Put one attention layer into the ledger."""
    for kind in ("lower", "upper", "bound", "maximum", "absmax"):
        found = getattr(values, kind)
        if found is not None:
            ledger.largest(("attention", name, kind), found)
    if values.entropy is not None:
        ledger.total(("attention", name, "entropy"), values.entropy)
    ledger.total(("attention", name, "rows"), values.rows.to(values.lower.dtype))


def attention_reading(table: Mapping[Any, list[float]], name: str, source: str) -> AttentionReading:
    """Take one attention layer out of what a ledger has read."""
    found = {kind: table.get(("attention", name, kind)) for kind in ("bound", "maximum", "absmax", "entropy")}
    rows, entropy = table["attention", name, "rows"], found["entropy"]
    if entropy is not None:
        entropy = [_ratio(total, count) for total, count in zip(entropy, rows, strict=True)]
    upper, bound = table["attention", name, "upper"], found["bound"]
    if bound is not None:
        upper = [min(pair) for pair in zip(upper, bound, strict=True)]
    return AttentionReading(
        table["attention", name, "lower"], upper, entropy, found["bound"],
        found["maximum"], found["absmax"], source,
    )  # fmt: skip


def logit_reading(sums: Sequence[float], ends: Sequence[float]) -> LogitReading:
    """Take the output logits out of `logit_parts`, read."""
    total, square, rows = sums
    return LogitReading(_ratio(total, rows), _root(square, rows), -ends[1], ends[0])


def roots(squares: Sequence[float], counts: Sequence[float]) -> list[float]:
    """Root of the mean square of each tensor; 0 for one without numbers."""
    return [_root(square, count) for square, count in zip(squares, counts, strict=True)]


def _root(square: float, count: float) -> float:
    ratio = _ratio(square, count)
    return ratio if math.isnan(ratio) else math.sqrt(ratio)


def _ratio(total: float, count: float) -> float:
    return total / count if count else 0.0


def local(tensor: Tensor) -> Tensor:
    """The part of a distributed tensor that this process holds; any other tensor as it is."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _dense(tensor: Tensor) -> Tensor:
    tensor = local(tensor)
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def _is_logits(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2 and value.shape[-1] >= 2
