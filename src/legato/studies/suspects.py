"""The suspects of `legato labels` taken out, or given the label that they look like, before a training on what is left.

Every arm has eight settings, tuned on validation labels that are as wrong as the training labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from legato import data, metrics, nets, training
from legato.lab import palette, plots
from legato.lab.page import Cell, Panel, Table
from legato.lab.plots import Interval
from legato.lab.statistics import t_interval
from legato.lab.trial import Outcome, Record
from legato.studies import labels, objectives, readings, verdicts
from legato.studies.experiment import Experiment
from legato.studies.labels import Question, Rows
from legato.studies.methods import Context, Training
from legato.studies.prepared import Source
from legato.studies.spec import Form

NAME, PAPER = "suspects", "2205.14083"
DATA = "fashion-mini"
SEEDS = {"full": tuple(range(5)), "confirm": tuple(range(100, 110)), "smoke": (0,)}
KINDS = ("symmetric", "pair")
BASELINE, ORACLE = "all rows", "wrong rows removed"
DISAGREES = 0.0
"""In the place of a share: the rows of which the trainings say another class on average."""
RATES = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
FEW = (0.01, 0.04)
SHARES = (DISAGREES, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class SuspectsTrial:
    """One training on what a treatment leaves."""

    treatment: str
    learning_rate: float
    seed: int
    share: float = DISAGREES
    """Of the rows, how many are treated."""
    objective: str = "ce"
    kind: str = "symmetric"
    noise: float = 0.2
    """Share of the labels that are wrong, of training and validation rows alike."""
    rows: int = 2000
    epochs: int = 20
    batch_size: int = 64
    reads_test: bool = False


ARMS: Mapping[str, Sequence[SuspectsTrial]] = {
    BASELINE: [SuspectsTrial("none", rate, 0) for rate in RATES],
    "twice as long": [SuspectsTrial("longer", rate, 0) for rate in RATES],
    "label smoothing": [
        SuspectsTrial("none", rate, 0, objective=str(objectives.parse(f"label-smoothing:{share}")))
        for share, rate in product((0.1, 0.2, 0.3, 0.5), FEW)
    ],
    "comp-sum": [SuspectsTrial("none", rate, 0, objective=str(objectives.parse("comp-sum:1.7"))) for rate in RATES],
    "suspects removed": [SuspectsTrial("remove", rate, 0, share) for share, rate in product(SHARES, FEW)],
    "suspects relabelled": [SuspectsTrial("relabel", rate, 0, share) for share, rate in product(SHARES, FEW)],
    "random rows removed": [SuspectsTrial("random", rate, 0, share) for share, rate in product(SHARES[1:3], (0.01, 0.02, 0.04, 0.08))],
    ORACLE: [SuspectsTrial("oracle", rate, 0) for rate in RATES],
}  # fmt: skip


def trial(config: SuspectsTrial, folder: Path) -> Outcome:
    """Treat, train, and measure the accuracy on validation labels as they are and, where it is read, on the test set."""
    splits = data.standardize(data.load(DATA, seed=config.seed))
    order = torch.randperm(len(splits.train), generator=Generator().manual_seed(config.seed))[: config.rows]
    x, true = splits.train.inputs[order], splits.train.targets[order]
    flip = partial(labels.corrupted, classes=splits.num_classes, rate=config.noise, kind=config.kind)
    rows = Rows(x, flip(x, true, seed=config.seed), true, torch.arange(len(x)), splits.class_names)
    kept, target = treated(config, rows)
    batches = data.Batches(x[kept], target[kept], torch.arange(len(kept)), config.batch_size, seed=config.seed)
    epochs = config.epochs * (2 if config.treatment == "longer" else 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = nets.build("mlp", splits.input_shape, splits.num_classes)
        told = Training(model, len(kept), splits.num_classes, len(batches))
        fitted = training.fit(
            model, objectives.parse(config.objective).objective(Context(epochs, config.seed), told), batches,
            epochs=epochs, schedule=training.cosine, folder=folder,
            optimizer=partial(torch.optim.SGD, lr=config.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4),
        )  # fmt: skip
    model.eval()
    seen = flip(splits.validation.inputs, splits.validation.targets, seed=config.seed + 1)
    measured: dict[str, Any] = {
        "diverged": fitted.diverged,
        "validation_accuracy": _accuracy(model, splits.validation.inputs, seen),
        "rows": len(kept),
        "wrong_before": float((rows.given != true).float().mean()),
        "wrong_left": float((target[kept] != true[kept]).float().mean()),
    }
    if config.reads_test:
        measured["test_accuracy"] = _accuracy(model, splits.test.inputs, splits.test.targets)
    return Outcome(measured)


def treated(config: SuspectsTrial, rows: Rows) -> tuple[Tensor, Tensor]:
    """The rows to train on and the [N] labels to train with, after a treatment."""
    everything = torch.arange(len(rows))
    match config.treatment:
        case "none" | "longer":
            return everything, rows.given
        case "oracle":
            return everything[rows.given == rows.true], rows.given
        case "random":
            drawn = torch.rand(len(rows), generator=Generator().manual_seed(config.seed))
            return everything[drawn >= config.share], rows.given
    question = Question(Source(DATA), model="mlp")
    recorded = labels.watch(question, rows, config.seed)
    suggested = recorded.probabilities.argmax(1)
    suspect = suggested != rows.given
    if config.share != DISAGREES:
        most = recorded.suspicion(question.measure).argsort(descending=True)[: round(config.share * len(rows))]
        suspect = torch.zeros(len(rows), dtype=torch.bool).index_fill(0, most, True)
    if config.treatment == "remove":
        return everything[~suspect], rows.given
    return everything, torch.where(suspect, suggested, rows.given)


def _accuracy(model: torch.nn.Module, inputs: Tensor, target: Tensor) -> float:
    return 1 - metrics.error_rate(readings.predict(model, inputs), target)


def trials(form: Form, tuned: Mapping[str, Any], records: Sequence[Record]) -> list[SuspectsTrial]:
    """full: the whole grid. confirm: what was chosen of each arm. smoke: one of each, made short."""
    if form == "confirm":
        chosen = [SuspectsTrial(**fields) for arms in tuned.values() for fields in arms.values()]
        return [replace(config, seed=seed, reads_test=True) for seed in SEEDS[form] for config in chosen]
    if form == "smoke":
        return [replace(tried[0], rows=256, epochs=2, reads_test=True) for tried in ARMS.values()]
    return [
        replace(config, seed=seed, kind=kind)
        for seed in SEEDS[form]
        for kind in KINDS
        for tried in ARMS.values()
        for config in tried
    ]


def tune(records: Sequence[Record]) -> dict[str, dict[str, dict[str, Any]]]:
    """Kind of noise -> arm -> the setting with the largest mean validation accuracy over seeds."""
    found: dict[SuspectsTrial, list[float]] = {}
    for record in records:
        found.setdefault(replace(_config(record), seed=0), []).append(record.metrics["validation_accuracy"])

    def best(tried: Sequence[SuspectsTrial], kind: str) -> dict[str, Any]:
        chosen = max((replace(c, kind=kind) for c in tried), key=lambda config: float(np.mean(found[config])))
        default = SuspectsTrial(chosen.treatment, chosen.learning_rate, 0)
        return {
            n: v
            for n, v in vars(chosen).items()
            if n in ("treatment", "learning_rate", "seed") or v != getattr(default, n)
        }

    return {kind: {arm: best(tried, kind) for arm, tried in ARMS.items()} for kind in KINDS}


def _config(record: Record) -> SuspectsTrial:
    return SuspectsTrial(**record.config)


def arm_of(config: SuspectsTrial) -> str:
    """The arm that a setting belongs to."""
    return next(arm for arm, tried in ARMS.items() if _kind_of(config) == _kind_of(tried[0]))


def _kind_of(config: SuspectsTrial) -> tuple[str, str]:
    return config.treatment, config.objective.partition(":")[0]


Arms = Mapping[str, Sequence[Mapping[str, Any]]]
"""Arm -> the metrics of each seed."""


def read(records: Sequence[Record]) -> dict[str, Arms]:
    """Kind of noise -> arm -> the metrics of each seed, of the trials that read the test set."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in sorted(records, key=lambda record: int(record.config["seed"])):
        config = _config(record)
        if config.reads_test:
            found.setdefault(config.kind, {}).setdefault(arm_of(config), []).append(record.metrics)
    return {kind: {arm: found[kind][arm] for arm in ARMS} for kind in KINDS if kind in found}


def measures(records: Sequence[Record]) -> dict[str, NDArray[np.float64]]:
    """For each claim, [S] the test accuracy of its arm less that of its baseline."""
    found = read(records)
    return {
        claim.id: _accuracies(found[claim.part][claim.arm]) - _accuracies(found[claim.part][claim.baseline])
        for claim in verdicts.claims_of(PAPER)
        if claim.study == NAME
    }


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    return np.array([row["test_accuracy"] for row in rows], dtype=np.float64)


def panels(records: Sequence[Record]) -> list[Panel]:
    """A section for each kind of noise; nothing for the form `full`, which reads no test set."""
    return [_panel(kind, arms) for kind, arms in read(records).items()]


def _panel(kind: str, arms: Arms) -> Panel:
    base, colours = _accuracies(arms[BASELINE]), palette.colours(list(arms), BASELINE)
    gains = {arm: t_interval(_accuracies(rows) - base) for arm, rows in arms.items() if arm != BASELINE}
    rows = [
        Interval(f"{kind} noise", arm, arm, *(100 * v for v in (g.mean, g.low, g.high))) for arm, g in gains.items()
    ]
    figure = plots.forest(f"suspects-{kind}", rows, colours, unit="points of test accuracy over training on all rows",
                          alt=f"Test accuracy of each arm against training on all rows, {kind} noise")  # fmt: skip
    columns = ("arm", "test accuracy, %", "rows left", "wrong labels among them, %")
    table = tuple(
        (Cell(arm), *(_cell([row[name] for row in told], *form) for name, form in SHOWN.items()))
        for arm, told in arms.items()
    )
    text = (
        f"An MLP on {SuspectsTrial.rows:,} pictures of fashion-mini, of which {SuspectsTrial.noise:.0%} have a wrong label ({kind}); validation labels "
        "are as wrong, test labels are true. One training of ten epochs is recorded, and the suspects are the rows whose average margin is lowest, or "
        "of which it says another class: which of these, and how many, was tuned. That recording costs half of the training that follows; the arm "
        "that trains twice as long costs more. Eight settings were tried of each arm. The last arm knows which labels are wrong."
    )
    return Panel(f"With {kind} noise", text, (figure,), (Table(columns, table, colours=tuple(colours.values())),))


SHOWN: Mapping[str, tuple[float, int]] = {"test_accuracy": (100, 1), "rows": (1, 0), "wrong_left": (100, 1)}
"""Metric -> its scale and digits in the table."""


def _cell(values: Sequence[float], scale: float, digits: int) -> Cell:
    found = t_interval(values)
    return Cell(found.text(scale, digits), found.mean)


EXPERIMENT = Experiment(
    paper=PAPER,
    title="suspicious labels taken out before the training",
    trial=trial,
    trials=trials,
    measures=measures,
    panels=panels,
    tune=tune,
    cut="an MLP on 2,000 pictures of 28 x 28 pixels with a fifth of the labels wrong; instance-dependent noise is in `legato labels` alone. The paper "
    "proposes no cleaning of labels: what stands here is our use of its recorded trajectory",
)
