"""Four sources of digits, of which one is clean, and that changes half-way: does a learner find the clean one, and notice?

A softmax regression takes one step a round, on a batch from the source that a learner chose. The labels of the other three sources
are drawn blindly. What the learner is told is by how much the step lowered the loss on held-out rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from legato import data
from legato.lab.trial import Outcome
from legato.online import FTRL, Selector
from legato.studies.methods import BLIND

Array = NDArray[np.float64]
SOURCES = 4
BATCH = 32
HELD_OUT = 200
"""Training rows that are not trained on, to measure progress."""
WINDOWS = 30
"""Stretches of equal length for which the page shows what was chosen."""


@dataclass(frozen=True)
class SourcesConfig:
    """One training."""

    learner: str
    """A name in LEARNERS, or `oracle`, which knows which source is clean."""
    learning_rate: float
    setting: tuple[float, ...]
    """What the learner is made with; empty for those that have nothing to set."""
    seed: int
    steps: int = 3000
    reads_test: bool = False


class Learner(Protocol):
    """What chooses a source and is told what came of it."""

    def choose(self) -> int:
        """The source of the next step."""

    def report(self, progress: float) -> None:
        """By how much the held-out loss fell."""


@final
class Exp3:
    """EXP3 as Auer, Cesa-Bianchi, Freund and Schapire (2002) have it: rewards in [0, 1], forced exploration.

    p = (1 - gamma) softmax((gamma / K) sum of rewards / p) + gamma / K. Progress becomes a reward by the largest that was seen:
    (1 + progress / max |progress|) / 2.
    """

    def __init__(self, gamma: float, seed: int) -> None:
        self._gamma, self._largest = gamma, 1e-12
        self._learner, self._rng = FTRL("entropy", SOURCES, gamma / SOURCES), np.random.default_rng(seed)
        self._choice, self._chance = 0, 1.0

    def choose(self) -> int:
        """The source of the next step."""
        p = (1 - self._gamma) * self._learner.probs() + self._gamma / SOURCES
        self._choice = int(self._rng.choice(SOURCES, p=p / p.sum()))
        self._chance = float(p[self._choice])
        return self._choice

    def report(self, progress: float) -> None:
        """By how much the held-out loss fell."""
        self._largest = max(self._largest, abs(progress))
        self._learner.update(self._choice, -(1 + progress / self._largest) / 2, self._chance)


def _selector(regulariser: Any) -> Callable[..., Learner]:
    def make(boldness: float, memory: float, seed: int) -> Learner:
        return Selector(range(SOURCES), regulariser=regulariser, boldness=boldness, memory=memory or None, seed=seed)

    return make


LEARNERS: Mapping[str, Callable[..., Learner]] = {
    "uniform": lambda seed: Selector(range(SOURCES), boldness=BLIND, seed=seed),
    "exp3": Exp3,
    "static log-barrier": _selector("log-barrier"),
    "discounted log-barrier": _selector("log-barrier"),
    "discounted entropy": _selector("entropy"),
}
"""(*setting, seed) -> learner. A memory of 0 never forgets."""


def trial(config: SourcesConfig) -> Outcome:
    """Train, and measure the accuracy at the end and how often the clean source was chosen."""
    splits = data.standardize(data.load("digits", seed=config.seed))
    rng = np.random.default_rng((config.seed, 1))
    x, y = _arrays(splits.train)
    order = rng.permutation(len(x))
    held_out, rows = order[:HELD_OUT], order[HELD_OUT:]
    weights, chosen_clean = _train(config, x[rows], y[rows], x[held_out], y[held_out], rng)
    read = {"validation": splits.validation} | ({"test": splits.test} if config.reads_test else {})
    accuracy = {f"{name}_accuracy": _accuracy(weights, *_arrays(split)) for name, split in read.items()}
    return Outcome(
        {
            **accuracy,
            "clean_share": float(chosen_clean.mean()),
            "curve": chosen_clean.reshape(WINDOWS, -1).mean(1).tolist(),
        }
    )


def _train(
    config: SourcesConfig, x: Array, y: Any, held_x: Array, held_y: Any, rng: np.random.Generator
) -> tuple[Array, Array]:
    """The weights [D + 1, C], and for each step 1 if the clean source was chosen, [T]."""
    classes = int(y.max()) + 1
    first, second = rng.permutation(SOURCES)[:2]
    make = LEARNERS.get(config.learner)
    learner = None if make is None else make(*config.setting, seed=config.seed)
    weights, hits, last = np.zeros((x.shape[1], classes)), np.zeros(config.steps), np.log(classes)
    for step in range(config.steps):
        clean = int(first if step < config.steps // 2 else second)
        batch, blind = rng.integers(len(x), size=BATCH), rng.integers(classes, size=BATCH)  # equal for all learners
        source = clean if learner is None else learner.choose()
        hits[step] = source == clean
        error = _probabilities(x[batch] @ weights)
        error[np.arange(BATCH), y[batch] if source == clean else blind] -= 1
        weights -= config.learning_rate / BATCH * (x[batch].T @ error)
        if learner is not None:
            now = _loss(weights, held_x, held_y)
            learner.report(last - now)
            last = now
    return weights, hits


def _arrays(split: data.Split) -> tuple[Array, Any]:
    """Inputs with a column of ones [N, D + 1], and classes [N]."""
    x = split.inputs.flatten(1).double().numpy()
    return np.hstack([x, np.ones((len(x), 1))]), split.targets.numpy()


def _probabilities(scores: Array) -> Array:
    p: Array = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p


def _loss(weights: Array, x: Array, y: Any) -> float:
    """Mean negative log-likelihood, in nats."""
    scores = x @ weights
    scores -= scores.max(1, keepdims=True)
    return float((np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]).mean())


def _accuracy(weights: Array, x: Array, y: Any) -> float:
    return float(((x @ weights).argmax(1) == y).mean())
