"""Accuracy with and without attack: smooth adversarial comp-sum losses against TRADES and others (arXiv 2304.07288)."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from legato.lab import palette, plots
from legato.lab.page import Panel
from legato.lab.plots import Line
from legato.studies.config import CompareConfig
from legato.studies.result import Result
from legato.studies.spec import Part, Spec

OURS = {"0.5": ("0.2", "0.4", "0.8"), "1": ("0.1", "0.2", "0.4")}
"""tau -> the weights nu."""
ARMS = (
    "ce",
    "pgd-at:steps=5",
    *(f"trades:beta={beta},steps=5" for beta in (1, 3, 9)),
    "mart:beta=5,steps=5",
    *(f"smooth-adversarial:tau={tau},nu={nu},steps=5" for tau, weights in OURS.items() for nu in weights),
)
FAMILIES = {
    "TRADES": "trades:", "PGD-AT": "pgd-at", "MART": "mart:",
    "ours, tau 0.5": "smooth-adversarial:tau=0.5,", "ours, tau 1": "smooth-adversarial:nu=", "no attack in training": "ce",
}  # fmt: skip
GRID = CompareConfig(
    objectives=tuple(f"{arm}+ema:0.98" for arm in ARMS),
    label_noise=(0.0,),
    learning_rates=(0.03, 0.1, 0.3),
    select_by="robust-error",
    clip_norm=5.0,
)


def frontier(results: Mapping[str, Result]) -> list[Panel]:
    """Accuracy against accuracy under attack, a line for each family of objectives."""
    figures = []
    for part, result in results.items():
        lines = [line for name, start in FAMILIES.items() for line in _line(result, name, start)]
        colours = palette.colours([line.arm for line in lines], "no attack in training")
        figures.append(
            plots.lines(
                f"frontier-{part.replace(' ', '-')}", {part: lines}, colours, xlabel="accuracy under attack, %",
                logarithmic=False, alt=f"Accuracy against accuracy under attack, {part}", caption="Mean over seeds; up and right is better.",
            )
        )  # fmt: skip
    text = (
        "Each line is one method at several weights of its second term. Attacks are projected gradient ascent with 20 steps on "
        "cross-entropy, on the margin and towards the three likeliest wrong classes; a stronger attack could only find less robustness."
    )
    return [Panel("The frontier", text, tuple(figures))]


def _line(result: Result, name: str, start: str) -> list[Line]:
    arms = [arm for arm in result.plan.arms if arm.startswith(start)]
    if not arms:
        return []
    noise = result.plan.label_noise[0]
    points = sorted(
        (100 * (1 - result.column(noise, arm, "test_robust_error").mean()), 100 * (1 - result.column(noise, arm, "test_error").mean()))
        for arm in arms
    )  # fmt: skip
    robust, clean = np.array(points).T
    return [Line(name, name, [float(r) for r in robust], clean, clean, clean)]


SPEC = Spec(
    paper="2304.07288",
    title="Smooth adversarial comp-sum losses against TRADES, at equal robustness",
    parts={
        "fashion-mini convnet": Part(
            replace(GRID, data="fashion-mini", model="convnet", epochs=8, rows=2000, attack_radius=0.1)
        ),
        "digits mlp": Part(
            replace(GRID, data="digits", model="mlp", epochs=25, attack_radius=0.15, learning_rates=(0.03, 0.1, 0.3, 1.0))
        ),
    },
    cut="2,000 training pictures, 8 epochs and 5 attack steps in training, one small convolutional network and one MLP, tau 0.5 and 1; "
    "the paper trains wide ResNets on CIFAR with generated data",
    panels=frontier,
    smoke=("digits mlp",),
)  # fmt: skip
