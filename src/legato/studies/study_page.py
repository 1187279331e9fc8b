"""The page of a study: the claims with their verdicts on top, then each comparison in short."""

from collections import Counter
from collections.abc import Mapping, Sequence

from legato.lab import palette, plots
from legato.lab.claims import NOT_TESTED, WORDS, Judged
from legato.lab.page import Cell, Figure, Page, Panel, Table
from legato.lab.plots import Interval
from legato.studies import panels
from legato.studies.result import Result
from legato.studies.spec import Form, Spec

TOLD = {
    "shows": ("shows", "show"),
    "does not show": ("does not show", "do not show"),
    "undecided": ("is undecided", "are undecided"),
    NOT_TESTED: ("is not tested here", "are not tested here"),
}


def build(name: str, spec: Spec, form: Form, results: Mapping[str, Result], judged: Sequence[Judged]) -> Page:
    """Everything in one page; `judged` is empty but for the form `confirm`."""
    shown = [*(_part(part, result) for part, result in results.items()), *spec.panels(results)]
    return assemble(name, spec.title, form, judged, shown, _method(name, spec, form, results))


def assemble(
    name: str, title: str, form: Form, judged: Sequence[Judged], shown: Sequence[Panel], method: tuple[tuple[str, str], ...]
) -> Page:  # fmt: skip
    """The page of any study: the verdicts on top, then what it shows, then how it was measured."""
    figures = _forests(judged, _verdict(judged)) if judged else []
    verdict = _verdict(judged) if judged else f"Form {form}: everything runs. Only the form confirm gives verdicts"
    return Page(
        title=f"legato study {name}: {title}",
        verdict=verdict,
        figure=figures[0] if figures else None,
        tables=(_claims(judged),) if judged else (),
        code="",
        panels=(*_words(judged, figures[1:]), *shown),
        method=method,
    )


def _verdict(judged: Sequence[Judged]) -> str:
    count = Counter(j.verdict for j in judged)
    told = [f"{count[word]} {one if count[word] == 1 else many}" for word, (one, many) in TOLD.items() if count[word]]
    return f"Of {len(judged)} claims {', '.join(told)}"


def _forests(judged: Sequence[Judged], verdict: str) -> list[Figure]:
    """The differences with their intervals, a figure for each unit, that of most claims first."""
    measured = [j for word in WORDS for j in judged if j.verdict == word and j.difference is not None]
    units = [unit for unit, _ in Counter(j.claim.unit for j in measured).most_common()]
    return [_forest([j for j in measured if j.claim.unit == unit], unit, verdict) for unit in units]


def _forest(judged: Sequence[Judged], unit: str, verdict: str) -> Figure:
    rows = [
        Interval(j.verdict, j.verdict, j.claim.id, *(j.claim.shown(v) for v in (d.mean, d.low, d.high)))
        for j in judged
        if (d := j.difference) is not None
    ]
    colours = palette.colours(WORDS[:3], WORDS[2])
    name = "claims" if unit == "points" else f"claims-{unit.replace(' ', '-')}"
    caption = "Intervals are paired over seeds and corrected over all tested claims; the line at 0 is no difference."
    return plots.forest(name, rows, colours, unit=f"{unit} in favour of the claim", alt=verdict, caption=caption)


def _claims(judged: Sequence[Judged]) -> Table:
    rows = tuple(
        (
            Cell(j.claim.id),
            Cell(j.verdict),
            Cell(j.told, j.difference.mean if j.difference else None),
            Cell(j.needed, j.claim.minimal_effect if j.difference else None),
            Cell(f"{j.p_value:.2g}", j.p_value) if j.p_value is not None else Cell("", None),
        )
        for j in judged
    )
    return Table(("claim", "verdict", "points [95%, Holm]", "needed", "p"), rows)


def _words(judged: Sequence[Judged], figures: Sequence[Figure]) -> list[Panel]:
    told = [
        (j.claim.id, f"{j.claim.words}{f' Not tested here: {j.claim.reason}.' if j.claim.reason else ''}")
        for j in judged
    ]
    return [Panel("The claims in words", figures=tuple(figures), items=tuple(told))] if told else []


def _part(part: str, result: Result) -> Panel:
    """A comparison's verdict, figure and tables, as on its own page."""
    whole = panels.compare_page(result)
    figures = () if whole.figure is None else (whole.figure.renamed(f"{_file_name(part)}-{whole.figure.name}"),)
    return Panel(part, whole.verdict, figures=figures, tables=whole.tables)


def _file_name(part: str) -> str:
    """The name of a part, which may hold names of classes, as part of a file's name."""
    return "".join(letter if letter.isalnum() else "-" for letter in part)


def _method(name: str, spec: Spec, form: Form, results: Mapping[str, Result]) -> tuple[tuple[str, str], ...]:
    first = next(iter(results.values()))
    own = [
        (f"{part}: {key}", value) for part, r in results.items() for key, value in panels.method(r) if key in PER_PART
    ]
    shared = [(key, value) for key, value in panels.method(first) if key in SHARED]
    seconds = sum(record.seconds for record in first.store.records())
    return (*own, *shared, *method_lines(name, spec.paper, spec.cut, form, seconds))


def method_lines(name: str, paper: str, cut: str, form: Form, seconds: float) -> tuple[tuple[str, str], ...]:
    """What the pages of all studies say of how they were measured."""
    return (
        ("paper", f"arXiv {paper}"),
        ("form", form),
        ("cut to", cut or "nothing was cut"),
        ("cost", f"{seconds / 60:.0f} minutes of computing on one thread each"),
        ("run again", f"legato study {name}{FLAGS[form]}"),
    )


FLAGS = {"smoke": " --smoke", "full": "", "confirm": " --confirm"}
PER_PART = ("data", "model", "learning rates", "seeds", "label noise")
SHARED = ("statistics", "test set", "machine")
