"""Pictures whose labels go wrong half-way through the training: does a selector among losses do better than one loss throughout?"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from legato import data, metrics, nets, training
from legato.lab.trial import Outcome
from legato.studies import objectives, readings
from legato.studies.methods import Context, Training

DATA = "fashion-mini"
NOISE_SEED = 6_000_011
HELD_OUT = 200
"""Rows that no arm trains on, so that all have the same; a selector looks at them. They were labelled before labels went wrong."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """One training."""

    objective: str
    """Canonical text form."""
    learning_rate: float
    seed: int
    rows: int = 2000
    """To learn from."""
    epochs: int = 30
    batch_size: int = 64
    noise: float = 0.4
    """Share of the labels that are wrong in the second half of the epochs."""
    reads_test: bool = False


@dataclass(frozen=True)
class Turning:
    """Batches with one set of labels until an epoch, and with another from there on."""

    before: data.Batches
    after: data.Batches
    turn: int

    def __len__(self) -> int:
        return len(self.before)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of epoch 0, 1, 2 ..."""
        return (self.before if epoch < self.turn else self.after).epoch(epoch)


def trial(config: ObjectiveConfig, folder: Path) -> Outcome:
    """Train, and measure the accuracy at the end and after each epoch."""
    splits = data.standardize(data.load(DATA, seed=config.seed))
    order = torch.randperm(len(splits.train), generator=Generator().manual_seed(config.seed))
    held_out, rows = order[:HELD_OUT], order[HELD_OUT : HELD_OUT + config.rows]
    x, y = splits.train.inputs[rows], splits.train.targets[rows]
    wrong = data.corrupt_labels(y, splits.num_classes, config.noise, seed=NOISE_SEED + config.seed)
    before, after = (data.Batches(x, t, torch.arange(len(y)), config.batch_size, seed=config.seed) for t in (y, wrong))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = nets.build("mlp", splits.input_shape, splits.num_classes)
        told = Training(
            model, len(y), splits.num_classes, -(-len(y) // config.batch_size),
            (splits.train.inputs[held_out], splits.train.targets[held_out]),
        )  # fmt: skip
        objective = objectives.parse(config.objective).objective(Context(config.epochs, config.seed), told)
        fitted = training.fit(
            model, objective, Turning(before, after, config.epochs // 2), epochs=config.epochs, schedule=training.cosine, folder=folder,
            optimizer=partial(torch.optim.SGD, lr=config.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4),
            validate=lambda model: {"validation_error": _error(model, splits.validation)} | getattr(objective, "steps", {}),
        )  # fmt: skip
    model.eval()
    curves = {
        name: [row[name] for row in fitted.history] for name in ("validation_error", *getattr(objective, "steps", {}))
    }
    measured = {
        "diverged": fitted.diverged,
        "curves": curves,
        "validation_accuracy": 1 - _error(model, splits.validation),
    }
    if config.reads_test:
        measured["test_accuracy"] = 1 - _error(model, splits.test)
    return Outcome(measured)


def _error(model: torch.nn.Module, split: data.Split) -> float:
    return metrics.error_rate(readings.predict(model, split.inputs), split.targets)
