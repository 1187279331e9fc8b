"""What `legato.stability.watch` read in a comparison of language models, on its page: attention logits and gradients, layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato.lab import plots
from legato.lab.page import Panel
from legato.lab.plots import Line
from legato.studies import objectives
from legato.studies.result import Result

LAYERS = 4
"""At most so many are drawn, evenly spread from the first to the last."""
TINY = 1e-12
"""The smallest gradient whose logarithm is shown."""
Values = NDArray[np.float64]
Reading = Mapping[str, Any]


def panel(result: Result, colours: Mapping[str, str]) -> Panel | None:
    """None where no run was watched to its end."""
    runs = {arm: found for arm in result.plan.arms if (found := _runs(result, arm))}
    if not runs:
        return None
    blocks = [name.removesuffix(".attention") for name in next(iter(runs.values()))[0][0]["attention"]]
    places = np.unique(np.linspace(0, len(blocks) - 1, min(LAYERS, len(blocks))).round().astype(int))

    def multiples(read: Callable[[Reading, str], Sequence[float]]) -> dict[str, list[Line]]:
        return {blocks[i]: [_line(arm, found, blocks[i], read) for arm, found in runs.items()] for i in places}

    attention = plots.lines(
        "attention", multiples(_attention), colours, xlabel="step", logarithmic=False, across=2,
        alt="The largest attention logit of each layer by step, for each objective", caption="Largest attention logit",
    )  # fmt: skip
    gradients = plots.lines(
        "gradients", multiples(_gradient), colours, xlabel="step", logarithmic=False, across=2,
        alt="Root mean square of a gradient of each layer by step, for each objective", caption="Gradient, log10 of its RMS",
    )  # fmt: skip
    return Panel("Is it stable inside?", _text(runs), (attention, gradients))


def _text(runs: Mapping[str, Sequence[Sequence[Reading]]]) -> str:
    counts = {len(found) for found in runs.values()}
    seeds = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    return (
        f"Means over {seeds} seeds at the chosen rate; runs that were lost are left out. The largest logit of a layer's heads is at most the line, "
        "and at least the lower edge of the band. The gradient is that of the first weight of the layer's MLP, as the optimizer finds it."
    )


def _runs(result: Result, arm: str) -> list[Sequence[Reading]]:
    """The readings of each run of an arm that was not lost and was watched."""
    rows = [result.metrics(config) for config in result.readings(result.plan.label_noise[0], arm)]
    return [row["readings"] for row in rows if row.get("readings") and not row["diverged"]]


def _line(
    arm: str, runs: Sequence[Sequence[Reading]], block: str, read: Callable[[Reading, str], Sequence[float]]
) -> Line:
    """Means over runs, as far as the shortest one goes."""
    length = min(len(run) for run in runs)
    values: Values = np.array([[read(reading, block) for reading in run[:length]] for run in runs], dtype=np.float64)
    mean, low, high = values.mean(axis=0).T
    return Line(arm, objectives.parse(arm).label, [reading["step"] for reading in runs[0][:length]], mean, low, high)


def _attention(reading: Reading, block: str) -> Sequence[float]:
    layer = reading["attention"][f"{block}.attention"]
    return max(layer["upper"]), max(layer["lower"]), max(layer["upper"])


def _gradient(reading: Reading, block: str) -> Sequence[float]:
    value = float(np.log10(max(reading["gradient_rms"][f"{block}.up.weight"], TINY)))
    return value, value, value
