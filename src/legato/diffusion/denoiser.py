"""One interface to every network that takes noise away: (x_t, t, condition) -> what it says, the clean sample, the noise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from legato import errors
from legato.diffusion.schedule import NoiseSchedule, schedule_of

Condition: TypeAlias = Mapping[str, Tensor]
"""Keyword arguments of the network, each [B, ...], such as {"class_labels": y} or {"encoder_hidden_states": text}."""
NOTHING: Condition = {}


@dataclass(frozen=True)
class Denoiser:
    """A network with its noise levels.

    Args:
        model: called as model(x [B, ...], timesteps [B], **condition); gives a tensor of x's shape, an object with `.sample`, or a
            tuple that begins with it. UNet2DModel, UNet2DConditionModel and DiT of diffusers do, and so does a plain Module. A network that
            also gives a variance (twice the channels) is read by its first half.
        schedule: the levels and what the network predicts.
    """

    model: Callable[..., Any]
    schedule: NoiseSchedule

    def output(self, x: Tensor, t: Tensor | int, condition: Condition = NOTHING) -> Tensor:
        """What the network says at x [B, ...] and t, a level 0 .. T-1, [B] or one for all; [B, ...].

        Raises: LegatoValueError for an output of another shape.
        """
        out = _tensor_of(self.model(x, self.schedule.told(t, x), **condition))
        if x.dim() > 1 and out.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
            out = out.chunk(2, dim=1)[0]
        if out.shape != x.shape:
            raise errors.argument(
                "model", expected=f"an output of shape {list(x.shape)}", got=f"shape {list(out.shape)}"
            )
        return out

    def clean(self, x: Tensor, t: Tensor | int, condition: Condition = NOTHING) -> Tensor:
        """The network's estimate of x0 at x_t = x, [B, ...]."""
        return self.schedule.clean(x, self.output(x, t, condition), t)

    def noise(self, x: Tensor, t: Tensor | int, condition: Condition = NOTHING) -> Tensor:
        """The network's estimate of the noise at x_t = x, [B, ...]."""
        return self.schedule.noise(x, self.output(x, t, condition), t)

    def with_model(self, model: Callable[..., Any]) -> "Denoiser":
        """The same levels with another form of the network, such as one wrapped for several processes."""
        return replace(self, model=model)


def denoiser(model: Callable[..., Any], scheduler: Any) -> Denoiser:
    """A network and a scheduler of diffusers, or a `NoiseSchedule`, as a `Denoiser`."""
    return Denoiser(model, scheduler if isinstance(scheduler, NoiseSchedule) else schedule_of(scheduler))


def guided(plain: Denoiser, scale: float, nothing: Condition) -> Denoiser:
    """Classifier-free guidance: output = out(nothing) + scale (out(condition) - out(nothing)), in one pass of 2B rows.

    Args:
        plain: the network as it is.
        scale: w; 1 is the conditional network itself, to the last bit, and costs one pass of B rows.
        nothing: the condition that says nothing, one row [1, ...] or B of them for each keyword.
    Raises: LegatoValueError for a condition without one of `nothing`'s keywords.
    """
    if scale == 1:
        return plain
    if not nothing:
        raise errors.argument(
            "nothing", expected="the empty condition that guidance needs", got="none", fix="scale=1 is without guidance"
        )

    def model(x: Tensor, told: Tensor, **condition: Tensor) -> Tensor:
        if condition.keys() != nothing.keys():
            raise errors.argument("condition", expected=f"the keywords {sorted(nothing)}", got=sorted(condition))
        both = {name: torch.cat([nothing[name].expand_as(value), value]) for name, value in condition.items()}
        without, given = _tensor_of(plain.model(torch.cat([x, x]), torch.cat([told, told]), **both)).chunk(2)
        return without + scale * (given - without)

    return plain.with_model(model)


def _tensor_of(said: Any) -> Tensor:
    """What the network gave, out of the wrappings that diffusers puts around it."""
    out: Tensor = said if isinstance(said, Tensor) else said[0] if isinstance(said, tuple) else said.sample
    return out
