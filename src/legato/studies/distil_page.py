"""The page of a distilled set: what students reach on it against chosen real images, the pictures, and what it took."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from legato.distillation import DistilledSet, Graded, label_robust_score
from legato.lab import page, palette, plots, statistics
from legato.lab.page import Cell, Figure, Page, Panel, Picture, Table
from legato.lab.plots import Interval, Line
from legato.lab.statistics import Estimate
from legato.studies.distil import ARMS, FULL, KMEANS, RANDOM, SELECTIONS, TINY, Asked, Made

SHOWN = 60
"""Pictures on the page, at most."""


def write(found: Made, asked: Asked, title: str, command: str, folder: Path) -> Path:
    """Write the page; gives the path of index.html."""
    return page.write(build(found, asked, title, command), folder)


def build(found: Made, asked: Asked, title: str, command: str) -> Page:
    """Everything in one page."""
    panels = [_pictures(found.tiny), _progress(found.tiny), *([_others(found)] if found.others else [])]
    return Page(
        title=f"legato distill: {title}",
        verdict=verdict(found),
        figure=_forest(found),
        tables=(table(found.arms),),
        code=CODE,
        panels=tuple(panel for panel in panels if panel),
        method=_method(found, asked, command),
    )


CODE = """from legato.distillation import DistilledSet

tiny = DistilledSet.load("tiny.safetensors")
model = tiny.train_student(make_net())
scores = model(tiny.preprocessing.apply(raw_test_inputs))
"""


def verdict(found: Made) -> str:
    """Whether it beats random and k-means, in a sentence each."""
    told = []
    for arm in (RANDOM, KMEANS):
        difference = statistics.t_interval(_paired(found.arms, arm))
        word = statistics.word(difference.low, difference.high)
        told.append(f"better than {arm}: {word}, {difference.text(100, 1)} points")
    score = label_robust_score(*(float(np.mean(found.arms[arm].accuracies)) for arm in (FULL, TINY, RANDOM)))
    mean = 100 * float(np.mean(found.arms[TINY].accuracies))
    return (
        f"{found.tiny.ipc} a class reach {mean:.1f}% of test rows. {'; '.join(told).capitalize()}. Label-robust score {score:.2f}"
    )  # fmt: skip


def table(arms: Mapping[str, Graded], caption: str = "") -> Table:
    """Accuracy of each arm with its interval over students, and the learning rate that validation data chose."""
    colours = palette.colours(ARMS, FULL)
    rows = tuple(
        (
            Cell(arm),
            Cell(_share(graded.accuracies).text(100, 1), float(np.mean(graded.accuracies))),
            Cell(f"{100 * graded.validation:.1f}", graded.validation),
            Cell(f"{graded.learning_rate:g}", graded.learning_rate),
        )
        for arm, graded in arms.items()
    )
    head = ("students on", "test accuracy, % [95%]", "validation, %", "learning rate")
    return Table(head, rows, caption, tuple(colours[arm] for arm in arms))


def _share(accuracies: Sequence[float]) -> Estimate:
    """Their mean with its interval, which ends at 0 and 1."""
    found = statistics.t_interval(accuracies)
    return Estimate(found.mean, max(0.0, found.low), min(1.0, found.high), found.count)


def _paired(arms: Mapping[str, Graded], arm: str) -> list[float]:
    return [a - b for a, b in zip(arms[TINY].accuracies, arms[arm].accuracies, strict=True)]


def _forest(found: Made) -> Figure:
    rows = []
    for arm in (*SELECTIONS, FULL):
        e = statistics.t_interval(_paired(found.arms, arm))
        rows.append(
            Interval("distilled minus", arm, arm, *(100 * float(np.clip(v, -1, 1)) for v in (e.mean, e.low, e.high)))
        )
    words = (
        "One distilled set; students of equal seeds are paired, and random images and k-means are drawn anew for each."
    )
    return plots.forest(
        "students", rows, palette.colours(ARMS, FULL), unit="points of test accuracy", alt=verdict(found), caption=words
    )


def _pictures(tiny: DistilledSet) -> Panel | None:
    if tiny.images.dim() != 4:
        return None
    pixels = (tiny.pictures() * 255).round().to("cpu").byte().numpy()
    names = tiny.class_names or tuple(map(str, range(int(tiny.labels.max()) + 1)))
    shown = [
        Picture(plots.thumbnail(image if len(image) != 2 else image[:1]), names[label])
        for image, label in zip(pixels[:SHOWN], tiny.labels[:SHOWN].tolist(), strict=True)
    ]
    text = "What students are trained on, taken back from what networks see and cut to 0 .. 1."
    return Panel("The distilled images", text, pictures=tuple(shown))


def _progress(tiny: DistilledSet) -> Panel:
    history = tiny.provenance["history"]
    steps = [entry["step"] for entry in history]
    colours = palette.colours(ARMS, FULL)
    curves = {
        "matching loss": (steps[1:], [entry["loss"] for entry in history[1:]]),
        "validation accuracy, %": (steps, [100 * entry["validation"] for entry in history]),
        "learned step size": (steps, [entry["alpha"] for entry in history]),
    }
    shown = {}
    for name, (x, values) in curves.items():
        y = np.array(values)
        shown[name] = [Line(TINY, "", x, y, y, y, tiny.steps if tiny.steps in x else None)]
    text = f"The set of step {tiny.steps} was kept, by validation data. {tiny.stopped}".strip()
    if len(steps) < 2:
        return Panel("How it went", text)
    figure = plots.lines(
        "progress", shown, colours, xlabel="outer step", logarithmic=False, alt="loss, accuracy and step size by outer step",
        caption="A matching loss of 1: students end as far from the expert's weights as they began.",
    )  # fmt: skip
    return Panel("How it went", text, figures=(figure,))


def _others(found: Made) -> Panel:
    tables = tuple(table(arms, caption=name) for name, arms in found.others.items())
    return Panel("Other networks", "The images were made for none of these.", tables=tables)


def _method(found: Made, asked: Asked, command: str) -> tuple[tuple[str, str], ...]:
    told, recipe = found.tiny.provenance, asked.recipe
    best = 100 * (1 - float(np.mean(told["expert_errors"])))
    memory = "" if np.isnan(found.peak_mib) else f"; the process held {found.peak_mib:.0f} MiB at most"
    schooling = asked.schooling
    return (
        ("experts", f"{told['experts']} of {recipe.epochs} epochs, {best:.1f}% of validation rows in the mean"),
        ("matching", ", ".join(f"{key} {value}" for key, value in told["settings"].items())),
        ("students", f"{asked.students} an arm, {schooling.steps} steps of at most {schooling.batch_size} rows, final accuracy"),
        ("learning rates", "each arm chose among the same ones on validation rows; test rows were read once an arm, at the end"),
        ("label-robust score", "DD-Ranking's formula with weight 1/2, from the accuracies above: its score, not its protocol"),
        ("cost", f"{found.minutes:.1f} minutes, and {found.minutes_judged:.1f} to compare{memory}"),
        ("run again", command),
    )  # fmt: skip
