"""The trials of the study `ast`: experts, sets that are distilled from them, and chosen real images; students are trained in each.

A distilled set stands on the trial of its experts, which is part of its config and so of its name. Experts lie beside the store, in `experts`;
where they are gone they are trained again, to the same weights.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator

from legato import data
from legato.distillation import (
    Expert,
    FlatModel,
    Match,
    Preprocessing,
    Recipe,
    Schooling,
    Settings,
    balance,
    graded,
    herding_rows,
    kmeans_rows,
    random_rows,
    train_expert,
    unrolled_grad,
)
from legato.distillation.anytime import first_rows
from legato.distillation.distilled import tiled
from legato.distillation.flat import NetFactory, fresh
from legato.distillation.outer_loop import NotFiniteError, OuterLoop
from legato.distillation.rows import Rows
from legato.lab.trial import Outcome
from legato.studies.distil_nets import build

RATES = (0.01, 0.03, 0.1)
STUDENTS = 3
SCHOOLING = Schooling(steps=200)
STARTS = (0, 3, 7)
"""Epochs of the expert from which the way of a student is shown."""
HEAVY = Recipe(learning_rate=0.01, momentum=0.9, weight_decay=1e-3)
RECIPES: Mapping[str, Recipe] = {
    "plain": Recipe(),
    "strong": HEAVY,
    "strong, ramp": replace(HEAVY, loss_ramp=True),
    "strong, penalty": replace(HEAVY, gradient_penalty="channel"),
    "strong, sample penalty": replace(HEAVY, gradient_penalty="sample"),
    "strong, both": replace(HEAVY, loss_ramp=True, gradient_penalty="channel"),
}
"""How experts are trained. Strong: the learning rate at which momentum of 0.9 makes steps about twice as long as plain ones."""


@dataclass(frozen=True)
class Task:
    """A data set at one resolution, cut by a seed."""

    data: str
    seed: int
    image_size: int | None = None
    width: int = 16


@dataclass(frozen=True)
class ExpertsTrial:
    """A few experts of one recipe."""

    task: Task
    recipe: str
    count: int = 3
    epochs: int = 10


@dataclass(frozen=True)
class DistilTrial:
    """A set distilled from experts, and students on it."""

    experts: ExpertsTrial
    arm: str
    """What the table calls it."""
    ipc: int = 1
    steps: int = 120
    parts: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Settings` that differ from trajectory matching's."""
    reads_test: bool = False


@dataclass(frozen=True)
class SelectTrial:
    """Students on chosen real images, or on all."""

    task: Task
    arm: str
    ipc: int = 1
    reads_test: bool = False


def trial(config: ExpertsTrial | DistilTrial | SelectTrial, folder: Path) -> Outcome:
    """One of the three."""
    if isinstance(config, ExpertsTrial):
        return Outcome(told_of(experts_of(config, folder)))
    return Outcome(select(config) if isinstance(config, SelectTrial) else distilled(config, folder))


@dataclass(frozen=True)
class Prepared:
    """Rows as networks see them."""

    train: Rows
    val: Rows
    test: Rows
    net: NetFactory
    preprocessing: Preprocessing


@lru_cache(maxsize=2)
def prepared(task: Task) -> Prepared:
    """The rows of a task; kept, since trials of one task follow each other."""
    splits = data.load(task.data, image_size=task.image_size, seed=task.seed)
    known = Preprocessing.fit(splits.train.inputs)
    train, val, test = (
        (known.apply(part.inputs), part.targets) for part in (splits.train, splits.validation, splits.test)
    )
    net = build("blocks", splits.input_shape, splits.num_classes, task.width)
    return Prepared(train, val, test, net, known)


def experts_of(config: ExpertsTrial, folder: Path) -> list[Expert]:
    """Train them, or take them from beside the store, whose scratch folder is `folder`."""
    found, recipe = prepared(config.task), replace(RECIPES[config.recipe], epochs=config.epochs)
    settings = settings_of({}, config)
    keep = settings.max_start - 1 + settings.expert_epochs
    cache = folder.parents[1] / "experts"
    return [
        train_expert(found.net, found.train, found.val, recipe, seed=1000 * config.task.seed + i, keep=keep, folder=cache)
        for i in range(config.count)
    ]  # fmt: skip


def told_of(experts: Sequence[Expert]) -> dict[str, Any]:
    """Step lengths and validation errors by epoch, of each expert."""
    return {"steps": [expert.steps for expert in experts], "errors": [expert.errors for expert in experts]}


def settings_of(parts: Mapping[str, Any], experts: ExpertsTrial) -> Settings:
    """Starts in all epochs from which there is a target; everything else as the parts say."""
    plain = Settings(seed=experts.task.seed, max_start=1)
    return replace(plain, **{"max_start": min(8, experts.epochs + 1 - plain.expert_epochs), **parts})


def select(config: SelectTrial) -> dict[str, Any]:
    """Students on real images; each of them on images of its own draw, where there is a draw."""
    found = prepared(config.task)
    inputs, targets = found.train
    generator = Generator().manual_seed(config.task.seed)
    draws = {
        "random": lambda k: random_rows(targets, config.ipc, generator=generator),
        "k-means": lambda k: kmeans_rows(inputs, targets, config.ipc, seed=k),
        "herding": lambda k: herding_rows(inputs, targets, config.ipc),
        "all data": lambda k: torch.arange(len(targets)),
    }
    chosen = [draws[config.arm](k) for k in range(STUDENTS)]
    return students(config, found, [(inputs[rows], targets[rows]) for rows in chosen])


def students(config: DistilTrial | SelectTrial, found: Prepared, sets: Sequence[Rows]) -> dict[str, Any]:
    """Accuracy of students at the rate that validation rows chose, on these or on the test rows."""
    seed = (config.task if isinstance(config, SelectTrial) else config.experts.task).seed
    told = graded(
        found.net, sets, found.val, found.test if config.reads_test else None, rates=RATES, schooling=SCHOOLING, seed=100 * seed
    )  # fmt: skip
    accuracy = sum(told.accuracies) / len(told.accuracies)
    return {"accuracy": accuracy, "validation": told.validation, "learning_rate": told.learning_rate}


def distilled(config: DistilTrial, folder: Path) -> dict[str, Any]:
    """Distil for a fixed number of steps; the last set counts, and where numbers stop being finite the one before."""
    found, experts = prepared(config.experts.task), experts_of(config.experts, folder)
    settings = settings_of(config.parts, config.experts)
    flat = FlatModel(fresh(found.net, settings.seed))
    rows = first_rows(flat, experts, found.train, config.ipc, settings)
    loop, losses, stopped = OuterLoop(flat, experts, rows, settings), list[float](), None
    try:
        losses += (loop.step() for _ in range(config.steps))
    except NotFiniteError:
        stopped = loop.taken
    own = loop.images, loop.labels
    told = students(config, found, [own] * STUDENTS)
    ways = [way(flat, experts[0], own, loop.alpha, settings, t) for t in STARTS if t < settings.max_start]
    return told | {
        "loss": losses[:: max(1, config.steps // 60)], "alpha": loop.alpha, "stopped": stopped, "ways": ways,
        "end_distance": sum(w[-1] for w in ways) / len(ways), "pictures": _png(found.preprocessing.invert(loop.images), config.ipc),
    }  # fmt: skip


def way(flat: FlatModel, expert: Expert, rows: Rows, alpha: float, settings: Settings, epoch: int) -> list[float]:
    """How far a student is from its target after each inner step, its start being 1: |theta_i - target|^2 / |theta_0 - target|^2."""
    start, target = expert.at(epoch), expert.at(epoch + settings.expert_epochs)
    rate = alpha * (balance(epoch, settings.max_start) if settings.balance else 1.0)
    batches = [torch.arange(len(rows[1]))] * settings.student_steps
    match = Match(target, start)
    found = unrolled_grad(
        flat.cross_entropy(), start, *rows, batches, {i + 1: match for i in range(len(batches))}, alpha=rate, momentum=settings.momentum
    )  # fmt: skip
    return [float(found.losses[i + 1]) for i in range(len(batches))]


def _png(pictures: torch.Tensor, ipc: int) -> str:
    """The classes side by side, as PNG in base64."""
    out = BytesIO()
    shown = pictures.clamp(0, 1)[::ipc]
    Image.fromarray(tiled(shown, len(shown))).save(out, "PNG")
    return b64encode(out.getvalue()).decode()
