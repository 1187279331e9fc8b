"""SAF and MESA against plain training, its usual remedies, and sharpness-aware minimisation (arXiv 2205.14083)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from legato.lab.page import Cell, Panel, Table
from legato.lab.statistics import t_interval
from legato.studies import objectives
from legato.studies.config import CompareConfig
from legato.studies.result import Result
from legato.studies.spec import Part, Spec
from legato.studies.summary import condition

FAMILIES = (
    ("ce", "ce+weight-decay:0.005", "ce+weight-decay:0.05"),
    ("label-smoothing:0.1", "label-smoothing:0.2", "label-smoothing:0.4"),
    ("ce+ema:0.9", "ce+ema:0.98", "ce+ema:0.995"),
    ("ce+early-stopping", "ce+early-stopping+weight-decay:0.005", "ce+early-stopping+weight-decay:0.05"),
    ("ce+sam:0.1", "ce+sam:0.2", "ce+sam:0.4"),
    ("ce+asam:0.5", "ce+asam:1", "ce+asam:2"),
    ("ce+looksam:0.1", "ce+looksam:0.2", "ce+looksam:0.4"),
    ("ce+msam:0.3", "ce+msam:1", "ce+msam:3"),
    ("ce+esam:0.1", "ce+esam:0.2", "ce+esam:0.4"),
    ("ce+temporal-ensembling:0.3", "ce+temporal-ensembling:1", "ce+temporal-ensembling:3"),
    ("ce+mesa:0.8", "ce+mesa:1.6", "ce+mesa:3.2"),
    ("ce+saf:0.3", "ce+saf:1", "ce+saf:3"),
)
"""A method each, with three strengths; the plain one has three weight decays."""
FEW = tuple(FAMILIES[i] for i in (0, 1, 4, 10, 11))
"""Where less is asked: plain, label smoothing, SAM, MESA, SAF."""
RATES = (0.00125, 0.005, 0.02, 0.08, 0.32)


def part(model: str, label_noise: float, families: tuple[tuple[str, ...], ...], rates: tuple[float, ...]) -> Part:
    """2,000 pictures to learn from; sharpness is measured on 512 of them, with the labels that training saw."""
    config = CompareConfig(
        data="fashion-mini", model=model, rows=2000, epochs=30, batch_size=64, label_noise=(label_noise,), learning_rates=rates,
        objectives=tuple(arm for family in families for arm in family),
    )  # fmt: skip
    return Part(config, sharpness_rows=512, families=families)


SHARPNESS = {
    "loss": "sharpness_loss", "one step, radius 0.05": "sharpness_one_step", "ball, radius 0.2": "sharpness_ball",
    "largest eigenvalue": "sharpness_lambda_max", "trace": "sharpness_trace",
}  # fmt: skip


def sharpness(results: Mapping[str, Result]) -> list[Panel]:
    """How sharp the trained models are, by four measures."""
    tables = []
    for name, result in results.items():
        noise = result.plan.label_noise[0]
        rows = []
        for arm in result.plan.arms:
            found = [t_interval(result.column(noise, arm, key)) for key in SHARPNESS.values()]
            rows.append(
                (
                    Cell(objectives.parse(arm).label),
                    *(Cell(f"{e.mean:.3g} [{e.low:.3g}, {e.high:.3g}]", e.mean) for e in found),
                )
            )
        tables.append(Table(("objective", *SHARPNESS), tuple(rows), f"{name}: {condition(noise)}"))
    text = (
        "On 512 training rows with the labels that training saw, the model in evaluation mode: the rise of the mean loss after one "
        "normalised gradient step, the largest rise that projected gradient ascent finds in a ball of weights, and the largest "
        "eigenvalue and the trace of the Hessian. None of them is free of the scale of the weights, and all vanish where the loss does: "
        "compare them only at losses that are alike."
    )
    return [Panel("How sharp are the minima?", text, tables=tuple(tables)), _trajectories(results)]


def _trajectories(results: Mapping[str, Result]) -> Panel:
    """Over the epochs of the plain runs: does the divergence from earlier outputs follow the fall of the loss, and the sharpness?"""
    rows = []
    for name, result in results.items():
        for arm in result.plan.arms:
            curves = [result.metrics(r)["curves"] for r in result.readings(result.plan.label_noise[0], arm)]
            cells = [_correlation(curves, other) for other in ("loss_fall", "ball_sharpness")]
            rows.append((Cell(name), Cell(objectives.parse(arm).label), *cells))
    columns = ("part", "objective", "with the fall of the loss", "with sharpness")
    text = (
        "Rank correlation over the epochs of the trajectory loss (the divergence of outputs from those three epochs ago, on fixed rows) "
        "with the fall of the loss over the same three epochs, and with the sharpness in a ball at the end of the epoch."
    )
    return Panel("What does the trajectory loss follow?", text, tables=(Table(columns, tuple(rows)),))


def _correlation(curves: Sequence[Mapping[str, Any]], other: str) -> Cell:
    """Rank correlation of the trajectory loss with another curve, over seeds; empty where a run is too short for one."""
    from scipy.stats import spearmanr

    pairs = [np.array([c["trajectory_loss"], c[other]], dtype=np.float64) for c in curves]
    if any(np.isfinite(pair).all(axis=0).sum() < 3 for pair in pairs):
        return Cell("", None)
    found = t_interval(np.array([float(spearmanr(*pair, nan_policy="omit").statistic) for pair in pairs]))
    return Cell(found.text(1, 2), found.mean)


SPEC = Spec(
    paper="2205.14083",
    title="SAF and MESA against sharpness-aware minimisation and plain remedies",
    parts={
        "mlp, 20% flips": part("mlp", 0.2, FAMILIES, RATES),
        "mlp, clean": part("mlp", 0.0, FEW, RATES),
        "convnet, 20% flips": part("convnet", 0.2, FEW, RATES[1:]),
    },
    cut="2,000 training pictures of 28 x 28 pixels, 30 epochs, one MLP and one small convolutional network, five of the twelve methods "
    "on clean labels and with the convolutional network, and three learning rates there; the paper trains ResNets and vision transformers on CIFAR and ImageNet",
    panels=sharpness,
    smoke=("mlp, 20% flips",),
)  # fmt: skip
