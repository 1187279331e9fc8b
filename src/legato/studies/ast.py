"""AST (2310.10541), put to the test: do smooth experts and its parts make better tiny data sets than plain trajectory matching?

full     chooses the pixels' learning rate and the student's momentum of every arm, with equal trials, on validation data.
confirm  fresh seeds, chosen values, the test rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato.lab.trial import Record, as_plain
from legato.studies.ast_page import panels
from legato.studies.ast_trials import DistilTrial, ExpertsTrial, SelectTrial, Task, trial
from legato.studies.experiment import Experiment
from legato.studies.spec import Form

Array = NDArray[np.float64]
Config = ExpertsTrial | DistilTrial | SelectTrial
MTT, AST = "mtt", "ast"
DISTIL: Mapping[str, Any] = {"balance": True, "mid_points": "equal", "perturb": 1.0}
"""The parts of AST's second phase that need no other first images."""
ARMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    MTT: ("plain", {}),
    "init": ("plain", {"init": "kmeans-logit"}),
    "balance": ("plain", {"balance": True}),
    "mid points": ("plain", {"mid_points": "equal"}),
    "perturb": ("plain", {"perturb": 1.0}),
    "strong": ("strong", {}),
    "strong, ramp": ("strong, ramp", {}),
    "strong, both": ("strong, both", {}),
    "ast, no penalty": ("strong, ramp", {**DISTIL, "init": "kmeans-logit"}),
    AST: ("strong, both", {**DISTIL, "init": "kmeans-logit"}),
}
"""Arm -> experts and parts, one switched alone or all together."""
GRID = tuple({"lr_pixels": rate, "momentum": m, "alpha": 0.05 * (1 - m)} for rate in (10.0, 30.0) for m in (0.0, 0.9))
"""What every arm chooses among; steps with momentum m are 1 / (1 - m) times as long, so they begin that much smaller."""
SELECTIONS = ("random", "k-means", "herding")
FASHION = Task("fashion-mini", 0, image_size=14)


def trials(form: Form, values: Mapping[str, Any], records: Sequence[Record]) -> list[Config]:
    """Experts and selections first; a set is named when its experts are there."""
    asked = _smoke() if form == "smoke" else _full() if form == "full" else _confirm(values)
    made = [record.config for record in records]
    sets = [config for config in asked if isinstance(config, DistilTrial)]
    experts = list(dict.fromkeys(config.experts for config in sets))
    ready = [config for config in sets if as_plain(config.experts) in made]
    return [*experts, *(config for config in asked if not isinstance(config, DistilTrial)), *ready]


def _smoke() -> list[Config]:
    task = Task("digits", 0, width=4)
    sets = [_set(task, arm, GRID[0], steps=2, epochs=3, count=1) for arm in (MTT, AST)]
    return [*sets, SelectTrial(task, "random")]


def _full() -> list[Config]:
    """Two seeds: a set of digits costs some ten seconds, and there are four settings for each of ten arms."""
    return [_set(Task("digits", seed), arm, chosen) for arm in ARMS for chosen in GRID for seed in range(2)]


def _confirm(values: Mapping[str, Any]) -> list[Config]:
    digits = [Task("digits", seed) for seed in range(100, 110)]
    fashion = [replace(FASHION, seed=seed) for seed in range(100, 105)]
    chosen = values["chosen"]
    found: list[Config] = [_set(task, arm, chosen[arm], reads_test=True) for task in digits for arm in ARMS]
    found += [ExpertsTrial(task, recipe) for task in digits for recipe in ("strong, penalty", "strong, sample penalty")]
    found += [
        _set(task, arm, chosen[arm], ipc=10, reads_test=True) for task in digits[:5] for arm in (MTT, "init", AST)
    ]
    found += [_set(task, arm, chosen[arm], reads_test=True) for task in fashion for arm in (MTT, AST)]
    found += [SelectTrial(task, arm, reads_test=True) for task in (*digits, *fashion) for arm in SELECTIONS]
    found += [SelectTrial(task, arm, 10, True) for task in digits[:5] for arm in SELECTIONS]
    return found + [SelectTrial(task, "all data", reads_test=True) for task in digits[:3]]


def _set(
    task: Task, arm: str, chosen: Mapping[str, Any], *, ipc: int = 1, steps: int = 120, epochs: int = 10, count: int = 3,
    reads_test: bool = False,
) -> DistilTrial:  # fmt: skip
    recipe, parts = ARMS[arm]
    experts = ExpertsTrial(task, recipe, count, epochs)
    return DistilTrial(experts, arm, ipc, steps, {**parts, **chosen}, reads_test)


def tune(records: Sequence[Record]) -> dict[str, Any]:
    """The setting of each arm with the best mean validation accuracy."""

    def score(arm: str, setting: Mapping[str, Any]) -> float:
        found = [
            r.metrics["validation"]
            for r in records
            if r.config.get("arm") == arm and setting.items() <= r.config["parts"].items()
        ]
        return float(np.mean(found))

    return {"chosen": {arm: max(GRID, key=lambda setting, arm=arm: score(arm, setting)) for arm in ARMS}}  # type: ignore[misc]


def measures(records: Sequence[Record]) -> dict[str, Array]:
    """Claim id -> [S], seeds rising."""

    def accuracy(arm: str, data: str = "digits", ipc: int = 1) -> Array:
        return column(records, arm, "accuracy", data, ipc)

    def first_step(recipe: str) -> Array:
        """log of the length of the experts' first epoch, mean over the experts of a seed."""
        return np.array([np.mean(np.log(np.array(r.metrics["steps"])[:, 0])) for r in experts_of(records, recipe)])

    def unsteady(arm: str) -> Array:
        found = accuracy(arm)
        return np.abs(found - np.median(found))

    def distance(arm: str) -> Array:
        return column(records, arm, "end_distance")

    return {
        "ast-random": accuracy(MTT) - accuracy("random"),
        "ast-kmeans": accuracy(MTT) - accuracy("k-means"),
        "ast-herding": accuracy(MTT) - accuracy("herding"),
        "ast-outperforms": accuracy(AST) - accuracy(MTT),
        "ast-outperforms-no-penalty": accuracy("ast, no penalty") - accuracy(MTT),
        "ast-outperforms-ten": accuracy(AST, ipc=10) - accuracy(MTT, ipc=10),
        "ast-random-ten": accuracy(MTT, ipc=10) - accuracy("random", ipc=10),
        "ast-kmeans-ten": accuracy(MTT, ipc=10) - accuracy("k-means", ipc=10),
        "ast-random-fashion": accuracy(MTT, "fashion-mini") - accuracy("random", "fashion-mini"),
        "ast-kmeans-fashion": accuracy(MTT, "fashion-mini") - accuracy("k-means", "fashion-mini"),
        "ast-outperforms-fashion": accuracy(AST, "fashion-mini") - accuracy(MTT, "fashion-mini"),
        "ast-interplay": distance("strong") - distance(MTT),
        "ast-smooth-match": distance("strong") - distance("strong, ramp"),
        "ast-clipping-rate": first_step("strong") - first_step("strong, ramp"),
        "ast-penalty-rate": first_step("strong") - first_step("strong, penalty"),
        "ast-penalty-sample-rate": first_step("strong") - first_step("strong, sample penalty"),
        "ast-smooth-accuracy": accuracy("strong, both") - accuracy("strong"),
        "ast-init-steady": unsteady(MTT) - unsteady("init"),
        "ast-balance-steady": unsteady(MTT) - unsteady("balance"),
        "ast-mid-cumulative": distance(MTT) - distance("mid points"),
        "ast-perturb-cumulative": distance(MTT) - distance("perturb"),
    }


def column(records: Sequence[Record], arm: str, metric: str, data: str = "digits", ipc: int = 1) -> Array:
    """[S] a metric of an arm's sets or selections, seeds rising."""
    own = [r for r in records if r.config.get("arm") == arm and r.config["ipc"] == ipc and task_of(r)["data"] == data]
    return np.array([r.metrics[metric] for r in sorted(own, key=lambda r: int(task_of(r)["seed"]))], dtype=np.float64)


def experts_of(records: Sequence[Record], recipe: str) -> list[Record]:
    """The experts of a recipe on digits, seeds rising."""
    own = [r for r in records if r.config.get("recipe") == recipe and task_of(r)["data"] == "digits"]
    return sorted(own, key=lambda r: int(task_of(r)["seed"]))


def task_of(record: Record) -> dict[str, Any]:
    """The task of any trial."""
    found: dict[str, Any] = record.config["experts"]["task"] if "experts" in record.config else record.config["task"]
    return found


EXPERIMENT = Experiment(
    paper="2310.10541",
    title="tiny data sets by matching expert trajectories",
    trial=trial,
    trials=trials,
    measures=measures,
    panels=panels,
    tune=tune,
    cut="digits of 8 x 8 pixels at 1 and 10 images a class and Fashion-MNIST of 5,000 images at 14 x 14 pixels at 1; ConvNet of width 16, 3 experts of 10 "
    "epochs, 120 outer steps; the paper has width 128, colour pictures of 32 pixels and more, 50 to 100 experts of 50 epochs, 5,000 outer steps. "
    "Without augmentation, colour, soft labels, and other networks than the experts'",
)
