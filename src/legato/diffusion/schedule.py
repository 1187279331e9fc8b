"""Noise levels: how much of the data and how much noise there is at each timestep, and what the network says about it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from legato import errors

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")
LEAST_SIGNAL = 1e-6
"""Of alpha^2: below it the clean sample cannot be had from the noise."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """x_t = alpha_t x0 + sigma_t noise, for t = 0 .. T-1 with rising noise.

    epsilon: the network gives noise.  v_prediction: alpha noise - sigma x0.  sample: x0.  flow: noise - x0, with alpha = 1 - sigma.

    Args:
        alpha: [T], >= 0.
        sigma: [T], > 0; alpha^2 + sigma^2 = 1, but for flow.
        prediction: epsilon, v_prediction, sample or flow, as schedulers of diffusers call them.
        timesteps: [T], what the network is told at each level; default 0 .. T-1.
        name: for messages.
    Raises: LegatoValueError for an unknown prediction, shapes that differ, and zero terminal signal-to-noise with epsilon.
    """

    alpha: Tensor
    sigma: Tensor
    prediction: str = "epsilon"
    timesteps: Tensor | None = None
    name: str = "schedule"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise errors.choice("prediction", self.prediction, PREDICTIONS)
        shapes = [list(part.shape) for part in (self.alpha, self.sigma, self.timesteps) if part is not None]
        if any(shape != [len(self)] for shape in shapes):
            raise errors.argument("alpha, sigma, timesteps", expected="equal lengths", got=shapes)
        least = int(self.alpha.argmin())
        if self.prediction == "epsilon" and float(self.alpha[least]) ** 2 <= LEAST_SIGNAL:
            raise errors.argument(
                "schedule", expected=f"some signal at every timestep, for {self.name} divides by alpha to find the clean sample",
                got=f"alpha^2 = {float(self.alpha[least]) ** 2:.2g} at t = {least} (zero terminal signal-to-noise)",
                fix="a schedule without rescale_betas_zero_snr, or a network with prediction_type='v_prediction'",
            )  # fmt: skip

    def __len__(self) -> int:
        return self.alpha.shape[0]

    def at(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t [B] or one t for all, in the type and on the device of `like` [B, ...], shaped to multiply it; t = -1 is clean."""
        index = torch.as_tensor(t, device=like.device).reshape(-1, *[1] * (like.dim() - 1))
        clean, place = index < 0, index.clamp(min=0)
        alpha, sigma = self.alpha.to(like.device)[place], self.sigma.to(like.device)[place]
        both = alpha.masked_fill(clean, 1.0), sigma.masked_fill(clean, 0.0)
        return both[0].to(like), both[1].to(like)

    def told(self, t: Tensor | int, like: Tensor) -> Tensor:
        """[B] what the network is told for t [B] or one t for all rows of `like`."""
        index = torch.as_tensor(t, device=like.device).expand(like.shape[0])
        return index if self.timesteps is None else self.timesteps.to(like.device)[index]

    def noisy(self, x0: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """x_t [B, ...]."""
        alpha, sigma = self.at(t, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """What the network should give, [B, ...]."""
        alpha, sigma = self.at(t, x0)
        match self.prediction:
            case "epsilon":
                return noise
            case "sample":
                return x0
            case "flow":
                return noise - x0
        return alpha * noise - sigma * x0

    def clean(self, x: Tensor, output: Tensor, t: Tensor | int) -> Tensor:
        """The estimate of x0 at x_t = x [B, ...] from the network's output."""
        alpha, sigma = self.at(t, x)
        match self.prediction:
            case "epsilon":
                return (x - sigma * output) / alpha
            case "sample":
                return output
            case "flow":
                return x - sigma * output
        return alpha * x - sigma * output

    def noise(self, x: Tensor, output: Tensor, t: Tensor | int) -> Tensor:
        """The estimate of the noise at x_t = x [B, ...] from the network's output."""
        alpha, sigma = self.at(t, x)
        match self.prediction:
            case "epsilon":
                return output
            case "sample":
                return (x - alpha * output) / sigma
            case "flow":
                return x + alpha * output
        return sigma * x + alpha * output


def variance_preserving(betas: Tensor, prediction: str = "epsilon", name: str = "schedule") -> NoiseSchedule:
    """alpha_t^2 = product of (1 - beta) up to t, sigma_t^2 = 1 - alpha_t^2; computed in float64, betas [T] in (0, 1)."""
    signal = (1 - betas.double()).cumprod(0)
    return NoiseSchedule(signal.sqrt(), (1 - signal).sqrt(), prediction, name=name)


def scaled_linear(
    steps: int = 1000, first: float = 0.00085, last: float = 0.012, prediction: str = "epsilon"
) -> NoiseSchedule:
    """Stable Diffusion's schedule: the roots of beta rise linearly from sqrt(first) to sqrt(last) over T = steps."""
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return variance_preserving(betas, prediction, "scaled_linear")


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """The levels of a scheduler of diffusers: any with `alphas_cumprod`, or a flow-matching one.

    Raises: LegatoTypeError for another object, such as a variance-exploding scheduler; LegatoValueError as `NoiseSchedule`.
    """
    name = type(scheduler).__name__
    if hasattr(scheduler, "alphas_cumprod"):
        signal = scheduler.alphas_cumprod.double()
        return NoiseSchedule(signal.sqrt(), (1 - signal).sqrt(), scheduler.config.prediction_type, name=name)
    if name.startswith("FlowMatch"):
        config = scheduler.config
        fresh = type(scheduler).from_config(config)  # the levels of training, whatever was set for sampling
        rising = fresh.timesteps.flip(0), fresh.sigmas.flip(0)
        sigma = rising[1][-len(rising[0]) :].double()  # a scheduler may end its sigmas with 0
        return NoiseSchedule(1 - sigma, sigma, "flow", rising[0], name)
    raise errors.argument_type(
        "scheduler", expected="a scheduler of diffusers with alphas_cumprod, or a flow-matching one", got=name,
        fix="make a NoiseSchedule(alpha, sigma, prediction) of your levels",
    )  # fmt: skip
