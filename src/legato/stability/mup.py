"""muParam: learning rates and initial weights that change with the width, so that the best learning rate does not.

What a parameter is multiplied by stands in a table of its own, name -> `Factors`, and never on the parameter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from legato import errors
from legato.stability.decoder import Attention, Decoder

Variant = Literal["simple", "intermediate", "full"]


@dataclass(frozen=True)
class Factors:
    """What a parameter's learning rate and its first values are multiplied by."""

    learning_rate: float = 1.0
    initial: float = 1.0


def mu_factors(
    model: Decoder, variant: Variant, base_width: int = 256, *, head_is_linear: bool = True
) -> dict[str, Factors]:
    """The factors of every parameter of a decoder, by name.

    With r = base_width / width, which is the base's fan in over the own fan in of every linear layer:

        simple         learning rate of linear layers * r
        intermediate   also head * sqrt(r) at the start: its deviation is sqrt(base fan in) / fan in
        full           also queries * 0 at the start, and attention logits <q, k> / D instead of <q, k> / sqrt(D)

    Embedding and gains keep their learning rate. At r = 1 the first two change nothing.

    Args:
        model: read only for its shapes.
        variant: one of the three.
        base_width: the width at which the learning rate was tuned; 256 in the paper.
        head_is_linear: whether the head's learning rate is scaled too; the paper does not say.
    Raises: LegatoValueError for another variant or a base width below 1.
    Source: Wortsman et al. 2024, arXiv 2309.14322, section 3.2.4; Yang et al. 2022, arXiv 2203.03466.
    """
    if variant not in get_args(Variant):
        raise errors.choice("variant", str(variant), get_args(Variant))
    if base_width < 1:
        raise errors.argument("base_width", expected="a whole number >= 1", got=base_width)
    ratio = base_width / model.width
    head = math.sqrt(ratio) if variant != "simple" else 1.0
    factors = dict.fromkeys(dict(model.named_parameters()), Factors())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            starts_at_0 = variant == "full" and name.endswith(".query")
            factors[f"{name}.weight"] = Factors(ratio, 0.0 if starts_at_0 else 1.0)
    factors["head.weight"] = Factors(ratio if head_is_linear else 1.0, head)
    return factors


@torch.no_grad()
def mu_parametrise_(
    model: Decoder, variant: Variant, base_width: int = 256, *, head_is_linear: bool = True
) -> dict[str, Factors]:
    """Multiply the weights of a fresh decoder by their factors and, for `full`, set its attention scale to 1 / D, in place.

    Args: as in `mu_factors`.
    Returns: the factors, for `parameter_groups`.
    """
    factors = mu_factors(model, variant, base_width, head_is_linear=head_is_linear)
    for name, weight in model.named_parameters():
        weight.mul_(factors[name].initial)
    for module in model.modules():
        if isinstance(module, Attention) and variant == "full":
            module.scale = 1 / module.head_dim
    return factors


def coordinate_check(
    make: Callable[[int], nn.Module], widths: Sequence[int], train: Callable[[nn.Module], Tensor]
) -> Mapping[str, list[float]]:
    """How large the outputs of each module are after some training, at several widths: flat where a parametrisation is right.

    RMS[width] of each module's output in one forward pass.

    Args:
        make: width -> a fresh model; the modules of all widths have the same names.
        widths: two or more.
        train: takes some steps in place, and returns the inputs of the forward pass that is measured.
    Returns: name of a module -> one RMS a width; modules without a floating point output, or that are not run, are left out.
    Raises: LegatoValueError for fewer than two widths.
    Source: Yang et al. 2022, arXiv 2203.03466, appendix D.1.
    """
    if len(widths) < 2:
        raise errors.argument("widths", expected="two or more widths", got=list(widths))
    found: dict[str, list[float]] = {}
    for width in widths:
        model = make(width)
        for name, value in _outputs(model, train(model)).items():
            found.setdefault(name, []).append(value)
    return {name: values for name, values in found.items() if len(values) == len(widths)}


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """RMS of what each module gave when it was run last."""
    seen: dict[str, float] = {}

    def look(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            seen[name] = float(output.float().square().mean().sqrt())

    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: look(name or "model", output))
        for name, module in model.named_modules()
    ]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
