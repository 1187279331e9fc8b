"""`legato online`: decisions under costs that change every day, with a report of the regret."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from rich.table import Table

    from legato.studies.online_costs import Answer


@dataclass(frozen=True)
class Online:
    """Costs change every day: what do learners with a regret guarantee pay, and is a simple controller better?

    Plays a small state machine, such as a battery, against a table of costs. Beside the learners stand the best fixed policy in hindsight,
    follow-yesterday, a controller that plans on the mean of the last episodes, uniform play and a perfect forecast.
    """

    costs: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """A CSV file with a row an episode and a column a step, or italy-power-demand."""
    model: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The state machine, a TOML file: states, actions, transitions and what a step costs."""
    learners: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("log-barrier", "mr", "hedge")
    """log-barrier, mr (magnitude-reduced), luo, exp3: see their own path. hedge: all costs, afterwards. NAME:X sets the factor on the learning rate:
    10, and 1 for hedge, if left out."""
    episodes: Annotated[int | None, tyro.conf.arg(metavar="K")] = None
    """Default: the rows of the file; more go through it again."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    """Runs of each learner that draws lots."""
    window: Annotated[int, tyro.conf.arg(metavar="N")] = 7
    """Episodes whose mean the controller plans on."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to look for a named table of costs first."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes side by side; default: the number of cores."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/online")
    """Folder of the results and the page; the same command goes on where it was stopped."""

    def run(self) -> None:
        """Print the table and where the page is."""
        from rich.console import Console

        from legato.studies import online_costs, online_costs_page
        from legato.studies.compare import workers_of

        asked = online_costs.Question(self.costs, self.model, self.learners, self.episodes, self.seeds, self.window)
        folder = str(self.data_dir) if self.data_dir else None
        found = online_costs.ask(asked, self.out, data_dir=folder, workers=workers_of(self.workers))
        console = Console()
        console.print(_table(found))
        console.print(f"{found.verdict}.\n", style="bold", highlight=False, markup=False)
        print(f"page: {online_costs_page.write(found, self.out)}")


def _table(found: "Answer") -> "Table":
    from rich import box
    from rich.table import Table

    from legato.studies.online_costs_page import COLUMNS, cells

    episodes = found.about["episodes"]
    title = f"{found.about['machine']}: {episodes:,} episodes of {found.prices.shape[1]} steps"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    shown = [
        place for place, name in enumerate(COLUMNS) if name != "an episode"
    ]  # the page has it, a terminal has no room
    for name in (COLUMNS[place] for place in shown):
        table.add_column(name, justify="left" if name in ("player", "sees") else "right", no_wrap=True)
    for row in found.rows:
        told = cells(row, episodes)
        table.add_row(*(told[place] for place in shown))
    return table
