"""QK-clip: query and key weights are scaled down, head by head, where the largest attention logit passed a threshold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.stability.readings import Reading


def qk_clip_factors(largest: Tensor, threshold: float = 100.0) -> Tensor:
    """By how much the attention logits of each head are to shrink: min(1, threshold / largest).

    Args:
        largest: [H] or any shape, floating point, the largest attention logit of each head over the batch; an upper end clips no
            less than the exact one.
        threshold: > 0, in units of logits.
    Returns: factors in (0, 1], 1 where the largest logit is at most the threshold or not finite.
    Raises: LegatoValueError for a threshold out of range; LegatoTypeError for no floating point tensor.
    Source: Kimi team 2025, arXiv 2507.20534.
    """
    _check_threshold(threshold)
    if not isinstance(largest, Tensor) or not largest.is_floating_point():
        got = largest.dtype if isinstance(largest, Tensor) else type(largest).__name__
        raise errors.argument_type("largest", expected="a floating point tensor", got=got)
    over = (largest > threshold) & largest.isfinite()
    return torch.where(over, threshold / torch.where(over, largest, threshold), 1.0)


@dataclass(frozen=True)
class Heads:
    """The weights that make the queries and keys of one attention layer."""

    query: Sequence[Tensor]
    """Weight and, if there is one, bias; or views of them. Their axis `axis` has heads * head_dim rows, head after head."""
    key: Sequence[Tensor]
    """The same of the keys; with fewer heads where several query heads share one."""
    heads: int
    """Query heads."""
    key_heads: int
    """Key heads, which divides `heads`."""
    axis: int = 0
    """Where the rows stand in the weight: 0 in nn.Linear, 1 in weights that are stored transposed."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.key_heads < 1 or self.heads % self.key_heads:
            raise errors.argument(
                "heads", expected="a multiple of key_heads >= 1", got=f"{self.heads} and {self.key_heads}"
            )
        for name, weights, count in (("query", self.query, self.heads), ("key", self.key, self.key_heads)):
            for weight in weights:
                if hasattr(weight, "to_local"):
                    raise errors.argument_type(
                        name,
                        expected="plain tensors",
                        got="a distributed tensor",
                        fix="scale the heads before sharding",
                    )
                if weight.shape[self._axis(weight)] % count:
                    raise errors.argument(
                        name, expected=f"{count} heads in axis {self._axis(weight)}", got=f"shape {list(weight.shape)}"
                    )

    def _axis(self, weight: Tensor) -> int:
        return self.axis if weight.dim() > 1 else 0

    @torch.no_grad()
    def scale_(self, factors: Tensor) -> None:
        """Multiply the logits of each head by its factor, by changing weights in place.

        Where each query head has a key head of its own, both get the square root of the factor. Where key heads are shared, the queries
        alone get the whole factor, so that no other head changes.

        Args:
            factors: [H].
        """
        if factors.shape != (self.heads,):
            raise errors.argument("factors", expected=f"shape [{self.heads}]", got=list(factors.shape))
        shared = self.heads != self.key_heads
        for weight in self.query:
            self._scale(weight, factors if shared else factors.sqrt())
        for weight in () if shared else self.key:
            self._scale(weight, factors.sqrt())

    def _scale(self, weight: Tensor, factors: Tensor) -> None:
        axis = self._axis(weight)
        rows = factors.to(weight).repeat_interleave(weight.shape[axis] // len(factors))
        weight.mul_(rows.reshape([-1 if place == axis else 1 for place in range(weight.dim())]))


@final
class QKClip:
    """QK-clip as a step after the optimizer's: `clip.step(watcher.latest)`.

    Each head whose largest logit passed the threshold in that reading has its query and key weights scaled, so that the logits of the
    same batch would reach the threshold alone. It acts on watched steps, once each; watch with every=1 to act on all, as its authors do.
    Where a reading holds no exact maximum, the upper end of its interval is taken, which clips by no less. The optimizer's
    moments are left alone. It does nothing for a model that normalises queries and keys.

    Args:
        layers: the weights of each attention layer, under the name that the reading uses; `find_heads(model)` knows some models.
        threshold: > 0; 100 is the authors' value.
    Raises: LegatoValueError for a threshold out of range or no layers.
    Source: Kimi team 2025, arXiv 2507.20534.
    """

    def __init__(self, layers: Mapping[str, Heads], threshold: float = 100.0) -> None:
        _check_threshold(threshold)
        if not layers:
            raise errors.argument(
                "layers", expected="at least one attention layer", got="none", fix="spell out Heads(...)"
            )
        self.layers, self.threshold = dict(layers), threshold
        self._done = -1

    def step(self, reading: Reading | None) -> dict[str, list[float]]:
        """Scale what passed the threshold in this reading.

        Args:
            reading: None, or one that was used before, does nothing.
        Returns: the factors of each layer that was scaled.
        Raises: LegatoValueError if the reading knows none of the layers.
        """
        if reading is None or reading.step <= self._done:
            return {}
        self._done = reading.step
        known = {name: heads for name, heads in self.layers.items() if name in reading.attention}
        if not known:
            raise errors.argument(
                "reading", expected=f"one with {', '.join(self.layers)}", got=f"layers {sorted(reading.attention)}"
            )
        done = {}
        for name, heads in known.items():
            factors = qk_clip_factors(torch.tensor(reading.attention[name].largest), self.threshold)
            if bool((factors < 1).any()):
                heads.scale_(factors)
                done[name] = factors.tolist()
        return done


def find_heads(model: nn.Module) -> dict[str, Heads]:
    """The query and key weights of attention layers of a known form, by their names in the model.

    Known are nn.MultiheadAttention, modules with `q_proj` and `k_proj` and a `head_dim` (Llama and its like), and modules with a
    transposed `c_attn` and `num_heads` (GPT-2). Layers that normalise queries and keys are left out, since scaling their weights
    changes nothing.
    """
    found: dict[str, Heads] = {}
    for name, module in model.named_modules():
        heads = _heads(module)
        if heads is not None:
            found[name] = heads
    return found


def _heads(module: nn.Module) -> Heads | None:
    if any(hasattr(module, part) for part in ("q_norm", "k_norm", "q_layernorm", "query_norm")):
        return None
    if isinstance(module, nn.MultiheadAttention):
        return _of_multihead(module)
    query, key, width = (getattr(module, part, None) for part in ("q_proj", "k_proj", "head_dim"))
    if isinstance(query, nn.Linear) and isinstance(key, nn.Linear) and isinstance(width, int):
        return Heads(_weights(query), _weights(key), query.out_features // width, key.out_features // width)
    joint: Any = getattr(module, "c_attn", None)
    heads = getattr(module, "num_heads", None)
    if isinstance(heads, int) and type(joint).__name__ == "Conv1D":
        third = joint.weight.shape[1] // 3
        parts = [[joint.weight.detach()[:, at : at + third], joint.bias.detach()[at : at + third]] for at in (0, third)]
        return Heads(parts[0], parts[1], heads, heads, axis=1)
    return None


def _of_multihead(module: nn.MultiheadAttention) -> Heads:
    width, bias = module.embed_dim, module.in_proj_bias
    if module.in_proj_weight is not None:
        parts = [[module.in_proj_weight.detach()[:width]], [module.in_proj_weight.detach()[width : 2 * width]]]
    else:
        parts = [[module.q_proj_weight.detach()], [module.k_proj_weight.detach()]]
    if bias is not None:
        parts[0].append(bias.detach()[:width])
        parts[1].append(bias.detach()[width : 2 * width])
    return Heads(parts[0], parts[1], module.num_heads, module.num_heads)


def _weights(linear: nn.Linear) -> list[Tensor]:
    return [linear.weight] if linear.bias is None else [linear.weight, linear.bias]


def _check_threshold(threshold: float) -> None:
    if not (isinstance(threshold, Real) and 0 < float(threshold) < math.inf):
        raise errors.argument(
            "threshold", expected="a plain finite number > 0", got=threshold, fix="threshold=100 is its authors' value"
        )
