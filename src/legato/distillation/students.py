"""Students: networks trained from scratch on a few rows, and how good they are in the end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from legato import errors
from legato.distillation.flat import NetFactory, fresh
from legato.distillation.objective import AugmentedCrossEntropy
from legato.distillation.rows import Rows, Shuffled, accuracy
from legato.training import fit

RATES = (0.01, 0.03, 0.1, 0.3)
"""Learning rates that every arm may choose among."""


@dataclass(frozen=True)
class Schooling:
    """How students are trained: SGD with momentum, the learning rate divided by ten at half time. All arms of a comparison share it."""

    steps: int = 300
    """Optimizer steps, rounded up to whole passes through the rows."""
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 1e-3
    augment: bool = False
    """DSA, for images."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            got = f"{self.steps}, {self.batch_size}"
            raise errors.argument("steps, batch_size", expected="whole numbers >= 1", got=got)


SCHOOLING = Schooling()
"""The same for all."""


def train_student(
    model: nn.Module, rows: Rows, learning_rate: float, schooling: Schooling = SCHOOLING, *, seed: int = 0
) -> nn.Module:  # fmt: skip
    """Train a network in place on `rows` (as it sees them; targets int64 or probabilities), on their device; in eval mode afterwards.

    A training that diverges leaves weights that are not finite, and raises nothing: its accuracy tells.
    """
    batches = Shuffled(rows, schooling.batch_size, seed)
    optimizer = partial(
        torch.optim.SGD, lr=learning_rate, momentum=schooling.momentum, weight_decay=schooling.weight_decay
    )
    objective = AugmentedCrossEntropy(augment=schooling.augment, seed=seed)
    epochs = math.ceil(schooling.steps / len(batches))
    fit(model, objective, batches, epochs=epochs, optimizer=optimizer, schedule=_halfway, device=rows[0].device)
    return model.eval()


def student_accuracy(
    net: NetFactory, rows: Rows, held_out: Rows, learning_rate: float, schooling: Schooling = SCHOOLING, *, seed: int = 0
) -> float:  # fmt: skip
    """Final accuracy in [0, 1] on `held_out` of a fresh network trained on `rows`; both as the network sees them."""
    model = train_student(fresh(net, seed), rows, learning_rate, schooling, seed=seed)
    return accuracy(model, held_out)


@dataclass(frozen=True)
class Graded:
    """An arm whose learning rate was chosen on validation data."""

    learning_rate: float
    validation: float
    """Mean accuracy of the chosen rate, over the students."""
    accuracies: tuple[float, ...]
    """Of each student on the rows that were not used to choose."""


def graded(
    net: NetFactory,
    sets: Sequence[Rows],
    val: Rows,
    test: Rows | None,
    *,
    rates: Sequence[float] = RATES,
    schooling: Schooling = SCHOOLING,
    seed: int = 0,
) -> Graded:
    """Choose the learning rate with the best mean validation accuracy of the students, then read `test` once with these students.

    Args:
        net, schooling: as above.
        sets: what each student is trained on: several draws of an arm, or one set several times.
        val, test: rows to choose and to report on; without `test` the accuracies are those on `val`.
        rates: to choose among.
        seed: of the first student; those of the others follow.
    """
    found = [
        [train_student(fresh(net, seed + k), rows, rate, schooling, seed=seed + k) for k, rows in enumerate(sets)]
        for rate in rates
    ]
    scores = [[accuracy(model, val) for model in models] for models in found]
    best = max(range(len(rates)), key=lambda i: sum(scores[i]))
    told = scores[best] if test is None else [accuracy(model, test) for model in found[best]]
    return Graded(rates[best], sum(scores[best]) / len(sets), tuple(told))


def label_robust_score(full: float, tiny: float, random: float) -> float:
    """DD-Ranking's score, not its protocol: (e^a - e^-1) / (e - e^-1) with a = ((tiny - random) - (full - tiny)) / 2, in [0, 1].

    Args:
        full, tiny, random: accuracies in [0, 1] under one recipe of students on all the data, the distilled set and random real images.
    Source: DD-Ranking 0.2 with weight 1/2; there the learning rate and the epoch are chosen on the test set.
    """
    a = ((tiny - random) - (full - tiny)) / 2
    return (math.exp(a) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def _halfway(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    return MultiStepLR(optimizer, [total_steps // 2], gamma=0.1)
