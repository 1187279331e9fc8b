"""`legato stability`: will a training run hold when it is scaled?"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from legato.studies.sweep_config import SweepConfig

if TYPE_CHECKING:
    from rich.console import Console

    from legato.lab.page import Table as PageTable


@dataclass(frozen=True)
class Sweep(SweepConfig):  # noqa: D101 - said by SweepConfig
    __doc__ = SweepConfig.__doc__  # tyro shows it as the command's description

    def run(self) -> None:
        """Print the table and where the page is."""
        from rich.console import Console

        from legato.studies import decoder_sweep, sweep_page
        from legato.studies.sweep_page import DECADES

        found = decoder_sweep.run(self)
        console = Console()
        say(console, sweep_page.sensitivity_table(found), leave_out=("N", "best loss", DECADES))
        console.print(sweep_page.verdict(found), style="bold", highlight=False, markup=False)
        print(f"\npage: {self.out / 'index.html'}")


@dataclass(frozen=True)
class Forecast:
    """Extrapolate a finished sweep to a larger model: attention logits, gradients against eps, or the first unstable learning rate.

    Straight line or parabola on log-log axes, whichever foresees the largest size better when that is left out of the fit.
    """

    run_: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """The folder of `legato stability sweep` or of `legato.studies.sweep.sweep`."""
    size: Annotated[float, tyro.conf.arg(metavar="N")]
    """Parameters of the model to foresee, 12 * depth * width^2 for the decoder."""
    statistic: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A statistic of the sweep, or 'first unstable learning rate'. Default: all of them."""
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ARM ...")] = ()
    """Default: all arms of the sweep."""
    learning_rates: Annotated[tuple[float, ...], tyro.conf.arg(metavar="RATE ...")] = ()
    """Of the sweep's grid; default: all of it."""
    threshold: Annotated[float, tyro.conf.arg(metavar="X")] = 1e4
    """Of attention logits: the chance that one run passes it is given. The paper's runs beyond 1e4 diverged."""
    eps: Annotated[float, tyro.conf.arg(metavar="X")] = 1e-8
    """Of the optimizer: the chance that a gradient's RMS is below 10 times it is given."""
    shape: Literal["auto", "line", "quadratic"] = "auto"
    """Of the curve."""
    level: Annotated[float, tyro.conf.arg(metavar="P")] = 0.8
    """Chance with which one run lies in the interval, if the curve is right."""

    def run(self) -> None:
        """Print a row for each arm, statistic and learning rate."""
        from rich.console import Console

        from legato.studies import sweep_forecast

        asked = sweep_forecast.Question(
            self.size, self.statistic, self.arms, self.learning_rates, self.threshold, self.eps, self.shape, self.level
        )
        rows = sweep_forecast.answer(self.run_, asked)
        console = Console()
        for shown in sweep_forecast.tables(rows, asked):
            say(console, shown)
        console.print(
            "Intervals are for one run, if the curve is right. Each curve foresees the largest size best when that is left out."
        )
        for note in sweep_forecast.notes(rows):
            console.print(note, highlight=False, markup=False)


@dataclass(frozen=True)
class Stability:
    """Will my training run hold when I scale it? `sweep` trains small models, `forecast` extrapolates them."""

    command: tyro.conf.OmitArgPrefixes[
        Annotated[Sweep, tyro.conf.subcommand("sweep", prefix_name=False)]
        | Annotated[Forecast, tyro.conf.subcommand("forecast", prefix_name=False)]
    ]

    def run(self) -> None:
        """Do what was asked."""
        self.command.run()


def say(console: "Console", shown: "PageTable", leave_out: tuple[str, ...] = ()) -> None:
    """A table of a page on the terminal, which has less room: words may be broken, numbers never."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    kept = [place for place, name in enumerate(shown.columns) if name not in leave_out]
    for place in kept:
        words = all(not isinstance(row[place].value, int | float) for row in shown.rows)
        made.add_column(shown.columns[place], justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in shown.rows:
        made.add_row(*(row[place].text for place in kept))
    console.print(shown.caption, style="italic", highlight=False, markup=False)
    console.print(made)
