"""What the page of a comparison shows; every part is a plain function of the result."""

import numpy as np
from numpy.typing import NDArray

from legato import metrics
from legato.lab import palette, plots
from legato.lab.page import Cell, Figure, Page, Panel, Picture, Table
from legato.lab.plots import Interval, Line
from legato.lab.statistics import t_interval
from legato.studies import examples, objectives
from legato.studies.plan import index
from legato.studies.result import Result
from legato.studies.summary import ArmRow, condition


def compare_page(result: Result) -> Page:
    """The whole page."""
    colours = palette.colours(result.plan.arms, result.plan.baseline)
    panels = [
        _profiles(result, colours),
        _curves(result, colours),
        _calibration(result, colours),
        _classes(result),
        _examples(result),
    ]
    return Page(
        title=f"legato compare: {result.plan.setting.data}",
        verdict=result.verdict,
        figure=_forest(result, colours),
        tables=tuple(_table(result, noise, colours) for noise in result.plan.label_noise),
        code=result.code,
        panels=tuple(panel for panel in panels if panel is not None),
        method=_method(result),
    )


def _label(arm: str) -> str:
    return objectives.parse(arm).label


def _forest(result: Result, colours: dict[str, str]) -> Figure | None:
    rows = [
        Interval(
            condition(row.noise),
            row.arm,
            row.label,
            *(
                100 * v
                for v in (row.difference.difference.mean, row.difference.difference.low, row.difference.difference.high)
            ),
        )
        for row in result.summary.rows
        if row.difference
    ]
    if not rows:
        return None
    base = _label(result.plan.baseline)
    return plots.forest("difference", rows, colours, unit=f"points of test accuracy more than {base}", alt=result.verdict,
                        caption=f"Paired over {len(result.plan.seeds)} seeds; the line at 0 is no difference to {base}.")  # fmt: skip


def _table(result: Result, noise: float, colours: dict[str, str]) -> Table:
    columns = (
        "objective",
        "rate",
        "accuracy %",
        "difference",
        "over items",
        "p (Holm)",
        "NLL",
        "ECE raw",
        "ECE scaled",
        "ECE true",
        "sensitivity",
        "NLL sens.",
        "step time",
        "diverged",
    )
    rows = result.summary.at(noise)
    return Table(
        columns,
        tuple(_row(row) for row in rows),
        f"{condition(noise)[0].upper()}{condition(noise)[1:]}",
        tuple(colours[row.arm] for row in rows),
    )


def _row(row: ArmRow) -> tuple[Cell, ...]:
    difference = row.difference
    return (
        Cell(row.label),
        Cell(f"{row.learning_rate:g}", row.learning_rate),
        Cell(row.accuracy.text(100, 1), row.accuracy.mean),
        Cell(difference.difference.text(100, 1), difference.difference.mean) if difference else Cell("baseline", 0.0),
        Cell(f"[{100 * row.over_items.low:.1f}, {100 * row.over_items.high:.1f}]", row.over_items.low)
        if row.over_items
        else Cell("", 0.0),
        Cell(f"{difference.p_value:.2g}", difference.p_value) if difference else Cell("", 1.0),
        *(Cell(f"{e.mean:.3f}", e.mean) for e in (row.nll_scaled, row.ece_raw, row.ece_scaled, row.ece_true)),
        *(Cell(f"{e.mean:.3f}", e.mean) if e else Cell("", None) for e in (row.sensitivity, row.sensitivity_nll)),
        Cell(f"{row.step_ratio[0]:.2f}x", row.step_ratio[0]) if row.step_ratio else Cell("", None),
        Cell(str(row.diverged), row.diverged),
    )


def _band(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """[S, X] -> mean and 95% interval at each x."""
    estimates = [t_interval(column) if len(column) > 1 else None for column in values.T]
    mean = values.mean(axis=0)
    low = np.array([e.low if e else m for e, m in zip(estimates, mean, strict=True)])
    high = np.array([e.high if e else m for e, m in zip(estimates, mean, strict=True)])
    return mean, low, high


def _profiles(result: Result, colours: dict[str, str]) -> Panel | None:
    plan, done = result.plan, index(result.store.records())
    if plan.fixed_rates or len(plan.learning_rates) < 2:
        return None

    def line(noise: float, arm: str) -> Line:
        accuracy = np.array(
            [
                [100 * (1 - done[plan.trial(noise, arm, r, s)]["validation_error"]) for r in plan.learning_rates]
                for s in plan.seeds
            ]
        )
        return Line(arm, _label(arm), plan.learning_rates, *_band(accuracy), marked=result.summary.rates[noise, arm])

    figure = plots.lines("learning-rates", {condition(n): [line(n, a) for a in plan.arms] for n in plan.label_noise}, colours, xlabel="learning rate",
                         logarithmic=True, alt="Validation accuracy against learning rate for each objective")  # fmt: skip
    return Panel(
        "Does the learning rate matter?",
        "Validation accuracy in percent at every rate that was tried; the dot is the rate that was chosen.",
        (figure,),
    )


def _curves(result: Result, colours: dict[str, str]) -> Panel:
    plan, done = result.plan, index(result.store.records())

    def line(noise: float, arm: str) -> Line:
        curves = [
            done[plan.trial(noise, arm, result.summary.rates[noise, arm], s, reads_test=True)]["curves"][
                "validation_error"
            ]
            for s in plan.seeds
        ]
        epochs = max(len(curve) for curve in curves)
        table = np.array(
            [
                [100 * (1 - (value if value is not None else 1.0)) for value in curve + [None] * (epochs - len(curve))]
                for curve in curves
            ]
        )
        return Line(arm, _label(arm), list(range(1, epochs + 1)), *_band(table))

    figure = plots.lines("learning-curves", {condition(n): [line(n, a) for a in plan.arms] for n in plan.label_noise}, colours, xlabel="epoch",
                         logarithmic=False, alt="Validation accuracy after each epoch for each objective")  # fmt: skip
    labels = (
        "corrupted like the training labels"
        if plan.setting.validation_labels == "noisy" and any(plan.label_noise)
        else "as they are"
    )
    return Panel(
        "How does it learn?",
        f"Validation accuracy in percent at the chosen rate, mean and 95% interval over seeds. Validation labels are {labels}.",
        (figure,),
    )


def _calibration(result: Result, colours: dict[str, str]) -> Panel:
    plan = result.plan
    panels = {}
    for noise in plan.label_noise:
        for arm in plan.arms:
            tables = [
                result.arrays(plan.trial(noise, arm, result.summary.rates[noise, arm], s, reads_test=True))
                for s in plan.seeds
            ]
            sure = np.concatenate([t["raw_confidence"] for t in tables])
            right = np.concatenate([t["prediction"] == t["seen"] for t in tables])
            confidence, accuracy, count = metrics.reliability(sure, right)
            kept = count >= 10
            panels[f"{_label(arm)}, noise {noise:g}"] = (arm, confidence[kept], accuracy[kept])
    figure = plots.reliability("reliability", panels, colours, alt="Accuracy against confidence for each objective")
    return Panel(
        "Can its probabilities be believed?",
        "Accuracy against confidence, raw, on test labels with the noise of training. Below the diagonal is overconfident.",
        (figure,),
    )


def _classes(result: Result) -> Panel:
    plan, names = result.plan, result.about["class_names"]
    noise = plan.label_noise[-1]
    counts = {}
    for arm in plan.arms:
        tables = [
            result.arrays(plan.trial(noise, arm, result.summary.rates[noise, arm], s, reads_test=True))
            for s in plan.seeds
        ]
        counts[arm] = np.sum([metrics.confusion(t["prediction"], t["true"], len(names)) for t in tables], axis=0)
    recall = {arm: np.diag(c) / np.maximum(c.sum(axis=1), 1) for arm, c in counts.items()}
    rows = tuple(
        (Cell(name), *(Cell(f"{100 * recall[arm][i]:.1f}", float(recall[arm][i])) for arm in plan.arms))
        for i, name in enumerate(names)
    )
    by_class = Table(
        ("class", *(_label(arm) for arm in plan.arms)), rows, f"Percent of each class that is found, {condition(noise)}"
    )
    base = counts[plan.baseline] * (1 - np.eye(len(names), dtype=np.int64))
    worst = [np.unravel_index(i, base.shape) for i in np.argsort(-base, axis=None, kind="stable")[:8] if base.flat[i]]
    pairs = tuple(
        (
            Cell(f"{names[a]} taken for {names[b]}"),
            *(
                Cell(f"{100 * counts[arm][a, b] / max(1, counts[arm][a].sum()):.1f}", float(counts[arm][a, b]))
                for arm in plan.arms
            ),
        )
        for a, b in worst
    )
    confused = Table(
        ("pair", *(_label(arm) for arm in plan.arms)),
        pairs,
        f"The pairs that {_label(plan.baseline)} confuses most, in percent of the true class",
    )
    return Panel("Which classes?", "", tables=(by_class, confused))


def _examples(result: Result) -> Panel | None:
    kept = result.store.read_arrays(examples.NAME)
    if not kept or not len(kept["images"]):
        return None
    names = result.about["class_names"]
    pictures = tuple(
        Picture(plots.thumbnail(image), f"{names[true]}: {_label(result.plan.arms[arm])}, noise {noise:g}")
        for image, true, arm, noise in zip(kept["images"], kept["true"], kept["arm"], kept["noise"], strict=True)
    )
    return Panel(
        "What only one objective gets right",
        "Test pictures that one objective gets right in at least half of the seeds more than any other.",
        pictures=pictures,
    )


def _method(result: Result) -> tuple[tuple[str, str], ...]:
    plan, about = result.plan, result.about
    setting, origin = plan.setting, about["provenance"]
    rows, machine = about["rows"], about["environment"]
    seconds = sum(record.seconds for record in result.store.records())
    return (
        ("data", f"{origin['name']} ({origin['source']}), {origin['licence']}. {origin['citation']}"),
        ("done to it", "\n".join(origin["notes"]) or "nothing"),
        ("rows", f"{rows['train']} training, {rows['validation']} validation, {rows['test']} test"),
        ("label noise", f"{', '.join(f'{n:.0%}' for n in plan.label_noise)}, {setting.noise_kind}: real data, synthetic corruption; validation labels {setting.validation_labels}"),
        ("model", f"{setting.model}, {setting.epochs} epochs, batches of {setting.batch_size}, {setting.optimizer}, weight decay {setting.weight_decay:g}, cosine schedule"),
        ("learning rates", f"{', '.join(f'{r:g}' for r in plan.learning_rates)} for every objective; chosen by validation {plan.select_by}"),
        ("seeds", f"{plan.seeds[0]} to {plan.seeds[-1]}; each has its own validation cut, noise, initial weights and batches, equal for all objectives"),
        ("statistics", "paired t intervals, 95%, Holm-corrected over objectives; 'over items' also draws the test items again (two-way bootstrap)"),
        ("test set", "read once for each objective and seed, by the model of the chosen learning rate"),
        ("machine", ", ".join(f"{key} {value}" for key, value in machine.items())),
        ("cost", f"{seconds:.0f} seconds of training on one thread each"),
        ("draw again", "legato page FOLDER"),
    )  # fmt: skip
