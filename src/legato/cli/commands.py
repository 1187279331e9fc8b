"""The commands: a frozen dataclass each, whose fields are the options and whose `run` does the work."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from legato.cli.distill import Distill
from legato.cli.doctor import Doctor
from legato.cli.guarantee import Guarantee
from legato.cli.istd import Istd
from legato.cli.labels import Labels
from legato.cli.morph import Morph
from legato.cli.online import Online
from legato.cli.sharpness import Sharpness
from legato.cli.smooth import Smooth
from legato.cli.stability import Stability
from legato.cli.train_diffusion import TrainDiffusion
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
    """Draw the page of a comparison or study again, from its files alone."""

    run_: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """The folder that was given as --out, or the file that --pack wrote."""

    def run(self) -> None:
        """Print the page's path."""
        from legato.studies.study import redraw

        print(redraw(self.run_))


@dataclass(frozen=True)
class Data:
    """List the data sets: size, licence, where each was found here, or the command that fetches it."""

    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to look first."""

    def run(self) -> None:
        """Print the table."""
        from legato.cli import listings

        listings.data(str(self.data_dir) if self.data_dir else None)


@dataclass(frozen=True)
class Objectives:
    """List the objectives with their parameters."""

    def run(self) -> None:
        """Print the table."""
        from legato.cli import listings

        listings.objectives()


@dataclass(frozen=True)
class Study:
    """Put a paper's claims to the test.

    --confirm gives the verdicts with the committed learning rates. Without it the study chooses those rates anew, on validation
    data, and writes them to tuned.json; it gives no verdict then.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """adversarial, ast, comp-sum, ensloss, online, proxies, saf, selector, smooth-diffusion or suspects; all for one after the other."""
    smoke: bool = False
    """Seconds: does everything run? No verdict."""
    confirm: bool = False
    """The verdicts: committed learning rates, fresh seeds, the test set read for the first time."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes that train side by side; default: the number of cores."""
    pack: bool = False
    """Also write the results as one file, OUT.jsonl.xz, from which `legato page` can draw."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of the run. Default: runs/study-NAME-FORM."""

    def run(self) -> None:
        """Print the verdicts and where the page is."""
        from legato.cli import study

        study.run(self.name, self.smoke, self.confirm, self.workers, self.out, self.pack)


@dataclass(frozen=True)
class Bench:
    """Time and memory of a room against the peers that you would use instead."""

    room: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ROOM")] = "losses"
    """losses, flatness, online, stability, smooth or distillation; all for every bar of every room, in one table."""
    seconds: Annotated[float, tyro.conf.arg(metavar="N")] = 300.0
    """About how long to measure."""
    official: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """For losses: a copy of losses.py of statmlben/ensLoss, to be timed too; it is run, so trust it."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the figures there, as JSON."""

    def run(self) -> None:
        """Print the table."""
        from legato.cli import bench

        bench.bench(self.room, seconds=self.seconds, official=self.official, out=self.out)


TABLE: Mapping[str, Callable[..., Any]] = {
    "compare": Compare,
    "guarantee": Guarantee,
    "sharpness": Sharpness,
    "labels": Labels,
    "distill": Distill,
    "online": Online,
    "stability": Stability,
    "train-diffusion": TrainDiffusion,
    "istd": Istd,
    "morph": Morph,
    "smooth": Smooth,
    "study": Study,
    "bench": Bench,
    "page": Page,
    "data": Data,
    "objectives": Objectives,
    "doctor": Doctor,
}
