"""The selector put to the test: four sources of which one is clean, and losses for labels that go wrong half-way.

Every arm has eight settings in the first part and six in the second, tuned on validation data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from legato.lab import palette, plots
from legato.lab.claims import Claim
from legato.lab.page import Cell, Panel, Table
from legato.lab.plots import Line
from legato.lab.statistics import t_interval
from legato.lab.trial import Outcome, Record
from legato.studies import objectives, selector_objectives, selector_sources, verdicts
from legato.studies.experiment import Experiment
from legato.studies.selector_objectives import ObjectiveConfig
from legato.studies.selector_sources import WINDOWS, SourcesConfig
from legato.studies.spec import Form

Config: TypeAlias = SourcesConfig | ObjectiveConfig
Arms: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]
"""Arm -> the metrics of each seed."""

PAPER = "2301.12942"
SEEDS = {"full": tuple(range(5)), "confirm": tuple(range(100, 110)), "smoke": (0, 1)}
BARRIER = tuple(product((1.0, 5.0), (100.0, 300.0)))
"""Boldness and memory, in choices."""
LEARNERS: Mapping[str, Sequence[tuple[float, ...]]] = {
    "uniform": ((),),
    "oracle": ((),),
    "exp3": ((0.03,), (0.1,), (0.2,), (0.4,)),
    "static log-barrier": ((0.3, 0.0), (1.0, 0.0), (3.0, 0.0), (10.0, 0.0)),
    "discounted log-barrier": BARRIER,
    "discounted entropy": BARRIER,
}
"""What each learner of sources may be made with."""
RATES = {1: (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), 4: (0.02, 0.1)}
"""The learning rates that go with one or with four settings: eight trials a seed either way."""
MEMBERS = "select:ce/label-smoothing:0.1/comp-sum:1.7"
FAMILIES: Mapping[str, Sequence[str]] = {
    "uniform": (f"{MEMBERS}/boldness=0",),
    "ce": ("ce",),
    "label-smoothing": ("label-smoothing:0.1",),
    "comp-sum": ("comp-sum:1.7",),
    "select": (f"{MEMBERS}/memory=30", f"{MEMBERS}/memory=30/boldness=5"),
}
"""The objectives of each arm."""
RATES_OF_LOSSES = {1: (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08), 2: (0.01, 0.02, 0.04)}
FIXED = ("ce", "label-smoothing", "comp-sum")
BEST_FIXED = "best fixed"
"""The fixed loss with the largest mean validation accuracy."""


def trial(config: Config, folder: Path) -> Outcome:
    """One training of either part."""
    if isinstance(config, SourcesConfig):
        return selector_sources.trial(config)
    return selector_objectives.trial(config, folder)


def settings() -> dict[str, dict[str, list[Config]]]:
    """Part -> arm -> all that is tried of it, for seed 0."""
    sources: dict[str, list[Config]] = {
        name: [SourcesConfig(name, rate, setting, 0) for setting in choices for rate in RATES[len(choices)]]
        for name, choices in LEARNERS.items()
    }
    losses: dict[str, list[Config]] = {
        name: [
            ObjectiveConfig(str(objectives.parse(t)), rate, 0) for t in texts for rate in RATES_OF_LOSSES[len(texts)]
        ]
        for name, texts in FAMILIES.items()
    }
    return {"sources": sources, "objectives": losses}


def trials(form: Form, tuned: Mapping[str, Any], records: Sequence[Record]) -> list[Config]:
    """full: the whole grid. confirm: what was chosen of each arm. smoke: the first of each, made short."""
    if form == "confirm":
        chosen = [revive(fields) for arms in tuned.values() for fields in arms.values()]
        return [replace(config, seed=seed, reads_test=True) for seed in SEEDS[form] for config in chosen]
    grid = [
        config
        for arms in settings().values()
        for tried in arms.values()
        for config in tried[: 1 if form == "smoke" else None]
    ]
    if form == "smoke":
        return [replace(_short(config), seed=seed, reads_test=True) for seed in SEEDS[form] for config in grid]
    return [replace(config, seed=seed) for seed in SEEDS[form] for config in grid]


def _short(config: Config) -> Config:
    return (
        replace(config, steps=2 * WINDOWS) if isinstance(config, SourcesConfig) else replace(config, rows=128, epochs=2)
    )


def tune(records: Sequence[Record]) -> dict[str, dict[str, dict[str, Any]]]:
    """Part -> arm -> the fields of the setting with the largest mean validation accuracy."""
    accuracy: dict[Config, list[float]] = {}
    for record in records:
        accuracy.setdefault(replace(revive(record.config), seed=0), []).append(record.metrics["validation_accuracy"])
    return {
        part: {arm: _told(max(tried, key=lambda config: float(np.mean(accuracy[config])))) for arm, tried in arms.items()}
        for part, arms in settings().items()
    }  # fmt: skip


def _told(config: Config) -> dict[str, Any]:
    """What tells a setting from its defaults."""
    if isinstance(config, SourcesConfig):
        return {
            "learner": config.learner,
            "learning_rate": config.learning_rate,
            "setting": list(config.setting),
            "seed": 0,
        }
    return {"objective": config.objective, "learning_rate": config.learning_rate, "seed": 0}


def revive(fields: Mapping[str, Any]) -> Config:
    """The config that a stored record was made from."""
    if "objective" in fields:
        return ObjectiveConfig(**fields)
    return SourcesConfig(**{**fields, "setting": tuple(fields["setting"])})


def readings(records: Sequence[Record]) -> dict[str, Arms]:
    """Part -> arm -> the metrics of each seed, of the trials that read the test set."""
    family = {str(objectives.parse(text)): name for name, texts in FAMILIES.items() for text in texts}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {"sources": {}, "objectives": {}}
    for record in sorted(records, key=lambda record: int(record.config["seed"])):
        config = revive(record.config)
        if config.reads_test and isinstance(config, SourcesConfig):
            found["sources"].setdefault(config.learner, []).append(record.metrics)
        elif config.reads_test and isinstance(config, ObjectiveConfig):
            found["objectives"].setdefault(family[config.objective], []).append(record.metrics)
    order = {"sources": LEARNERS, "objectives": FAMILIES}
    return {part: {arm: arms[arm] for arm in order[part] if arm in arms} for part, arms in found.items()}


MEASURES: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "accuracy": lambda metrics: metrics["test_accuracy"],
    "late share": lambda metrics: float(np.mean(metrics["curve"][WINDOWS // 2 :])),
}
"""What a claim compares, of the metrics of a trial; the late share is that of the clean source in the steps after the change."""


def measures(records: Sequence[Record]) -> dict[str, NDArray[np.float64]]:
    """For each claim, [S] the measure of its arm less that of its baseline."""
    found = readings(records)

    def of(claim: Claim, arm: str) -> NDArray[np.float64]:
        return _column(found[claim.part], arm, MEASURES[claim.metric])

    return {
        claim.id: of(claim, claim.arm) - of(claim, claim.baseline)
        for claim in verdicts.claims_of(PAPER)
        if claim.study == "selector"
    }


def _column(arms: Arms, arm: str, read: Callable[[Mapping[str, Any]], float]) -> NDArray[np.float64]:
    if arm == BEST_FIXED:
        arm = max(FIXED, key=lambda fixed: float(np.mean([row["validation_accuracy"] for row in arms[fixed]])))
    return np.array([read(metrics) for metrics in arms[arm]], dtype=np.float64)


def panels(records: Sequence[Record]) -> list[Panel]:
    """What each part found; nothing for the form `full`, which reads no test set."""
    found = readings(records)
    return [_sources(found["sources"]), *_objectives(found["objectives"])] if found["sources"] else []


def _sources(arms: Arms) -> Panel:
    colours = palette.colours(list(arms), "uniform")
    lines = [
        Line(arm, arm, list(range(1, WINDOWS + 1)), *_band(100 * np.array([row["curve"] for row in rows])))
        for arm, rows in arms.items()
        if arm not in ("oracle", "uniform")
    ]
    figure = plots.lines("clean-source", {"steps on the clean source, in percent": lines}, colours, xlabel="thirtieth of the training",
                         logarithmic=False, alt="How often each learner chose the clean source, over the training")  # fmt: skip
    rows = tuple(
        (Cell(arm), _cell(arms, arm, "test_accuracy"), _cell(arms, arm, "clean_share"), Cell(str(len(LEARNERS[arm]) * len(RATES[len(LEARNERS[arm])]))))
        for arm in arms
    )  # fmt: skip
    columns = ("learner", "test accuracy, %", "on the clean source, %", "settings tried")
    text = (
        "A softmax regression on digits takes 3,000 steps, each on 32 rows of one of four sources. One source has true labels, the labels of "
        "the other three are drawn blindly; another one becomes the clean one after half of the steps. The learner is told by how much each step "
        "lowered the loss on 200 held-out training rows. The oracle knows the clean source."
    )
    return Panel("Four sources, one of them clean", text, (figure,), (Table(columns, rows),))


def _objectives(arms: Arms) -> list[Panel]:
    colours = palette.colours(list(arms), "uniform")
    epochs = len(next(iter(arms.values()))[0]["curves"]["validation_error"])
    x = list(range(1, epochs + 1))

    def curve(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        whole = [row for row in rows if not row["diverged"]] or rows
        return np.array([100 * (1 - np.array(row["curves"]["validation_error"], dtype=np.float64)) for row in whole])

    lines = [Line(arm, arm, x, *_band(curve(rows))) for arm, rows in arms.items()]
    figure = plots.lines("late-noise", {"validation accuracy, in percent": lines}, colours, xlabel="epoch", logarithmic=False,
                         alt="Validation accuracy after each epoch")  # fmt: skip
    table = tuple((Cell(arm), _cell(arms, arm, "test_accuracy"), *_choices(rows)) for arm, rows in arms.items())
    columns = ("arm", "test accuracy, %", *(f"steps with {name}, %" for name in _members()))
    text = (
        "An MLP on 2,000 pictures of fashion-mini, 30 epochs; from the sixteenth epoch on 40% of the training labels are wrong. Validation "
        "labels are true, and so are those of 200 held-out rows that the selector looks at after every fifth step; no arm trains on these. "
        "uniform draws the loss blindly. Six settings were tried of each arm."
    )
    return [Panel("Labels that go wrong half-way", text, (figure,), (Table(columns, table),))]


def _members() -> list[str]:
    return [str(member) for member in objectives.parse(MEMBERS).loss.members]


def _choices(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The share of all steps that each member was trained with; empty for a fixed loss."""
    if _members()[0] not in rows[0]["curves"]:
        return [Cell("", None)] * len(_members())
    steps = np.array([[row["curves"][member][-1] for member in _members()] for row in rows], dtype=np.float64)
    shares = 100 * (steps / steps.sum(1, keepdims=True)).mean(0)
    return [Cell(f"{share:.0f}", float(share)) for share in shares]


def _cell(arms: Arms, arm: str, key: str) -> Cell:
    found = t_interval(_column(arms, arm, lambda metrics: float(metrics[key])))
    return Cell(found.text(100, 1), found.mean)


def _band(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """[S, X] -> mean and 95% interval at each x."""
    found = [t_interval(column) for column in values.T]
    mean, low, high = (np.array([getattr(e, name) for e in found]) for name in ("mean", "low", "high"))
    return mean, low, high


EXPERIMENT = Experiment(
    paper=PAPER,
    title="a selector of data sources and of losses, while a model trains",
    trial=trial,
    trials=trials,
    measures=measures,
    panels=panels,
    tune=tune,
    cut="a softmax regression on digits, and an MLP on 2,000 pictures of 28 x 28 pixels; the paper has no experiment, and its "
    "theorems are about decision processes: what stands here is our use of its log-barrier",
)
