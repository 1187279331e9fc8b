"""What a study is made of: comparisons, claims that look at them, and panels for its page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from legato.lab.page import Panel
from legato.studies.config import CompareConfig
from legato.studies.result import Result

Form: TypeAlias = Literal["smoke", "full", "confirm"]
Panels: TypeAlias = Callable[[Mapping[str, Result]], list[Panel]]
"""The results of a study by part -> sections for its page."""


@dataclass(frozen=True)
class Part:
    """One comparison of a study."""

    config: CompareConfig
    fixed_rate: float | None = None
    """One learning rate for every objective, as papers often do it; nothing is tuned then."""
    keeps_test_curve: bool = False
    """Note the test error after each epoch, to show overfitting."""
    sharpness_rows: int = 0
    """Measure on this many training rows how sharp each model that reads the test set is."""
    families: tuple[tuple[str, ...], ...] = ()
    """The objectives of `config`, grouped by method: the form `full` tunes all, and of each family the one that is best on
    validation data goes on to `confirm`. Without families all go on."""


@dataclass(frozen=True)
class Spec:
    """A paper's study."""

    paper: str
    """arXiv number."""
    title: str
    parts: Mapping[str, Part]
    cut: str = ""
    """What the committed run leaves out, and why."""
    panels: Panels = field(default=lambda results: [])
    smoke: tuple[str, ...] = ()
    """The parts that the form `smoke` runs, with the first two objectives of each."""
