"""The commands: a frozen dataclass each, whose fields are the options and whose `run` does the work."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


TABLE: Mapping[str, Callable[..., Any]] = {"compare": Compare, "page": Page, "data": Data, "objectives": Objectives}
