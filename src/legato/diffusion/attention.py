"""Attention that can be differentiated twice: the fused kernels of torch and xformers cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SWAPPED = ("AttnProcessor2_0", "XFormersAttnProcessor")
"""Processors of diffusers that call a fused kernel and have a plain twin of equal result."""


@contextmanager
def twice_differentiable(model: Any) -> Iterator[int]:
    """Within, attention of `model` has second derivatives; afterwards everything is as it was. Gives how many layers were switched.

    diffusers' `AttnProcessor2_0` and `XFormersAttnProcessor` give way to `AttnProcessor`, and every other call of torch's
    scaled_dot_product_attention takes the MATH kernel, which is slower. With gradient checkpointing the backward pass must be within too.
    """
    switched: list[tuple[Any, Any]] = [
        (module, module.processor)
        for module in (model.modules() if isinstance(model, nn.Module) else ())
        if type(getattr(module, "processor", None)).__name__ in SWAPPED
    ]
    if switched:
        from diffusers.models.attention_processor import AttnProcessor

        for module, _ in switched:
            module.set_processor(AttnProcessor())
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield len(switched)
    finally:
        for module, processor in switched:
            module.set_processor(processor)
