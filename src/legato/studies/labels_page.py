"""What `legato labels` writes: the list of suspects, and a page with the map of the rows and, in a test, how many flips are found."""

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato.flatness.dynamics import MEASURES
from legato.lab import drawing, files, page, palette, plots
from legato.lab.drawing import FAINT, MUTED, box, mute_ticks, overlay, sheet
from legato.lab.page import Cell, Figure, Page, Panel, Picture, Table
from legato.lab.palette import INK
from legato.lab.plots import Line
from legato.studies.labels import COLUMNS, Found, words_of

SHOWN = 25
"""Rows of the table of suspects."""
PICTURES = 24
DOTS = 600
"""Rows in the background of the map; each costs a hundred bytes, twice."""

CODE = """import torch
from legato.flatness.dynamics import Dynamics

dynamics = Dynamics(num_samples={count}, num_classes={classes})
# in your own loop, after each forward pass in training:
#     dynamics.record(out, y, index)
suspects = dynamics.suspicion("{measure}").argsort(descending=True)
suggested = dynamics.suggested()"""


def write(found: Found, folder: Path, top: int = 100) -> Path:
    """Write suspects.csv, with the `top` most suspicious rows or all of them for 0, and the page; gives the path of index.html."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "suspects.csv", table(found, top).encode())
    return page.write(labels_page(found), folder)


def table(found: Found, top: int = 100) -> str:
    """The `top` most suspicious rows as CSV, all of them for 0: rank, row, file, labels, suspicion, measures, and what was flipped."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    file, flip = ["file"] * bool(found.names), ["flipped"] * bool(found.question.label_noise)
    writer.writerow(["rank", "row", *file, "given", "suggested", "suspicion", *COLUMNS, *flip])
    for rank, place in enumerate(found.order[: top or None], start=1):
        labels = (words_of(found.class_names, code) for code in (found.given[place], found.suggested[place]))
        numbers = (f"{values[place]:.6g}" for values in (found.suspicion, *found.columns.values()))
        flipped = [int(found.flipped[place])] * len(flip)
        writer.writerow([rank, found.row[place], *found.names[place : place + 1], *labels, *numbers, *flipped])
    return out.getvalue()


def labels_page(found: Found) -> Page:
    """The page of what was found."""
    asked = found.question
    panels = [_test(found), _classes(found), _pictures(found)]
    return Page(
        title=f"legato labels: {found.name}",
        verdict=found.verdict,
        figure=_map(found),
        tables=(_suspects(found),),
        code=CODE.format(count=len(found.row), classes=len(found.class_names), measure=asked.measure),
        panels=tuple(panel for panel in panels if panel is not None),
        method=(
            *_about(found),
            ("recorded", "each row once an epoch, in training, before the step that learns from it"),
            ("suspicion", f"{asked.measure}: {MEANING[asked.measure]}"),
            ("what it cannot see", "labels that are wrong in the same way for whole groups of rows: the networks learn those like any others"),
            ("cost", f"{found.seconds:.0f} seconds"),
        ),
    )  # fmt: skip


def _about(found: Found) -> tuple[tuple[str, str], ...]:
    origin, asked = found.provenance, found.question
    noise = (
        f"{asked.label_noise:.0%}, {asked.noise_kind}: real data, synthetic corruption"
        if asked.label_noise
        else "none added"
    )
    done = [note for note in origin.notes if not note.startswith(("validation: ", "test: "))]
    return (
        ("data", f"{origin.name} ({origin.source}), {origin.licence}. {origin.citation}"),
        ("done to it", "\n".join(done) or "nothing"),
        ("rows", f"all {len(found.row):,} that are no test file's, in {len(found.class_names)} classes"),
        ("label noise", noise),
        ("model", f"{found.model}, {asked.objective}, {asked.epochs} epochs, batches of {asked.batch_size}, SGD with Nesterov momentum 0.9, "
                  f"constant learning rate {asked.learning_rate:g}"),
        ("seeds", f"0 to {asked.seeds - 1}: initial weights and batches; what they recorded is averaged"),
    )  # fmt: skip


MEANING = {
    "loss": "the mean cross-entropy of the given label, in nats",
    "confidence": "one minus the mean probability of the given label",
    "margin": "minus the area under the margin, the mean of the given label's score less the largest of the others",
    "forgetting": "how often a right answer was forgotten; rows that were never right come first",
}


def _map(found: Found) -> Figure:
    """Swayamdipta's map: variability across, confidence up. What was flipped is shown where it is known."""
    tested = bool(found.question.label_noise)
    count = int(found.flipped.sum()) if tested else int(found.disagrees.sum())
    suspects = found.order[: min(max(count, 1), drawing.MAX_POINTS)]
    background = np.setdiff1d(np.arange(len(found.row)), suspects)
    background = background[np.linspace(0, len(background) - 1, min(DOTS, len(background))).astype(int)]
    inks = palette.colours(("suspects", "flipped"))
    if tested:
        wrong = background[found.flipped[background]]
        layers = [(background, INK, 0.25), (wrong, inks["flipped"], 0.9), (suspects, inks["suspects"], 0.75)]
    else:
        layers = [(background, INK, 0.25), (suspects, inks["suspects"], 0.75)]

    def paint(width: int) -> Any:
        height = 380
        drawn = sheet(width, height)
        axes = box(drawn, 44, 22, width - 60, height - 72)
        axes.set(xlim=(0, 0.5), ylim=(0, 1), xticks=[0, 0.25, 0.5], yticks=[0, 0.5, 1])
        axes.grid(alpha=FAINT, color=INK, linewidth=0.8)
        for rows, colour, opacity in layers:
            x, y = found.columns["variability"][rows], found.columns["confidence"][rows]
            axes.plot(x, y, "o", color=colour, alpha=opacity, markersize=3, markeredgewidth=0)
        axes.set_xlabel("variability", fontsize=drawing.SMALL, alpha=MUTED)
        mute_ticks(axes)
        overlay(drawn).text(4, 14, "confidence", fontsize=drawing.SMALL, alpha=MUTED)
        return drawn

    told = f"Blue: the {len(suspects):,} most suspicious of {len(found.row):,} rows. Grey: {len(background):,} of the others."
    if tested:
        told += " Vermilion: of those, the ones that were flipped and missed."
    return drawing.figure(
        "map", paint, alt="Mean probability of the given label against its deviation over the training, a dot a row",
        caption=f"{told} Up: the mean probability of the given label. Across: its deviation over the epochs. Easy rows stand at the top left, "
        "ambiguous ones to the right, and at the bottom left those whose label the networks never come to believe.",
    )  # fmt: skip


def _suspects(found: Found) -> Table:
    tested, columns = bool(found.question.label_noise), found.columns
    rows = []
    for rank, place in enumerate(found.order[:SHOWN], start=1):
        given, suggested = (words_of(found.class_names, code) for code in (found.given[place], found.suggested[place]))
        cells = [Cell(str(rank), rank), Cell(_row(found, place), int(found.row[place])), Cell(given), Cell(suggested)]
        cells += [
            Cell(f"{values[place]:.3g}", float(values[place])) for values in (found.suspicion, columns["confidence"])
        ]
        cells += [Cell("flipped" if found.flipped[place] else "no")] * tested
        rows.append(tuple(cells))
    names = ("rank", "row", "given", "suggested", "suspicion", "confidence", *["flipped?"] * tested)
    return Table(names, tuple(rows), f"The {len(rows)} most suspicious labels; suspects.csv has more")


def _row(found: Found, place: int) -> str:
    return found.names[place] if found.names else str(found.row[place])


def _classes(found: Found) -> Panel | None:
    """Which classes stand for which, over all rows where the networks disagree."""
    wrong = np.flatnonzero(found.disagrees)
    if not len(wrong):
        return None
    pairs = Counter((int(found.given[place]), int(found.suggested[place])) for place in wrong)
    sizes = np.bincount(found.given, minlength=len(found.class_names))
    rows = tuple(
        (Cell(f"{words_of(found.class_names, a)}, looks like {words_of(found.class_names, b)}"), Cell(f"{n:,}", n),
         Cell(f"{100 * n / sizes[a]:.1f}", n / sizes[a]))
        for (a, b), n in sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:12]
    )  # fmt: skip
    table = Table(("pair", "rows", "% of the class"), rows)
    return Panel("Which classes?", "Rows for which another class has the larger mean probability. Classes that look alike come up here "
                 "too: not every row is a mistake of the labels.", tables=(table,))  # fmt: skip


def _pictures(found: Found) -> Panel | None:
    if found.pictures is None:
        return None
    pictures = []
    for rank, place in enumerate(found.order[:PICTURES], start=1):
        given, suggested = (words_of(found.class_names, code) for code in (found.given[place], found.suggested[place]))
        looks = f", looks like {suggested}" if given != suggested else ""
        was = f" (was {words_of(found.class_names, found.true[place])})" if found.flipped[place] else ""
        pictures.append(
            Picture(plots.thumbnail(found.pictures[place]), f"{rank}. row {_row(found, place)}: {given}{looks}{was}")
        )
    return Panel("The most suspicious", "In the order of suspicion, with the given label.", pictures=tuple(pictures))


def _test(found: Found) -> Panel | None:
    scores = found.scores()
    if not scores:
        return None
    share = found.flipped.mean()
    rows = tuple(
        (Cell(s.measure), Cell(f"{s.precision:.3f}", s.precision), Cell(f"{s.auc:.3f}", s.auc), Cell(s.precision_of_one.text()),
         Cell(s.auc_of_one.text()))
        for s in scores
    )  # fmt: skip
    table = Table(
        ("measure", "average precision", "AUC", "AP of one seed", "AUC of one seed"), rows,
        f"Flipped labels found, by each measure; a random ranking has {share:.3f} and 0.5",
    )  # fmt: skip
    colours = palette.colours(MEASURES)
    lines = [Line(m, m, *_precision(found.suspicions[m].mean(0), found.flipped)) for m in MEASURES]
    figure = plots.lines(
        "precision", {"percent of a list of suspects that were flipped": lines}, colours, xlabel="percent of the flipped labels in the list",
        logarithmic=False, alt="Precision against recall of the flipped labels for each measure",
        caption="From the left, the list of suspects grows longer.",
    )  # fmt: skip
    noise = f"{found.flipped.sum():,} of {len(found.row):,} labels were flipped first ({found.question.noise_kind})."
    text = f"{noise} Labels that were wrong before count as right here, so real mistakes that are found lower these numbers."
    return Panel("How well does it find wrong labels?", text, figures=(figure,), tables=(table,))


def _precision(suspicion: NDArray[np.float64], flipped: NDArray[np.bool_]) -> tuple[Any, ...]:
    """Recall 0 .. 100 in percent, and three times the precision in percent when that much is reached: a line without a band."""
    ranked = flipped[np.argsort(-suspicion, kind="stable")]
    hits, recall = np.cumsum(ranked), np.arange(101)
    at = np.searchsorted(hits, np.maximum(1, np.ceil(recall * ranked.sum() / 100)))
    precision = 100 * hits[at] / (at + 1)
    return recall.tolist(), precision, precision, precision
