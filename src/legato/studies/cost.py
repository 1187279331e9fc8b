"""What a training step costs with each objective, measured alone after all else, interleaved, on one thread."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from legato import errors
from legato.lab.trial import Outcome
from legato.studies.tasks import Parts, Setting

MOST_ROUNDS, FEWEST_ROUNDS = 80, 10
SECONDS = 60.0
"""No round begins after this long, once the fewest are done: steps with attacks are slow."""
STEPS = 4


@dataclass(frozen=True)
class CostConfig:
    """A trial that trains nothing for its result, only for its time; `setting` says with which model and data."""

    setting: Setting
    arms: tuple[str, ...]
    """Canonical objectives; the first is the one that all are measured against."""


def trial(config: CostConfig, parts: Callable[[Setting], Parts]) -> Outcome:
    """Median over rounds of (an arm's step time / the first arm's in the same round), with a bootstrap interval.

    The first arm runs twice a round under two names: the ratio of those two is the measurement's own error (`again`).

    Args:
        parts: makes what steps of a setting, whose objective is that of an arm.
    """
    steps = [_Stepper(parts(replace(config.setting, objective=arm))) for arm in (*config.arms, config.arms[0])]
    rounds: list[list[float]] = []
    end = time.perf_counter() + SECONDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.LegatoWarning)  # what a loss warns of is told by the trainings
        while len(rounds) < FEWEST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() < end):
            rounds.append(_round(steps, first=len(rounds)))
    seconds = np.array(rounds[2:])  # two rounds to warm up
    ratios = seconds / seconds[:, :1]
    names = (*config.arms, "again")
    return Outcome(
        {
            "seconds": float(np.median(seconds[:, 0])),
            "ratio": {n: _median(r) for n, r in zip(names, ratios.T, strict=True)},
        }
    )


def _round(steps: "list[_Stepper]", first: int) -> list[float]:
    """Seconds of a step of each, one after the other; who begins changes from round to round."""
    seconds = [0.0] * len(steps)
    for position in range(len(steps)):
        which = (position + first) % len(steps)
        start = time.perf_counter()
        steps[which].run(STEPS)
        seconds[which] = (time.perf_counter() - start) / STEPS
    return seconds


class _Stepper:
    """One model in training, a few steps at a time."""

    def __init__(self, parts: Parts) -> None:
        self.model, self.objective, self.optimizer, self.batch = (
            parts.model,
            parts.objective,
            parts.optimizer,
            parts.batch,
        )
        self.model.train()
        self.objective.begin_epoch(parts.last_epoch)  # past every warm-up

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.objective.gradients(self._gradients)
            self.optimizer.step()
            self.objective.after_step(self.model)
        if self.batch[0].is_cuda:
            torch.cuda.synchronize(self.batch[0].device)

    def _gradients(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.loss(self.model, self.batch, 1)
        loss.backward()
        return loss.detach()


def _median(ratios: np.ndarray) -> list[float]:
    """[median, low, high] of the ratios, the interval by a percentile bootstrap."""
    draws = np.random.default_rng(0).choice(ratios, (1000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return [float(np.median(ratios)), float(low), float(high)]
