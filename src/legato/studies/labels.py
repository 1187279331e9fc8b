"""`legato labels`: which labels of a data set look wrong, from what trainings said of each row on their way."""

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from legato import data, errors, nets, training
from legato.data import Provenance, Splits
from legato.flatness.dynamics import MEASURES, Dynamics
from legato.lab.statistics import Estimate, t_interval
from legato.studies import objectives
from legato.studies.methods import TRIALS, Context, Training
from legato.studies.prepared import Source

NOISE_SEED = 5_000_011
LEARNING_RATE = 0.01
"""Of SGD with momentum: most right labels are learnt in few epochs with it, most wrong ones are not."""
COLUMNS = ("loss", "confidence", "margin", "forgetting", "variability", "correctness")
"""What the table says of each row, in this order; each is the mean over the seeds."""

Numbers = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Question:
    """What to look through, and with which trainings."""

    source: Source
    objective: str = "ce"
    model: str = "auto"
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = LEARNING_RATE
    seeds: int = 3
    """Trainings; what they say is averaged."""
    label_noise: float = 0.0
    """Share of the labels that is flipped first, to see how many of them are found."""
    noise_kind: str = "symmetric"
    measure: str = "margin"
    """What the labels are ranked by."""
    device: str = "cpu"
    progress: bool = False

    def model_for(self, shape: tuple[int, ...]) -> str:
        """The model; auto is an mlp for vectors and for grey pictures of up to 32 pixels, a convnet for other pictures."""
        if self.model != "auto":
            return self.model
        return "convnet" if len(shape) == 3 and (shape[0] > 1 or max(shape[1:]) > 32) else "mlp"


@dataclass(frozen=True)
class Rows:
    """The rows whose labels are looked at, ready for a network."""

    inputs: Tensor
    given: Tensor
    true: Tensor
    """The labels before any were flipped."""
    index: Tensor
    """[N] row of the file, from 0."""
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.given)


@dataclass(frozen=True)
class Found:
    """What the trainings said of each row. Arrays are in the order of the rows of the file."""

    question: Question
    model: str
    """The name of the network that was taken."""
    class_names: tuple[str, ...]
    provenance: Provenance
    row: Whole
    given: Whole
    true: Whole
    suggested: Whole
    """The class with the largest mean probability over all epochs and seeds."""
    columns: dict[str, Numbers]
    suspicions: dict[str, Numbers]
    """measure -> [S, N], one row a seed."""
    seconds: float
    names: tuple[str, ...] = ()
    """File names of the rows, where each row is a file."""
    pictures: NDArray[np.uint8] | None = field(default=None, repr=False)
    """[N, C, H, W] for pictures."""

    @property
    def name(self) -> str:
        """The name of the data, without a path."""
        return Path(self.question.source.data).name

    @property
    def suspicion(self) -> Numbers:
        """[N] the measure that was asked for, averaged over the seeds; larger is more suspicious."""
        mean: Numbers = self.suspicions[self.question.measure].mean(0)
        return mean

    @cached_property
    def order(self) -> Whole:
        """[N] places in the arrays, the most suspicious first; ties by the recorded loss."""
        return np.lexsort((-self.columns["loss"], -self.suspicion)).astype(np.int64)

    @property
    def disagrees(self) -> NDArray[np.bool_]:
        """[N] whether another class than the given one has the largest mean probability."""
        return np.not_equal(self.suggested, self.given)

    @property
    def flipped(self) -> NDArray[np.bool_]:
        """[N] which labels were flipped for the test."""
        return np.not_equal(self.given, self.true)

    def scores(self) -> "tuple[Score, ...]":
        """How well each measure finds the flipped labels; empty without label noise.

        Raises: LegatoValueError when no label was flipped, or all were.
        """
        if not self.question.label_noise:
            return ()
        return tuple(Score.of(measure, self.suspicions[measure], self.flipped) for measure in MEASURES)

    @property
    def verdict(self) -> str:
        """What was found, in words."""
        count, wrong = len(self.row), int(self.disagrees.sum())
        if self.question.label_noise:
            flips = int(self.flipped.sum())
            hits = int(self.flipped[self.order[:flips]].sum())
            score = next(s for s in self.scores() if s.measure == self.question.measure)
            return (
                f"Of the {flips:,} labels of {self.name} that were flipped, {hits / flips:.0%} stand among the {flips:,} most suspicious; "
                f"chance would be {flips / count:.0%}. Average precision {score.precision:.3f}, AUC {score.auc:.3f}."
            )
        first = self.order[0]
        given, looks = (words_of(self.class_names, code) for code in (self.given[first], self.suggested[first]))
        looks_like = f" and looks like {looks}" if self.disagrees[first] else ""
        return (
            f"For {wrong:,} of the {count:,} labels of {self.name} ({wrong / count:.1%}) the networks say another class on average; the most "
            f"suspicious is row {self.row[first]}, which is called {given}{looks_like}. A suspicion is no proof: look at the rows."
        )


@dataclass(frozen=True)
class Score:
    """How well a ranking finds what was flipped."""

    measure: str
    precision: float
    """Average precision of the ranking by the mean over seeds; the share of flipped labels is that of a random ranking."""
    auc: float
    """Chance that a flipped label ranks above one that was not; 0.5 is random."""
    precision_of_one: Estimate
    """Average precision of a single seed's ranking: mean and interval over seeds."""
    auc_of_one: Estimate

    @staticmethod
    def of(measure: str, suspicions: Numbers, flipped: NDArray[np.bool_]) -> "Score":
        """Suspicions [S, N], one row a seed, against what was flipped [N]."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        if not 0 < flipped.sum() < len(flipped):
            raise errors.argument(
                "label_noise",
                expected="a share that flips some labels",
                got=f"{flipped.sum()} of {len(flipped)} flipped",
            )
        mean = suspicions.mean(0)
        ones = [(average_precision_score(flipped, row), roc_auc_score(flipped, row)) for row in suspicions]
        precisions, aucs = zip(*ones, strict=True)
        return Score(
            measure,
            float(average_precision_score(flipped, mean)),
            float(roc_auc_score(flipped, mean)),
            t_interval(precisions),
            t_interval(aucs),
        )


def find(question: Question) -> Found:
    """Train, record, and rank. The rows are all that came from one file: those of a test file of the data set stay out.

    Raises: LegatoValueError for a question out of range, and for a learning rate that lets a training diverge; what
        `legato.data.load` raises for data that cannot be used.
    """
    _check(question)
    started = time.monotonic()
    splits = question.source.load(0)
    rows = rows_of(splits, question.label_noise, question.noise_kind)
    recorded = [watch(question, rows, seed) for seed in range(question.seeds)]
    columns = {name: np.stack([_numbers(getattr(one, name)) for one in recorded]).mean(0) for name in COLUMNS}
    suspicions = {m: np.stack([_numbers(one.suspicion(m)) for one in recorded]) for m in MEASURES}
    mean = torch.stack([one.probabilities for one in recorded]).mean(0)
    return Found(
        question=question,
        model=question.model_for(splits.input_shape),
        class_names=rows.class_names,
        provenance=splits.provenance,
        row=rows.index.numpy(),
        given=rows.given.numpy(),
        true=rows.true.numpy(),
        suggested=mean.argmax(1).cpu().numpy(),
        columns=columns,
        suspicions=suspicions,
        seconds=time.monotonic() - started,
        names=file_names(question.source, len(rows)),
        pictures=joined(splits)[0].numpy() if splits.is_image else None,
    )


def joined(splits: Splits) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and index of all rows that were cut from one file, in its order.

    Splits that stand in files of their own have indices of their own, which overlap with the others'.
    """
    for parts in (
        (splits.train, splits.validation, splits.test),
        (splits.train, splits.validation),
        (splits.train, splits.test),
    ):
        index = torch.cat([part.index for part in parts])
        if torch.equal(index.sort().values, torch.arange(len(index))):
            order = index.argsort()
            inputs, targets = (
                torch.cat([getattr(part, name) for part in parts])[order] for name in ("inputs", "targets")
            )
            return inputs, targets, index[order]
    order = splits.train.index.argsort()
    return splits.train.inputs[order], splits.train.targets[order], splits.train.index[order]


def rows_of(splits: Splits, label_noise: float = 0.0, noise_kind: str = "symmetric", *, seed: int = 0) -> Rows:
    """All rows of one file, standardised, some labels flipped if that is asked for."""
    inputs, targets, index = joined(data.standardize(splits))
    given = corrupted(inputs, targets, splits.num_classes, label_noise, noise_kind, seed) if label_noise else targets
    return Rows(inputs, given, targets, index, splits.class_names)


def corrupted(inputs: Tensor, targets: Tensor, classes: int, rate: float, kind: str, seed: int = 0) -> Tensor:
    """Labels of which a share is flipped: symmetric, pair, or instance."""
    if kind == "instance":
        from legato.data.noise import corrupt_by_input

        return corrupt_by_input(inputs, targets, classes, rate, seed=NOISE_SEED + seed)
    return data.corrupt_labels(targets, classes, rate, kind=kind, seed=NOISE_SEED + seed)


def watch(question: Question, rows: Rows, seed: int) -> Dynamics:
    """One training on all rows, and what it said of each.

    Raises: LegatoValueError when the loss stops being finite.
    """
    spec, device = objectives.parse(question.objective), question.device
    shape, classes = tuple(rows.inputs.shape[1:]), len(rows.class_names)
    tensors = (rows.inputs.to(device), rows.given.to(device), torch.arange(len(rows), device=device))
    batches = data.Batches(*tensors, batch_size=question.batch_size, seed=seed)
    dynamics = Dynamics(len(rows), classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nets.build(question.model_for(shape), shape, classes).to(device)
        told = Training(model, len(rows), classes, len(batches))
        objective = watched(spec.objective(Context(question.epochs, seed), told), dynamics)
        decay = spec.setting("weight-decay")
        fitted = training.fit(
            model, objective, batches, epochs=question.epochs, device=device, progress=question.progress,
            optimizer=lambda parameters: torch.optim.SGD(
                parameters, lr=question.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4 if decay is None else decay
            ),
        )  # fmt: skip
    if fitted.diverged:
        raise errors.argument(
            "learning_rate", expected="one at which the training stays finite", got=f"{question.learning_rate:g}, {fitted.diverged}",
            fix=f"--learning-rate {question.learning_rate / 10:g}",
        )  # fmt: skip
    return dynamics


def watched(objective: training.Objective, dynamics: Dynamics) -> training.Objective:
    """The same objective with one more term, which only looks on.

    Raises: LegatoValueError for an objective that is no loss of outputs and labels.
    """
    if isinstance(objective, training.WithGradients):
        return training.WithGradients(watched(objective.objective, dynamics), objective.method)
    if isinstance(objective, training.Criterion):
        return training.Criterion(objective.criterion, *objective.terms, dynamics)
    got = f"{type(objective).__name__}, which attacks the model"
    raise errors.argument("objective", expected="a loss of outputs and labels", got=got, fix="ce")


def words_of(class_names: tuple[str, ...], code: int | np.integer[Any]) -> str:
    """The name of a class."""
    return class_names[int(code)]


def file_names(source: Source, count: int) -> tuple[str, ...]:
    """The files of a folder of pictures, a row each; () where a row is no file, or not all files of the folder are rows."""
    from legato.data import idx, photos

    folder = Path(source.data).expanduser()
    if not folder.is_dir() or source.classes or idx.sets_below(folder):
        return ()
    listed = photos.files_in(photos.splits_of(folder)["train"]).files
    return tuple(str(file.path.relative_to(folder)) for file in listed) if len(listed) == count else ()


def _numbers(tensor: Tensor) -> Numbers:
    values: Numbers = tensor.double().cpu().numpy()
    return values


def _check(question: Question) -> None:
    """Numbers that no training could use, named before the data are read."""
    rules: list[tuple[str, bool, str, object]] = [
        ("epochs", question.epochs >= 2, "a whole number >= 2", question.epochs),
        ("seeds", question.seeds >= 1, "a whole number >= 1", question.seeds),
        ("batch_size", question.batch_size >= 1, "a whole number >= 1", question.batch_size),
        ("learning_rate", 0 < question.learning_rate < math.inf, "a number > 0, or auto", question.learning_rate),
        ("label_noise", 0 <= question.label_noise < 1, "a share >= 0 and < 1", question.label_noise),
    ]
    for name, good, expected, got in rules:
        if not good:
            raise errors.argument(name, expected=expected, got=got)
    choices: list[tuple[str, str, tuple[str, ...]]] = [
        ("measure", question.measure, MEASURES), ("noise_kind", question.noise_kind, ("symmetric", "pair", "instance")),
    ]  # fmt: skip
    for name, value, known in choices:
        if value not in known:
            raise errors.choice(name, value, known)
    parts = [part.name for part in objectives.parse(question.objective).modifiers]
    if idle := [name for name in parts if name in TRIALS and name != "weight-decay"]:
        got = f"{idle[0]}, which changes only what is evaluated"
        raise errors.argument("objective", expected="parts that change the training", got=got, fix="leave it out")
