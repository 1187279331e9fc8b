"""A denoiser fine-tuned for smoothness, its twin without, and what is measured on each."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from legato.data import Batches, Splits
from legato.diffusion import (
    DenoisingObjective,
    Evenness,
    SmoothnessRegularizer,
    class_condition,
    ddim_invert,
    ddim_levels,
    ddim_sample,
    evenness,
    local_variation,
    retimed,
    step_lengths,
    twice_differentiable,
    variation_profile,
    walk,
)
from legato.diffusion.lora import add_lora
from legato.nets import MLPDenoiser
from legato.studies.denoise import Pictured, noise_loss, sampled
from legato.training import Fitted, fit

MLP_LAYERS = ("up", "down")
UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj")
TABLE = 41
"""Points of the first walk of a re-timed one."""
ANGLES = (0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Tuning:
    """A fine-tuning by low-rank adapters."""

    lam: float = 1.0
    rank: int = 8
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 1e-3
    """Of AdamW, constant."""
    estimator: str = "exact"
    weighting: str = "paper"
    every: int = 1
    share: float = 1.0
    seed: int = 0


def tune(
    known: Pictured,
    splits: Splits,
    tuning: Tuning,
    folder: Path | None = None,
    *,
    device: str = "cpu",
    progress: bool = False,
) -> tuple[Pictured, Fitted]:
    """A copy of `known` with adapters trained on the training split; noise and batches are the same for every lam."""
    model = copy.deepcopy(known.model)
    layers = MLP_LAYERS if isinstance(model, MLPDenoiser) else UNET_LAYERS
    add_lora(model, tuning.rank, layers, seed=tuning.seed)
    part = splits.train
    batches = Batches(part.inputs, part.targets, part.index, tuning.batch_size, seed=tuning.seed)
    term = SmoothnessRegularizer(
        tuning.lam,
        estimator=tuning.estimator,
        weighting=tuning.weighting,
        every=tuning.every,
        share=tuning.share,
        seed=tuning.seed,
    )
    objective = DenoisingObjective(
        known.denoiser.schedule, class_condition(len(known.class_names)), term, seed=tuning.seed
    )
    with twice_differentiable(model if tuning.estimator == "exact" and tuning.lam else None):
        fitted = fit(
            model, objective, batches, epochs=math.ceil(tuning.steps / len(batches)),
            optimizer=partial(torch.optim.AdamW, lr=tuning.learning_rate, weight_decay=1e-4), clip_norm=1.0,
            device=device, folder=folder, progress=progress,
        )  # fmt: skip
    return known.with_model(fitted.model.eval()), fitted


def interpolations(
    known: Pictured,
    pairs: int,
    *,
    points: int = 11,
    steps: int = 50,
    scale: float = 1.0,
    seed: int = 0,
    retime: bool = False,
) -> Tensor:
    """[points, pairs, C, H, W]: pictures along slerp between noises; both ends of a pair are of one class, the classes in turn.

    The same seed gives the same noises to every network. `retime` walks at the pace of the pictures, after a first walk of 41 points.
    """
    generator = Generator().manual_seed(seed)
    a, b = (torch.randn(pairs, *known.shape, generator=generator) for _ in range(2))
    labels = torch.arange(pairs) % len(known.class_names)

    def shown(shares: Tensor) -> Tensor:
        way = walk(a, b, shares)
        made = sampled(known, way.flatten(0, 1), known.about(labels.repeat(len(way))), steps=steps, scale=scale)
        return made.view_as(way)

    if not retime:
        return shown(torch.linspace(0, 1, points))
    shares = torch.linspace(0, 1, TABLE)
    return shown(retimed(shares, step_lengths(shown(shares)), points))


def evenness_of(known: Pictured, pairs: int, **options: Any) -> Evenness:
    """ISTD and the rest of `interpolations`."""
    return evenness(step_lengths(interpolations(known, pairs, **options)))


def nearby(
    known: Pictured, rows: int, *, steps: int = 50, seed: int = 0, angles: Sequence[float] = ANGLES
) -> list[float]:
    """Mean |dx| / |dz| of pictures under minor variations of their noise, one number an angle."""
    generator = Generator().manual_seed(seed)
    labels = torch.arange(rows) % len(known.class_names)
    noise = torch.randn(rows, *known.shape, generator=generator)
    found = local_variation(lambda z: sampled(known, z, known.about(labels), steps=steps), noise, angles, generator)
    return [float(rate) for rate in found.mean(1)]


def spread_of_variation(
    known: Pictured, inputs: Tensor, labels: Tensor, *, seed: int = 0, times: int = 20
) -> tuple[list[float], float]:
    """(mean of v at `times` timesteps, its standard deviation over timesteps and rows), exact."""
    levels = torch.linspace(0, len(known.denoiser.schedule) - 1, times).round().long().tolist()
    found = variation_profile(
        known.denoiser, inputs, levels, Generator().manual_seed(seed), condition=known.about(labels)
    )
    return [float(value) for value in found.mean], found.spread


def round_trips(
    known: Pictured, inputs: Tensor, labels: Tensor, scales: Sequence[float], steps: int = 50
) -> list[Tensor]:
    """Pictures inverted without guidance and made again at each of the scales."""
    levels = ddim_levels(known.denoiser.schedule, steps)
    about, nothing = known.about(labels), known.nothing(len(inputs))
    with torch.no_grad():
        noise = ddim_invert(known.denoiser, inputs, levels, about)[-1]
        return [ddim_sample(known.denoiser, noise, levels, about, scale=scale, nothing=nothing) for scale in scales]


def report(known: Pictured, splits: Splits, pairs: int) -> dict[str, float]:
    """What `legato smooth` prints of a network, on validation data."""
    part = splits.validation
    found = evenness_of(known, pairs)
    return {
        "ISTD": found.istd,
        "CV": found.cv,
        "mean step": found.mean_step,
        "spread of v": spread_of_variation(known, part.inputs[:64], part.targets[:64])[1],
        "loss": noise_loss(known.denoiser, part.inputs, known.about(part.targets)),
    }
