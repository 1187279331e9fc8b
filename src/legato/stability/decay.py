"""Groups of parameters for an optimizer whose weight decay does not depend on the learning rate, and AdamW and Muon with them."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, final

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from legato import errors
from legato.stability.mup import Factors

Decay = Literal["independent", "conventional"]
BETAS = (0.9, 0.95)
"""The paper's."""


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    learning_rate: float,
    weight_decay: float = 1e-4,
    *,
    decay: Decay = "independent",
    factors: Mapping[str, Factors] | None = None,
) -> list[dict[str, Any]]:
    """Groups for torch's AdamW, SGD or Muon, one for each learning rate, with the weight decay that makes its step

        independent     theta <- theta - s_t (eta * delta + lambda * theta)
        conventional    theta <- theta - s_t * eta * (delta + lambda * theta)

    where s_t is the schedule's factor, eta the group's peak learning rate, lambda the weight decay and delta the optimizer's direction.
    torch multiplies its `weight_decay` by the learning rate, so independent decay is lambda / eta there, with each group's own eta.

    Args:
        parameters: such as `model.named_parameters()`; those that are not trained are left out.
        learning_rate: eta > 0, the peak.
        weight_decay: lambda >= 0; the paper has 1e-4 for independent and 0.1 for conventional decay.
        decay: which of the two.
        factors: of learning rates, from `mu_factors`; 1 for names that are not in it.
    Returns: dicts with params, lr and weight_decay.
    Raises: LegatoValueError for a learning rate that is not > 0, or another number or word out of range.
    Source: Wortsman et al. 2024, arXiv 2309.14322, section 3.2.2; Loshchilov and Hutter 2019, arXiv 1711.05101.
    """
    if not 0 < learning_rate < math.inf:
        raise errors.argument("learning_rate", expected="a number > 0", got=learning_rate)
    if not 0 <= weight_decay < math.inf:
        raise errors.argument("weight_decay", expected="a number >= 0", got=weight_decay)
    if decay not in ("independent", "conventional"):
        raise errors.choice("decay", str(decay), ("independent", "conventional"))
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, weight in parameters:
        if weight.requires_grad:
            factor = factors[name].learning_rate if factors and name in factors else 1.0
            by_rate.setdefault(learning_rate * factor, []).append(weight)
    return [
        {"params": weights, "lr": rate, "weight_decay": weight_decay / rate if decay == "independent" else weight_decay}
        for rate, weights in by_rate.items()
    ]


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 1e-4,
    *,
    decay: Decay = "independent",
    factors: Mapping[str, Factors] | None = None,
    eps: float = 1e-8,
) -> AdamW:
    """The paper's AdamW: betas 0.9 and 0.95, independent weight decay, eps 1e-8.

    Args: as in `parameter_groups`; eps: >= 0, as in torch.
    """
    groups = parameter_groups(model.named_parameters(), learning_rate, weight_decay, decay=decay, factors=factors)
    return AdamW(groups, betas=BETAS, eps=eps, fused=True)  # a fifth of the time where matrices are small


def muon(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 1e-4,
    *,
    decay: Decay = "independent",
    factors: Mapping[str, Factors] | None = None,
    eps: float = 1e-8,
    others: Callable[[str], bool] = lambda name: name.startswith(("embedding.", "head.")),
) -> "Joint":
    """torch's Muon for the matrices inside the model, and `adamw` for the rest, at one learning rate.

    Muon's updates are scaled to the size of AdamW's (its `match_rms_adamw`), so that a grid of learning rates serves both.

    Args:
        model: any; matrices whose name `others` picks are AdamW's.
        learning_rate, weight_decay, decay, factors: as in `parameter_groups`.
        eps: AdamW's.
        others: name -> whether a matrix is no hidden one; those of `Decoder` by default.
    Raises: LegatoValueError where there is no matrix for Muon.
    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982.
    """
    named = list(model.named_parameters())
    hidden = [(name, weight) for name, weight in named if weight.dim() == 2 and not others(name)]
    if not hidden:
        raise errors.argument("model", expected="a matrix beside embedding and head", got="none", fix="use adamw")
    inside = {name for name, _ in hidden}
    rest = [(name, weight) for name, weight in named if name not in inside]
    first, second = (
        parameter_groups(part, learning_rate, weight_decay, decay=decay, factors=factors) for part in (hidden, rest)
    )
    made: list[Optimizer] = [Muon(first, adjust_lr_fn="match_rms_adamw")]
    return Joint(*made, *([AdamW(second, betas=BETAS, eps=eps, fused=True)] if second else []))


@final
class Joint(Optimizer):
    """Several optimizers as one: their groups side by side, so that one schedule leads all, and one step of each.

    Args:
        optimizers: of different parameters.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        # The groups are the very dicts of the inner optimizers, so what a schedule writes here is read there.
        super().__init__([group for one in optimizers for group in one.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each; `closure` is called once, before them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in self.optimizers:
            one.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Those of the inner optimizers."""
        return {"optimizers": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for one, own in zip(self.optimizers, state["optimizers"], strict=True):
            one.load_state_dict(own)
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]
