"""`legato guarantee`: what a surrogate excess guarantees about the error rate."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from rich.table import Table

    from legato.studies.guarantee import Answer


@dataclass(frozen=True)
class Guarantee:
    """What does my surrogate loss guarantee about the error rate?

    For comp-sum losses, cross-entropy (tau = 1) among them: how far above the best possible error a model can be, given how far
    above the best possible loss it is. A bound on excess error, not on the error; `legato.losses.certificate` bounds that from scores.
    """

    tau: Annotated[tuple[float, ...], tyro.conf.arg(metavar="TAU ...")] = (1.7,)
    """Comp-sum parameters, each >= 0; cross-entropy, 1, always stands beside them."""
    classes: Annotated[int, tyro.conf.arg(metavar="N")] = 10
    """How many classes, at least 2."""
    excess: Annotated[tuple[float, ...], tyro.conf.arg(metavar="X ...")] = (0.01, 0.05, 0.1)
    """Surrogate excesses with their gap, in nats at tau = 1: the loss minus the least that any scores can have. The plot shows the first two."""
    score_bound: Annotated[float, tyro.conf.arg(metavar="X")] = 10.0
    """For the gap: scores lie in [-X, X]."""
    sum_exp_risk: Annotated[float, tyro.conf.arg(metavar="X")] = 1.0
    """For the gap: the best risk of the sum-exponential loss, tau = 0, that your models can have."""
    check: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Also look for counter-examples, on this many random problems for each claim and tau."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Of the searches."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/guarantee")
    """Folder of the page."""

    def run(self) -> None:
        """Print the tables and where the page is."""
        from rich.console import Console

        from legato.studies import guarantee

        asked = guarantee.Question(
            self.tau, self.classes, self.excess, self.score_bound, self.sum_exp_risk, self.check, self.seed
        )
        found = guarantee.answer(asked)
        console = Console()
        console.print(*_tables(found))
        for claim, words in guarantee.claims(found.searches).items():
            console.print(f"{claim}: {words}", highlight=False)
        console.print(f"\n{found.verdict}\n", style="bold", highlight=False)
        print(f"page: {guarantee.write_page(found, self.out)}")


def _tables(found: "Answer") -> "list[Table]":
    from rich import box
    from rich.table import Table

    from legato.studies.guarantee import FORMS, points

    bounds = Table(
        "tau", "surrogate excess", *FORMS, box=box.SIMPLE_HEAD, title="Error at most this many points above the best"
    )
    for row in found.rows:
        bounds.add_row(f"{row.tau:g}", f"{row.excess:g}", *map(points, row.bounds.values()))
    facts = Table(
        "tau", "gap at most", "stated, found", "stated, computed", "tighter, found", box=box.SIMPLE_HEAD,
        title="Gap for bounded scores, and smallest surrogate excess / transform (1 is attained)",
    )  # fmt: skip
    for t in found.tightness:
        ratios = (f"{x:.3f}" for x in (t.found, t.computed, t.tighter))
        facts.add_row(f"{t.tau:g}", f"{found.gaps[t.tau]:.4g}", *ratios)
    return [bounds, facts]
