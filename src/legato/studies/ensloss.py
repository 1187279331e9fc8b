"""EnsLoss against fixed losses, on tables and on pairs of classes of pictures (arXiv 2409.00908)."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np

from legato.lab import statistics
from legato.lab.page import Cell, Panel, Table
from legato.studies import objectives
from legato.studies.config import CompareConfig
from legato.studies.result import Result
from legato.studies.spec import Part, Spec
from legato.studies.summary import condition

ARMS = ("ce", "ensloss", "hinge", "exponential", "focal:2", "comp-sum:1.7", "ensloss:random=0", "log-tail")
"""With two classes, cross-entropy is binary cross-entropy of the difference of the two scores."""
NOISE = (0.0, 0.2)
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TABLES = (
    "spam", "musk", "ticdata", "promotergene", "income", "sonar", "ionosphere", "pima", "breast-cancer", "breast_cancer",
    "house-votes", "letter", "satellite", "dna",
)  # fmt: skip
PICTURES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
HARD = (("T-shirt/top", "shirt"), ("pullover", "coat"), ("coat", "shirt"), ("pullover", "shirt"))
MODELS = {f"mlp-{depth}": f"legato.nets.deep:mlp_{depth}" for depth in (1, 3, 5)}
RAN = ("breast_cancer", "pima", "spam")


def table(name: str, model: str = "mlp-3", fixed_rate: float | None = None) -> Part:
    """A comparison on a table, beside gradient boosting."""
    config = CompareConfig(
        data=name, objectives=ARMS, label_noise=NOISE, learning_rates=RATES, model=MODELS.get(model, model), epochs=50,
        weight_decay=5e-6, rows=1000, references=("hist-gradient-boosting",),
    )  # fmt: skip
    return Part(config, fixed_rate, keeps_test_curve=True)


def pair(classes: tuple[str, str], model: str = "mlp-3", fixed_rate: float | None = None) -> Part:
    """A comparison on two classes of Fashion-MNIST: 1,000 rows to learn from, the official test rows of both."""
    config = CompareConfig(
        data="fashion-mnist", classes=classes, rows=1000, objectives=ARMS, label_noise=NOISE, learning_rates=RATES,
        model=MODELS.get(model, model), epochs=30, weight_decay=5e-4,
    )  # fmt: skip
    return Part(config, fixed_rate, keeps_test_curve=True)


def clean(part: Part) -> Part:
    """The comparison on labels as they are only."""
    return replace(part, config=replace(part.config, label_noise=(0.0,)))


WHOLE_GRID: Mapping[str, Part] = {
    **{f"table {name}, {model}": table(name, model) for name in TABLES for model in MODELS},
    **{
        f"pair {a}/{b}, {model}": pair((a, b), model)
        for a, b in combinations(PICTURES, 2)
        for model in (*MODELS, "convnet", "resnet", "legato.nets.deep:depthwise")
    },
}
"""What the paper's tables correspond to here; days of computing on two cores."""


def wins(results: Mapping[str, Result]) -> list[Panel]:
    """How often EnsLoss is better or worse than each fixed loss by a paired one-sided test, as in the paper, and by how much on average."""
    tables = []
    for kind, chosen in _kinds(results).items():
        plan = next(iter(chosen.values())).plan
        for noise in plan.label_noise:
            rows = [_row(chosen, noise, arm) for arm in plan.arms if arm != "ensloss"]
            columns = ("EnsLoss against", "better", "no difference", "worse", "mean points")
            tables.append(Table(columns, tuple(rows), f"{kind}, {condition(noise)}"))
    text = (
        "Comparisons in which EnsLoss is better or worse by a paired one-sided t-test at 5%, uncorrected, as the paper counts them. "
        "Where one learning rate serves all losses, as in the paper, the loss with the larger gradient may win for that alone; "
        "where each loss has its own, it cannot."
    )
    return [Panel("Win, tie, lose", text, tables=tuple(tables)), _overfitting(results)]


def _kinds(results: Mapping[str, Result]) -> dict[str, dict[str, Result]]:
    one = {part: result for part, result in results.items() if part.startswith("one rate")}
    own = {part: result for part, result in results.items() if part not in one}
    kinds = {"Learning rate tuned for each loss": own, "One learning rate for all": one}
    return {kind: chosen for kind, chosen in kinds.items() if chosen}


def _row(results: Mapping[str, Result], noise: float, arm: str) -> tuple[Cell, ...]:
    gains = [r.column(noise, arm, "test_error") - r.column(noise, "ensloss", "test_error") for r in results.values()]
    p_values = [(statistics.paired_p_value(gain) / 2, gain.mean()) for gain in gains]
    better = sum(p < 0.05 and mean > 0 for p, mean in p_values)
    worse = sum(p < 0.05 and mean < 0 for p, mean in p_values)
    mean = float(np.mean([mean for _, mean in p_values]))
    counts = (better, len(gains) - better - worse, worse)
    return (
        Cell(objectives.parse(arm).label),
        *(Cell(str(count), count) for count in counts),
        Cell(f"{100 * mean:+.1f}", mean),
    )


def _overfitting(results: Mapping[str, Result]) -> Panel:
    """Best minus final test accuracy, in points: what training on has cost."""
    tables = []
    for noise in NOISE:
        rows = []
        arms = next(iter(results.values())).plan.arms
        for arm in arms:
            lost = [_lost(result, noise, arm) for part, result in results.items() if not part.startswith("one rate")]
            rows.append((Cell(objectives.parse(arm).label), *(Cell(f"{100 * value:.1f}", value) for value in lost)))
        names = [part for part in results if not part.startswith("one rate")]
        tables.append(Table(("objective", *names), tuple(rows), condition(noise)))
    text = "Best minus final test accuracy in points, mean over seeds. The best epoch is seen on the test set: it is no result, only a measure."
    return Panel("Overfitting", text, tables=tuple(tables))


def _lost(result: Result, noise: float, arm: str) -> float:
    curves = [result.metrics(config)["curves"].get("test_error", []) for config in result.readings(noise, arm)]
    whole = [curve for curve in curves if curve and None not in curve]  # those of runs that did not diverge
    return float(np.mean([curve[-1] - min(curve) for curve in whole])) if whole else 0.0


SPEC = Spec(
    paper="2409.00908",
    title="EnsLoss, a random convex loss for every batch, against fixed losses",
    parts={
        **{f"tuned, table {name}": table(name) for name in RAN},
        **{f"tuned, pair {a}/{b}": pair((a, b)) for a, b in HARD},
        **{f"one rate, table {name}": clean(table(name, fixed_rate=1e-3)) for name in RAN},
        **{f"one rate, pair {a}/{b}": clean(pair((a, b), fixed_rate=1e-3)) for a, b in HARD},
    },
    cut="3 of 14 tables and 4 of 45 pairs, an MLP with 3 hidden layers of 256 units, at most 1,000 rows to learn from, 50 and 30 epochs where the paper has "
    "300 and 200; `WHOLE_GRID` in studies/ensloss.py spells out the rest",
    panels=wins,
    smoke=("tuned, table breast_cancer",),
)
