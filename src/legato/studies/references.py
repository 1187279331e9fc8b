"""Models that need no objective, to stand beside the table: does a network pay at all on this data?"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from legato import errors
from legato.lab.trial import Outcome
from legato.studies.prepared import Source, Task, prepare

NAMES = ("hist-gradient-boosting",)
RATES = (0.03, 0.1, 0.3)
"""Chosen among by validation error, as the learning rates of an objective are."""


@dataclass(frozen=True)
class ReferenceConfig:
    """One reference model, on the rows and labels that the networks of the same seed see."""

    data: str
    data_sha256: str
    reference: str
    seed: int
    label_noise: float = 0.0
    noise_kind: Literal["symmetric", "pair"] = "symmetric"
    validation_labels: Literal["noisy", "clean"] = "noisy"
    train_rows: int | None = None
    device: str = "cpu"
    attack_radius: float | None = None


def trial(config: ReferenceConfig, source: Source) -> Outcome:
    """scikit-learn's HistGradientBoostingClassifier at the best of three learning rates; the test set is read once."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    task = prepare(config, source)
    models = [HistGradientBoostingClassifier(learning_rate=rate, random_state=config.seed) for rate in RATES]
    inputs = task.train.inputs.flatten(1).numpy()
    for model in models:
        model.fit(inputs, task.train.seen.numpy())
    found = [_error(model, task, "validation") for model in models]
    best = int(np.argmin(found))
    return Outcome(
        {
            "learning_rate": RATES[best],
            "validation_error": found[best],
            "test_error": _error(models[best], task, "test"),
        }
    )


def check(names: tuple[str, ...]) -> None:
    """Raises LegatoValueError for a reference that is not there."""
    for name in names:
        if name not in NAMES:
            raise errors.choice("references", name, NAMES)


def _error(model: Any, task: Task, split: str) -> float:
    rows = task.validation if split == "validation" else task.test
    labels = rows.seen if split == "validation" else rows.true
    return float((model.predict(rows.inputs.flatten(1).numpy()) != labels.numpy()).mean())
