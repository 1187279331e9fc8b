"""`legato guarantee`: what a surrogate excess guarantees about the error, as numbers, as a sentence and as a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from legato import errors
from legato.lab import page, palette, plots
from legato.lab.page import Cell, Figure, Page, Panel, Table
from legato.lab.plots import Line
from legato.losses.guarantees import check, error_bound, explicit_error_bound, gap_bounded, not_negative, transform
from legato.losses.tight_guarantees import tight_error_bound, tight_transform
from legato.studies import counterexamples
from legato.studies.counterexamples import Search

FORMS = {"stated": error_bound, "explicit": explicit_error_bound, "tighter (ours)": tight_error_bound}
"""Gamma in its three forms: (excess, tau, n) -> error excess."""

CHECKED = (0.0, 0.5, 1.0, 1.5, 2.0)
"""The taus whose guarantees are put to the test, beside those that were asked for."""


@dataclass(frozen=True)
class Question:
    """What to look up; excesses are of the surrogate risk with its gap, in nats at tau = 1."""

    taus: tuple[float, ...]
    classes: int
    excesses: tuple[float, ...]
    score_bound: float
    """The largest score, in size, that the models of the gap can give."""
    sum_exponential_risk: float
    """Their best risk of the sum-exponential loss."""
    problems: int = 0
    """How many random problems to check the bounds on; 0 checks none."""
    seed: int = 0
    rounds: int = 100
    """Steps of the search that looks how tight the bounds are."""


@dataclass(frozen=True)
class Row:
    """One tau with one excess: the error excess of each form, as a share of one."""

    tau: float
    excess: float
    bounds: dict[str, float]


@dataclass(frozen=True)
class Tightness:
    """How loose a transform is: the smallest surrogate excess / T(error excess); 1 is attained."""

    tau: float
    found: float
    """For the stated T, by a random search over single points."""
    computed: float
    """For the stated T, by the tighter one."""
    tighter: float
    """For the tighter T, by the search."""


@dataclass(frozen=True)
class Answer:
    """All that the command prints and the page shows."""

    question: Question
    rows: tuple[Row, ...]
    tightness: tuple[Tightness, ...]
    gaps: dict[float, float]
    """tau -> at most this large is the gap for bounded scores where the input decides the label."""
    searches: tuple[Search, ...]

    @property
    def verdict(self) -> str:
        """What the first excess guarantees at tau = 1 and at the first other tau, in words."""
        first = [row for row in self.rows if row.excess == self.rows[0].excess]
        baseline = next(row for row in first if row.tau == 1)
        other = next((row for tau in self.question.taus for row in first if row.tau == tau != 1), None)
        clauses = [_clause(row) for row in (baseline, other) if row is not None]
        return (
            f"With {self.question.classes} classes, {'; '.join(clauses)}. "
            "These are bounds on the excess over the best classifier's error, not on the error itself."
        )


def answer(question: Question) -> Answer:
    """Look everything up; with `problems`, also search for counter-examples.

    Raises: LegatoValueError for a question out of range.
    """
    for tau in question.taus:
        check(tau, question.classes)
    if not question.taus or not question.excesses or not np.all(not_negative("excess", question.excesses) < np.inf):
        raise errors.argument(
            "excess", expected="one or more finite numbers, and one or more taus", got=question.excesses
        )
    taus = tuple(sorted({1.0, *question.taus}))
    n, generator = question.classes, np.random.default_rng(question.seed)
    rows = [Row(t, e, {f: bound(e, t, n) for f, bound in FORMS.items()}) for e in question.excesses for t in taus]
    gaps = {t: gap_bounded(question.sum_exponential_risk, t, n, question.score_bound) for t in taus}
    tightness = tuple(_tightness(tau, question, generator) for tau in taus)
    return Answer(question, tuple(rows), tightness, gaps, tuple(searches(taus, n, question.problems, generator)))


def searches(taus: Sequence[float], n: int, problems: int, generator: np.random.Generator) -> list[Search]:
    """Look for counter-examples to the bounds, on `problems` random problems for each claim and tau; none for 0 problems.

    The error bounds are checked with at most 6 classes, those under attack with 2 to 4.
    """
    if not problems:
        return []
    few = min(n, 6)
    found = []
    for tau in sorted({*CHECKED, *taus}):
        found.append(counterexamples.error_bound_problems(tau, few, problems, generator))
        found.append(counterexamples.error_bound_problems(tau, few, problems, generator, tight=True))
        found.append(counterexamples.adversarial_problems(tau, problems, generator))
        found.append(counterexamples.chain_problems(tau, problems, generator))
    return found


def claims(found: Sequence[Search]) -> dict[str, str]:
    """Claim -> its honest words over all taus."""
    words = {}
    for claim in dict.fromkeys(search.claim for search in found):
        mine = [search for search in found if search.claim == claim]
        total = Search(
            claim, np.nan, sum(s.problems for s in mine), sum(s.violations for s in mine), max(s.closest for s in mine)
        )
        taus = ", ".join(f"{search.tau:g}" for search in mine)
        words[claim] = f"{total.words} (tau = {taus}); the closest reached {total.closest:.4f} of what is allowed"
    return words


def write_page(found: Answer, folder: Path) -> Path:
    """Write index.html and the plot as PNG; gives the path of index.html."""
    return page.write(guarantee_page(found), folder)


def guarantee_page(found: Answer) -> Page:
    """The page of an answer."""
    asked = found.question
    panels = [_tightness_panel(found), _gap_panel(found)]
    if found.searches:
        panels.append(_search_panel(found))
    return Page(
        title=f"legato guarantee: {asked.classes} classes",
        verdict=found.verdict,
        figure=_figure(asked),
        tables=(_table(found),),
        code=f"from legato.losses.guarantees import error_bound\n\nerror_bound({asked.excesses[0]:g}, tau={asked.taus[0]:g}, n={asked.classes})",
        panels=tuple(panels),
        method=(
            ("surrogate excess", "R_tau(h) - R_tau*(H) + M_tau(H): the expected loss minus the least that any scores can have at each input"),
            ("error excess", "the error rate minus that of the best classifier, Bayes'"),
            ("stated", "the paper's transform, inverted numerically; arXiv 2304.07288, as derived in docs/methods/guarantees.md"),
            ("explicit", "the square root or straight line that lies above it"),
            ("tighter (ours)", "the paper's for tau <= 1; proved in closed form up to tau = 1.5 and from 2 on; numerical in between"),
            ("not covered", "sets of models that cannot give every combination of scores: their gap has to be added to the excess"),
            ("seed", str(asked.seed)),
        ),
    )  # fmt: skip


def points(share: float) -> str:
    """`14.1`: a share of one in percentage points."""
    return f"{100 * share:.1f}"


def _clause(row: Row) -> str:
    loss = "nats of cross-entropy (tau = 1)" if row.tau == 1 else f"of the comp-sum loss at tau = {row.tau:g}"
    stated, tight = row.bounds["stated"], row.bounds["tighter (ours)"]
    ours = f" ({points(tight)} by our tighter bound)" if points(tight) != points(stated) else ""
    what = (
        f"an error at most {points(stated)} points above the best possible" if stated < 1 else "nothing about the error"
    )
    return f"an excess of {row.excess:g} {loss} guarantees {what}{ours}"


def _tightness(tau: float, asked: Question, generator: np.random.Generator) -> Tightness:
    n = asked.classes
    b = np.geomspace(counterexamples.SMALLEST_ERROR, 1, 400)
    stated, tight = (partial(bound, tau=tau, n=n) for bound in (transform, tight_transform))
    search = partial(counterexamples.smallest_ratio, tau=tau, n=n, generator=generator, rounds=asked.rounds)
    return Tightness(tau, search(stated), float(np.min(tight(b) / stated(b))), search(tight))


def _figure(asked: Question) -> Figure:
    taus = np.linspace(0, max(2.0, *asked.taus), 61)
    excesses = np.array(asked.excesses[:2])
    heights = {
        form: np.array([100 * bound(excesses, float(tau), asked.classes) for tau in taus])
        for form, bound in FORMS.items()
    }
    panels = {
        f"points of error, for an excess of {excess:g}": [
            Line(form, form, taus.tolist(), *(heights[form][:, place],) * 3) for form in FORMS
        ]
        for place, excess in enumerate(excesses)
    }
    return plots.lines(
        "bounds", panels, palette.colours(tuple(FORMS), "explicit"), xlabel="tau", logarithmic=False,
        alt=f"The bound on the error excess against tau, with {asked.classes} classes",
        caption="The error is at most this many points above the best possible. Losses of different tau differ in scale, so that an "
        "equal excess is not equally easy to reach: the curves say what is guaranteed, not which tau is better.",
    )  # fmt: skip


def _table(found: Answer) -> Table:
    rows = tuple(
        (
            Cell(f"{row.tau:g}", row.tau),
            Cell(f"{row.excess:g}", row.excess),
            *(Cell(points(b), b) for b in row.bounds.values()),
        )
        for row in found.rows
    )
    return Table(
        ("tau", "surrogate excess", *FORMS), rows, "The error is at most this many points above the best classifier's"
    )


def _tightness_panel(found: Answer) -> Panel:
    rows = tuple(
        (Cell(f"{t.tau:g}", t.tau), *(Cell(f"{x:.3f}", x) for x in (t.found, t.computed, t.tighter)))
        for t in found.tightness
    )
    table = Table(
        ("tau", "stated, found", "stated, computed", "tighter, found"),
        rows,
        "Smallest surrogate excess / T(error excess)",
    )
    text = (
        "1 is attained: no larger transform can hold. 'Found' is a random local search over class probabilities at one point with at most "
        "12 classes; 'computed' compares the stated transform with the tighter one. Error excesses below 1 point are left out."
    )
    return Panel("How tight?", text, tables=(table,))


def _gap_panel(found: Answer) -> Panel:
    asked = found.question
    rows = tuple((Cell(f"{tau:g}", tau), Cell(f"{gap:.4g}", gap)) for tau, gap in found.gaps.items())
    text = (
        f"Where the input decides the label, scores lie in [-{asked.score_bound:g}, {asked.score_bound:g}], and the best risk of the "
        f"sum-exponential loss is {asked.sum_exponential_risk:g}, the minimizability gap is at most this large. It belongs to the excess."
    )
    return Panel("The gap", text, tables=(Table(("tau", "gap at most"), rows),))


def _search_panel(found: Answer) -> Panel:
    rows = tuple(
        (Cell(s.claim), Cell(f"{s.tau:g}", s.tau), Cell(s.words), Cell(f"{s.closest:.4f}", s.closest))
        for s in found.searches
    )
    table = Table(("claim", "tau", "outcome", "closest"), rows)
    return Panel(
        "Does it hold?", "Random problems, exact numbers. A search that finds nothing is no proof.", tables=(table,)
    )
