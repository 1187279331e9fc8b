"""What smoothness costs: a step of low-rank fine-tuning with the variation penalty against the plain one."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from legato import errors
from legato.bench.case import Case
from legato.bench.timing import Step
from legato.diffusion import DenoisingObjective, SmoothnessRegularizer, scaled_linear
from legato.diffusion.lora import add_lora

SHAPE = (64, 1, 8, 8)
"""Of the samples of a step, as a UNet2DConditionModel of 0.8 million numbers sees them."""
TEXT = (4, 16)
"""Tokens and width of the condition."""
ARMS: dict[str, tuple[dict[str, Any], float | None]] = {
    "exact": ({"estimator": "exact"}, 3.0),
    "finite difference": ({"estimator": "fd"}, 1.6),
    "exact, half of the rows": ({"estimator": "exact", "share": 0.5}, None),
    "finite difference, half of the rows": ({"estimator": "fd", "share": 0.5}, 1.6),
}


def cases(official: Path | None = None) -> list[Case]:
    """Every case of the room; `official` is of no use here."""
    return [
        Case(name, "a plain LoRA step", SHAPE, partial(step_with, options), plain_step, bar)
        for name, (options, bar) in ARMS.items()
    ]


def plain_step() -> Step:
    """Noise, forward, backward and AdamW on the adapters."""
    return _step(None)


def step_with(options: dict[str, Any]) -> Step:
    """The same with the penalty. One that acts in each k-th step costs 1/k of what it costs here beyond the plain step."""
    return _step(SmoothnessRegularizer(**options))


def _step(term: SmoothnessRegularizer | None) -> Step:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = errors.require("diffusers", extra="diffusion").UNet2DConditionModel(
        sample_size=SHAPE[-1], in_channels=SHAPE[1], out_channels=SHAPE[1], block_out_channels=(32, 64), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT[1], attention_head_dim=16,
    )  # fmt: skip
    add_lora(model, 8)
    x0, text = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE[0], *TEXT, generator=generator)
    batch = x0, torch.zeros(len(x0)), torch.arange(len(x0))
    objective = DenoisingObjective(scaled_linear(), lambda targets, generator: {"encoder_hidden_states": text}, term)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective.loss(model, batch, 0).backward()
        optimizer.step()

    return step
