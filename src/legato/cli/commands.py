"""The commands: a frozen dataclass each, whose fields are the options and whose `run` does the work."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from legato.studies.config import CompareConfig


@dataclass(frozen=True)
class Compare(CompareConfig):  # noqa: D101 - said by CompareConfig
    __doc__ = CompareConfig.__doc__  # tyro shows it as the command's description

    def run(self) -> None:
        """Measure, then print table, verdict, the winning lines and where the page is."""
        from legato.cli import compare

        compare.run(self)


@dataclass(frozen=True)
class Page:
    """Draw the page of a run again, from its files alone."""

    folder: tyro.conf.Positional[Path]
    """The folder that was given to compare as --out."""

    def run(self) -> None:
        """Print the page's path."""
        from legato.studies.result import open_result

        print(open_result(self.folder).page())


@dataclass(frozen=True)
class Data:
    """List the data sets: size, licence, and the command that fetches what is not here."""

    def run(self) -> None:
        """Print the table."""
        from legato.cli import listings

        listings.data()


@dataclass(frozen=True)
class Objectives:
    """List the objectives with their parameters."""

    def run(self) -> None:
        """Print the table."""
        from legato.cli import listings

        listings.objectives()


@dataclass(frozen=True)
class Study:
    """Put a paper's claims to the test. The form `confirm` gives the verdicts; `full` tunes, `smoke` only sees that all runs."""

    name: tyro.conf.Positional[str]
    """comp-sum."""
    form: Literal["smoke", "full", "confirm"] = "confirm"
    """smoke: seconds; full: tunes on validation data; confirm: committed rates, fresh seeds, the test set."""
    workers: int | None = None
    """Processes that train side by side; default: the number of cores."""
    out: Path | None = None
    """Folder of the run. Default: runs/study-NAME-FORM."""

    def run(self) -> None:
        """Print the verdicts and where the page is."""
        from legato.cli import study

        study.run(self.name, self.form, self.workers, self.out)


@dataclass(frozen=True)
class Bench:
    """Time and memory of a room against the peers that you would use instead."""

    room: tyro.conf.Positional[str] = "losses"
    """losses."""
    seconds: float = 120.0
    """About how long to measure."""
    out: Path | None = None
    """Also write the figures there, as JSON."""

    def run(self) -> None:
        """Print the table."""
        from legato.cli import bench

        bench.bench(self.room, seconds=self.seconds, out=self.out)


TABLE: Mapping[str, Callable[..., Any]] = {
    "compare": Compare,
    "study": Study,
    "bench": Bench,
    "page": Page,
    "data": Data,
    "objectives": Objectives,
}
