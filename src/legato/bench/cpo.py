"""What condition preference costs: a step of ours against the order of the released code, and a reference without a second copy."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato import errors
from legato.bench.case import Case
from legato.bench.memory import peak_bytes
from legato.bench.timing import Step
from legato.diffusion import (
    ConditionPreference,
    ConditionPreferenceObjective,
    ControlledUNet,
    ReferenceErrors,
    condition_preference_loss,
    mean_squared_errors,
    scaled_linear,
)
from legato.diffusion.lora import add_lora

SHAPE = (4, 4, 16, 16)
"""Of the samples of a step."""
TEXT = (8, 32)
"""Tokens and width of the text."""
BETA, WEIGHT, MARGIN = 100.0, 20.0, 0.3
SCHEDULE = scaled_linear()
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")
FIVE = "five passes in the released order, our reimplementation"
Loss = Callable[[], Tensor]


def cases(official: Path | None = None) -> list[Case]:
    """Every case of the room; `official` is of no use here."""

    def case(part: str, ours: Callable[[], Step], peer: str, other: Callable[[], Step], bar: float | None) -> Case:
        return Case(part, peer, SHAPE, ours, other, bar, peak=held_and_peak_bytes)

    return [
        case("step", our_step, FIVE, five_pass_step, 0.7),
        case("step, cached reference errors", partial(our_step, cached=True), FIVE, five_pass_step, 0.5),
        case("step", our_step, "a plain ControlNet step", plain_step, None),
        case("step with LoRA", lora_step, "the same with a second copy as reference", partial(lora_step, copied=True), None),
    ]  # fmt: skip


class TrainingStep:
    """Forward, backward and AdamW on what is trainable of a model."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainable, lr=1e-5)

    def __call__(self) -> None:
        """One step, which ends with the gradients freed, so that its peak has them."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def held_and_peak_bytes(step: Step) -> int:
    """The weights that a `TrainingStep` holds, all copies, and what a step takes at its peak; Adam's moments aside."""
    assert isinstance(step, TrainingStep)
    return sum(p.numel() * p.element_size() for p in step.model.parameters()) + peak_bytes(step)


def our_step(cached: bool = False) -> TrainingStep:
    """Encoder once, winner and loser in one pass, policy and reference; the winner's error is the denoising loss."""
    base, net = networks()
    return _step_of(ControlledUNet(base, net, copy.deepcopy(net)), cached)


def lora_step(copied: bool = False) -> TrainingStep:
    """The same on adapters; the reference is the network without them, or a copy of it."""
    base, net = networks()
    reference = copy.deepcopy(net) if copied else None
    add_lora(net, 8, ADAPTED)
    return _step_of(ControlledUNet(base, net, reference))


def plain_step() -> TrainingStep:
    """The denoising loss of the true control alone, as every ControlNet is trained."""
    base, net = networks()
    x0, controls, text = data()
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        return F.mse_loss(*_said(base, net, x0, controls[:, 0], text, *noise_for(x0, generator)))

    return TrainingStep(nn.ModuleList([base, net]), loss)


def five_pass_step() -> TrainingStep:
    """As reward_CPO.py orders it: the denoising loss on a noise of its own, both controls under policy and reference."""
    base, net = networks()
    before = copy.deepcopy(net).requires_grad_(False)
    batch = data()
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        x0 = batch[0]
        return five_passes(base, net, before, batch, noise_for(x0, generator), noise_for(x0, generator))

    return TrainingStep(nn.ModuleList([base, net, before]), loss)


def five_passes(
    base: nn.Module,
    net: nn.Module,
    before: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    alone: tuple[Tensor, Tensor],
    paired: tuple[Tensor, Tensor],
) -> Tensor:
    """The loss of that step, a scalar.

    Args:
        base, net, before: UNet, ControlNet and the reference's ControlNet.
        batch: x0 [B, C, H, W], controls [B, 2, Cc, h, w], text [B, tokens, width].
        alone, paired: (t, noise) of the denoising loss and of the pairs.
    """
    x0, controls, text = batch
    denoising = F.mse_loss(*_said(base, net, x0, controls[:, 0], text, *alone))
    twice = (torch.cat([x0, x0]), controls.transpose(0, 1).flatten(0, 1), torch.cat([text, text]))
    t, noise = (torch.cat([part, part]) for part in paired)
    w, loser = mean_squared_errors(*_said(base, net, *twice, t, noise)).chunk(2)
    with torch.no_grad():
        ref_w, ref_l = mean_squared_errors(*_said(base, before, *twice, t, noise)).chunk(2)
    preference = condition_preference_loss(w, loser, ref_w, ref_l, BETA, "hinge", margin=MARGIN, mask=paired[0] > 0)
    return denoising + WEIGHT * preference


def networks() -> tuple[Any, Any]:
    """A frozen UNet in the proportions of Stable Diffusion's and a ControlNet of it that hears its control."""
    torch.manual_seed(0)
    diffusers = errors.require("diffusers", extra="diffusion")
    base = diffusers.UNet2DConditionModel(
        sample_size=SHAPE[-1], in_channels=SHAPE[1], out_channels=SHAPE[1], block_out_channels=(32, 64, 64), layers_per_block=2,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=TEXT[1], attention_head_dim=8,
    ).requires_grad_(False)  # fmt: skip
    net = diffusers.ControlNetModel.from_unet(base, conditioning_embedding_out_channels=(16,), conditioning_channels=1)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "controlnet_" in name:
                value.normal_(std=0.05)
    return base, net


def data() -> tuple[Tensor, Tensor, Tensor]:
    """x0 [B, C, H, W], controls [B, 2, 1, H, W] and text [B, tokens, width] of a batch."""
    generator = torch.Generator().manual_seed(1)
    rows, _, *size = SHAPE
    return (torch.randn(SHAPE, generator=generator), torch.rand(rows, 2, 1, *size, generator=generator),
            torch.randn(rows, *TEXT, generator=generator))  # fmt: skip


def noise_for(x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(t [B], noise [B, C, H, W]), drawn as `ConditionPreferenceObjective` does."""
    t = torch.randint(len(SCHEDULE), (len(x0),), generator=generator)
    return t, torch.randn(x0.shape, generator=generator)


def objective(text: Tensor, cached: bool = False) -> ConditionPreferenceObjective:
    """Ours, with the constants of the peer."""
    return ConditionPreferenceObjective(
        SCHEDULE, ConditionPreference(BETA, "hinge", margin=MARGIN), weight=WEIGHT,
        condition=lambda index: {"encoder_hidden_states": text[index]},
        cached=ReferenceErrors(len(text), len(SCHEDULE), 1) if cached else None,
    )  # fmt: skip


def _step_of(model: ControlledUNet, cached: bool = False) -> TrainingStep:
    x0, controls, text = data()
    term, index = objective(text, cached), torch.arange(len(x0))
    return TrainingStep(model, lambda: term.loss(model, (x0, controls, index), 0))


def _said(
    base: Any, net: Any, x0: Tensor, control: Tensor, text: Tensor, t: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """(output, target), by the two calls that scripts of diffusers make."""
    x = SCHEDULE.noisy(x0, noise, t)
    down, middle = net(x, t, encoder_hidden_states=text, controlnet_cond=control, return_dict=False)
    output: Tensor = base(
        x, t, encoder_hidden_states=text, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    return output, SCHEDULE.target(x0, noise, t)
