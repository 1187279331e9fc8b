"""Smooth Diffusion, put to the test: does the penalty make walks through noise more even, and at what price?

A trial is one seed: a base denoiser, then fine-tunings of it with the penalty and its twin without, all on the same noise.
"""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from legato import data
from legato.data import Splits
from legato.diffusion import likeness
from legato.lab.trial import Outcome, Record
from legato.studies import denoise, denoise_tuned
from legato.studies.denoise import Pictured, Recipe
from legato.studies.denoise_judge import Judge, judge
from legato.studies.denoise_tuned import Tuning
from legato.studies.experiment import Experiment
from legato.studies.smooth_diffusion_page import BASE, RETIMED, arm_name, panels
from legato.studies.spec import Form

NAME, TWIN = "smooth-diffusion", 0.0
LAMBDAS = (TWIN, 1.0, 10.0)
RATES = (3e-4, 1e-3, 3e-3)
SCALES = (1.0, 3.0, 7.5)
SLACK = 1.1
"""A rate may raise the loss of the noise by a tenth above the twin's best."""
SHOWN = 3
"""Walks that the page shows of an arm."""


@dataclass(frozen=True)
class SmoothTrial:
    """One seed."""

    seed: int
    arms: tuple[tuple[float, float], ...]
    """(lambda, learning rate) of each fine-tuning."""
    reads_test: bool = False
    """Also the inversion of real pictures and the Frechet distance, on the test split; else only what rates are chosen by."""
    data: str = "digits"
    base_steps: int = 2500
    steps: int = 600
    pairs: int = 128
    samples: int = 2000
    sampler_steps: int = 50


def trial(config: SmoothTrial, folder: Path) -> Outcome:
    """A base and its arms, and of those that read the test split a few walks as PNG in base64."""
    splits = denoise.pictures(data.load(config.data, seed=config.seed))
    recipe = Recipe(steps=config.base_steps, seed=config.seed)
    base, fitted = denoise.train(splits, recipe, folder / "base")
    referee = judge(splits) if config.reads_test else None
    metrics: dict[str, Any] = {"base": _read(base, splits, config, referee), "arms": []}
    metrics["base"]["retimed"] = _walk(base, config, retime=True)
    strips = {BASE: _strip(base, config), RETIMED: _strip(base, config, retime=True)} if referee else {}
    for lam, rate in config.arms:
        tuning = Tuning(lam=lam, learning_rate=rate, steps=config.steps, seed=config.seed)
        tuned, run = denoise_tuned.tune(base, splits, tuning)
        told = {"lam": lam, "rate": rate, "diverged": run.diverged}
        metrics["arms"].append(told if run.diverged else told | _read(tuned, splits, config, referee))
        if lam == TWIN and config.reads_test and not run.diverged:
            metrics["arms"][-1]["retimed"] = _walk(tuned, config, retime=True)
        if referee is not None:
            strips[arm_name(lam)] = _strip(tuned, config)
    if referee is not None:
        metrics |= {"floor": _floor(splits, referee, config.samples), "strips": strips}
    metrics["base"]["diverged"] = fitted.diverged
    return Outcome(metrics)


def trials(form: Form, values: Mapping[str, Any], records: Sequence[Record]) -> list[SmoothTrial]:
    """The seeds of a form."""
    arms: tuple[tuple[float, float], ...]
    if form == "smoke":
        arms = ((TWIN, 1e-3), (1.0, 1e-3))
        return [SmoothTrial(0, arms, True, base_steps=36, steps=18, pairs=4, samples=60, sampler_steps=6)]
    if form == "full":
        grid = tuple((lam, rate) for lam in LAMBDAS for rate in RATES)
        return [SmoothTrial(seed, grid) for seed in range(5)]
    arms = tuple((lam, values["rates"][f"{lam:g}"]) for lam in LAMBDAS)
    return [SmoothTrial(seed, arms, reads_test=True) for seed in range(100, 110)]


def tune(records: Sequence[Record]) -> dict[str, Any]:
    """The rate of each lambda: for the twin the lowest loss of the noise on validation data, over seeds; for the others the lowest CV among
    the rates whose loss is within a tenth of the twin's, or the lowest loss where there is none."""
    rows = [arm for record in records for arm in record.metrics["arms"] if arm["diverged"] is None]

    def average(lam: float, rate: float, metric: str) -> float:
        return float(np.mean([row[metric] for row in rows if (row["lam"], row["rate"]) == (lam, rate)] or np.inf))

    best = {lam: min(RATES, key=lambda rate: average(lam, rate, "noise_loss")) for lam in LAMBDAS}
    limit = SLACK * average(TWIN, best[TWIN], "noise_loss")
    for lam in LAMBDAS[1:]:
        near = [rate for rate in RATES if average(lam, rate, "noise_loss") <= limit]
        best[lam] = min(near, key=lambda rate: average(lam, rate, "cv")) if near else best[lam]
    return {"rates": {f"{lam:g}": best[lam] for lam in LAMBDAS}}


def measures(records: Sequence[Record]) -> dict[str, NDArray[np.float64]]:
    """Claim id -> [S] how much better than the twin, as a share of the twin's; an arm that diverged lost all of it, -1."""

    def column(lam: float, *path: str) -> NDArray[np.float64]:
        return np.array([_at(next(arm for arm in r.metrics["arms"] if arm["lam"] == lam), path) for r in records])

    def gain(less: NDArray[np.float64], than: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
        share = (than - less) / whole
        return np.where(np.isfinite(share), share, -1.0)

    def below_twin(lam: float, *path: str) -> NDArray[np.float64]:
        twin = column(TWIN, *path)
        return gain(column(lam, *path), twin, twin)

    return {
        "smooth-istd": below_twin(1.0, "istd"),
        "smooth-istd-ten": below_twin(10.0, "istd"),
        "smooth-cv": below_twin(1.0, "cv"),
        "smooth-constant": below_twin(1.0, "spread"),
        "smooth-inversion": below_twin(1.0, "round_trip", "7.5"),
        "smooth-inversion-mild": below_twin(1.0, "round_trip", "3"),
        "smooth-quality": below_twin(1.0, "frechet"),
        "smooth-retimed": gain(column(1.0, "cv"), column(TWIN, "retimed", "cv"), column(TWIN, "cv")),
    }


def _at(row: Any, path: Sequence[str]) -> float:
    for name in path:
        row = row.get(name) if isinstance(row, Mapping) else None
    return float("nan") if row is None else float(row)


def _read(known: Pictured, splits: Splits, config: SmoothTrial, referee: Judge | None) -> dict[str, Any]:
    """What is measured on one network, on validation data, or with a referee on the test split."""
    part = splits.validation if referee is None else splits.test
    curve, spread = denoise_tuned.spread_of_variation(known, part.inputs[:64], part.targets[:64])
    found = _walk(known, config) | {"spread": spread, "variation": curve}
    found["noise_loss"] = denoise.noise_loss(known.denoiser, part.inputs, known.about(part.targets))
    if referee is None:
        return found
    real, labels = part.inputs[:200], part.targets[:200]
    back = denoise_tuned.round_trips(known, real, labels, SCALES, config.sampler_steps)
    found["round_trip"] = {
        f"{scale:g}": float(likeness(x, real).mse.mean()) for scale, x in zip(SCALES, back, strict=True)
    }
    classes = torch.arange(config.samples) % splits.num_classes
    noise = torch.randn(config.samples, *known.shape, generator=torch.Generator().manual_seed(1))
    made = denoise.sampled(known, noise, known.about(classes), steps=config.sampler_steps)
    return found | {"frechet": referee.distance(made, _all(splits)), "accuracy": referee.accuracy(made, classes)}


def _walk(known: Pictured, config: SmoothTrial, *, retime: bool = False) -> dict[str, float]:
    found = denoise_tuned.evenness_of(known, config.pairs, steps=config.sampler_steps, retime=retime)
    return {"istd": found.istd, "cv": found.cv, "mean_step": found.mean_step, "largest": found.largest}


def _strip(known: Pictured, config: SmoothTrial, *, retime: bool = False) -> str:
    """A few walks below each other, to look at."""
    way = denoise_tuned.interpolations(known, SHOWN, steps=config.sampler_steps, retime=retime)
    pixels = denoise.tiled(list(way.transpose(0, 1)))[0]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return b64encode(out.getvalue()).decode()


def _all(splits: Splits) -> torch.Tensor:
    return torch.cat([part.inputs for part in (splits.train, splits.validation, splits.test)])


def _floor(splits: Splits, referee: Judge, rows: int) -> float:
    """The distance between two halves of the real pictures: what no generator can be asked to go below."""
    everything = _all(splits)[: 2 * rows]
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
    half = len(everything) // 2
    return referee.distance(everything[order[:half]], everything[order[half:]])


EXPERIMENT = Experiment(
    paper="2312.04410",
    title="even walks through the noise of a denoiser of digits",
    trial=trial,
    trials=trials,
    measures=measures,
    panels=panels,
    tune=tune,
    cut="An MLP denoiser of 8 x 8 digits in the place of Stable Diffusion: no latents, no text, no U-Net. Adapters of rank 8 only; "
    "guidance in the inversion only; distances in the features of a small classifier of digits.",
)
