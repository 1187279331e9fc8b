"""What a training step costs with each objective, measured alone after all else, interleaved, on one thread."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from legato.lab.trial import Outcome
from legato.studies import classify, objectives

ROUNDS = 80
STEPS = 4


@dataclass(frozen=True)
class CostConfig:
    """A trial that trains nothing for its result, only for its time; `setting` says with which model and data."""

    setting: classify.TrialConfig
    arms: tuple[str, ...]
    """Canonical objectives; the first is the one that all are measured against."""


def trial(config: CostConfig, source: classify.Source, factory: classify.Factory | None = None) -> Outcome:
    """Median over rounds of (an arm's step time / the first arm's in the same round), with a bootstrap interval.

    The first arm runs twice a round under two names: the ratio of those two is the measurement's own error (`again`).
    """
    task = classify.prepare(config.setting, source)
    steps = [_Stepper(config.setting, task, arm, factory) for arm in (*config.arms, config.arms[0])]
    seconds = np.empty((ROUNDS, len(steps)))
    for round_ in range(-5, ROUNDS):  # five rounds to warm up
        for position in range(len(steps)):
            which = (position + round_) % len(steps)
            start = time.perf_counter()
            steps[which].run(STEPS)
            seconds[max(round_, 0), which] = (time.perf_counter() - start) / STEPS
    ratios = seconds / seconds[:, :1]
    names = (*config.arms, "again")
    return Outcome(
        {
            "seconds": float(np.median(seconds[:, 0])),
            "ratio": {n: _median(r) for n, r in zip(names, ratios.T, strict=True)},
        }
    )


class _Stepper:
    """One model in training, a few steps at a time."""

    def __init__(
        self, setting: classify.TrialConfig, task: classify.Task, arm: str, factory: classify.Factory | None
    ) -> None:
        self.model: nn.Module = classify.new_model(setting, task, factory).train()
        self.criterion = objectives.parse(arm).build(setting.epochs)
        self.optimizer = classify.new_optimizer(setting, self.model.parameters())
        self.inputs: Tensor = task.train.inputs[: setting.batch_size]
        self.targets: Tensor = task.train.seen[: setting.batch_size]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            self.criterion(self.model(self.inputs), self.targets).backward()
            self.optimizer.step()
        if self.inputs.is_cuda:
            torch.cuda.synchronize(self.inputs.device)


def _median(ratios: np.ndarray) -> list[float]:
    """[median, low, high] of the ratios, the interval by a percentile bootstrap."""
    draws = np.random.default_rng(0).choice(ratios, (1000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return [float(np.median(ratios)), float(low), float(high)]
