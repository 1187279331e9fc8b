"""What the page of a comparison shows; every part is a plain function of the result."""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from legato import metrics
from legato.lab import palette, plots
from legato.lab.page import Cell, Figure, Page, Panel, Picture, Table
from legato.lab.plots import Interval, Line
from legato.lab.statistics import t_interval
from legato.studies import examples, objectives, watched
from legato.studies.classify import CHOSEN, TrialConfig
from legato.studies.language import LanguageConfig
from legato.studies.plan import Plan
from legato.studies.result import Result
from legato.studies.summary import condition
from legato.studies.tables import tables


def compare_page(result: Result) -> Page:
    """The whole page."""
    colours = palette.colours(result.plan.arms, result.plan.baseline)
    panels = [
        _profiles(result, colours),
        _curves(result, colours),
        watched.panel(result, colours),
        _choices(result),
        _calibration(result, colours),
        _classes(result) if result.about["class_names"] else None,
        _examples(result),
    ]
    return Page(
        title=f"legato compare: {result.plan.setting.data}",
        verdict=result.verdict,
        figure=_forest(result, colours),
        tables=tables(result, colours),
        code=result.code,
        panels=tuple(panel for panel in panels if panel is not None),
        method=method(result),
    )


def _label(arm: str) -> str:
    return objectives.parse(arm).label


def _forest(result: Result, colours: dict[str, str]) -> Figure | None:
    score = result.plan.judged_by
    rows = [
        Interval(
            condition(row.noise, score),
            row.arm,
            row.label,
            *(
                score.scale * v
                for v in (row.difference.difference.mean, row.difference.difference.low, row.difference.difference.high)
            ),
        )
        for row in result.summary.rows
        if row.difference
    ]
    if not rows:
        return None
    base = _label(result.plan.baseline)
    return plots.forest("difference", rows, colours, unit=f"{score.margin} {base}", alt=result.verdict, digits=score.digits,
                        caption=f"Paired over {len(result.plan.seeds)} seeds; the line at 0 is no difference to {base}.")  # fmt: skip


def _band(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """[S, X] -> mean and 95% interval at each x."""
    estimates = [t_interval(column) if len(column) > 1 else None for column in values.T]
    mean = values.mean(axis=0)
    low = np.array([e.low if e else m for e, m in zip(estimates, mean, strict=True)])
    high = np.array([e.high if e else m for e, m in zip(estimates, mean, strict=True)])
    return mean, low, high


def _profiles(result: Result, colours: dict[str, str]) -> Panel | None:
    plan = result.plan
    score = plan.judged_by
    if plan.fixed_rates or len(plan.learning_rates) < 2:
        return None

    def line(noise: float, arm: str) -> Line:
        stored = np.array(
            [
                [result.metrics(plan.trial(noise, arm, r, s))[f"validation_{score.key}"] for r in plan.learning_rates]
                for s in plan.seeds
            ]
        )
        shown = score.scale * score.value(stored)
        return Line(arm, _label(arm), plan.learning_rates, *_band(shown), marked=result.summary.rates[noise, arm])

    figure = plots.lines("learning-rates", _by_noise(plan, line), colours, xlabel="learning rate",
                         logarithmic=True, alt=f"Validation {score.name} against learning rate for each objective")  # fmt: skip
    return Panel(
        "Does the learning rate matter?",
        f"Validation {score.told} at every rate that was tried; the dot is the rate that was chosen.",
        (figure,),
    )


def _by_noise(plan: Plan, line: Callable[[float, str], Line]) -> dict[str, list[Line]]:
    """One small multiple for each level of label noise, with a line for each arm."""
    return {condition(noise, plan.judged_by): [line(noise, arm) for arm in plan.arms] for noise in plan.label_noise}


def _curves(result: Result, colours: dict[str, str]) -> Panel:
    plan, score = result.plan, result.plan.judged_by

    def line(noise: float, arm: str) -> Line:
        curves = [  # a run that diverged in its first epoch has none
            result.metrics(config)["curves"].get(score.curve, [None]) for config in result.readings(noise, arm)
        ]
        checks = max(len(curve) for curve in curves)
        whole = [curve + [None] * (checks - len(curve)) for curve in curves]
        stored = np.array([[score.lost if value is None else value for value in curve] for curve in whole])
        return Line(arm, _label(arm), list(range(1, checks + 1)), *_band(score.scale * score.value(stored)))

    figure = plots.lines("learning-curves", _by_noise(plan, line), colours, xlabel=score.check,
                         logarithmic=False, alt=f"Validation {score.name} after each {score.check} for each objective")  # fmt: skip
    return Panel(
        "How does it learn?",
        f"Validation {score.told} at the chosen rate, mean and 95% interval over seeds. {_validation_words(plan)}",
        (figure,),
    )


def _validation_words(plan: Plan) -> str:
    """A sentence on the validation data."""
    if not isinstance(plan.setting, TrialConfig):
        return "Without temperature; a run that is lost counts as a guess."
    noisy = any(plan.label_noise) and plan.setting.validation_labels == "noisy"
    return f"Validation labels are {'corrupted like the training labels' if noisy else 'as they are'}."


def _choices(result: Result) -> Panel | None:
    """What each selector went on with, epoch by epoch."""
    plan = result.plan
    selectors = [(n, arm) for n in plan.label_noise for arm in plan.arms if objectives.parse(arm).held_out]
    members = [str(m) for _, arm in selectors for m in objectives.parse(arm).loss.members]

    def line(member: str, shares: NDArray[np.float64]) -> Line:
        mean, low, high = _band(100 * shares)
        return Line(member, _label(member), range(1, len(mean) + 1), mean, low.clip(0), high.clip(max=100))

    shown = {
        f"{_label(arm)}, {condition(noise)}": [line(member, of) for member, of in shares.items()]
        for noise, arm in selectors
        if (shares := _shares(result, noise, arm))
    }
    if not shown:
        return None
    figure = plots.lines("choices", shown, palette.colours(list(dict.fromkeys(members)), members[0]), xlabel="epoch",
                         logarithmic=False, alt="Share of the steps with each member of a selector, by epoch")  # fmt: skip
    text = (
        "Percent of the steps of each epoch that were made with each member, at the chosen rate; mean and 95% interval over seeds. "
        "Runs that diverged are left out."
    )
    return Panel("What did the selector choose?", text, (figure,))


def _shares(result: Result, noise: float, arm: str) -> dict[str, NDArray[np.float64]]:
    """Member -> [S, E], its share of the steps of each epoch, in the runs that did not diverge; empty without such a run."""
    members = [str(member) for member in objectives.parse(arm).loss.members]
    rows = [result.metrics(config) for config in result.readings(noise, arm)]
    curves = [[row["curves"][f"{CHOSEN}{member}"] for member in members] for row in rows if not row["diverged"]]
    if not curves:
        return {}
    steps = np.diff(np.array(curves, dtype=np.float64), axis=-1, prepend=0)
    return dict(zip(members, (steps / steps.sum(1, keepdims=True)).swapaxes(0, 1), strict=True))


def _calibration(result: Result, colours: dict[str, str]) -> Panel:
    plan, score = result.plan, result.plan.judged_by
    figures = tuple(
        plots.reliability(
            f"reliability-{place}",
            {_label(arm): (arm, *_bins(result, noise, arm)) for arm in plan.arms},
            colours,
            alt=f"Accuracy against confidence for each objective, {condition(noise, score)}",
            caption=_capital(condition(noise, score)),
        )
        for place, noise in enumerate(plan.label_noise)
    )
    return Panel(
        "Can its probabilities be believed?",
        f"Accuracy against confidence, raw, on {score.truth}. Below the diagonal is overconfident.",
        figures,
    )


def _bins(result: Result, noise: float, arm: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean confidence and accuracy of the bins that hold ten or more rows, over all seeds."""
    bins = [result.metrics(config)["reliability"] for config in result.readings(noise, arm)]
    count = np.array([b["count"] for b in bins])
    total = count.sum(axis=0)
    kept = total >= 10

    def mean(key: str) -> NDArray[np.float64]:
        values = np.array([b[key] for b in bins], dtype=np.float64)  # None, an empty bin, becomes NaN
        found: NDArray[np.float64] = np.nansum(values * count, axis=0)[kept] / total[kept]
        return found

    return mean("confidence"), mean("accuracy")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _classes(result: Result) -> Panel:
    plan, names = result.plan, result.about["class_names"]
    noise = plan.label_noise[-1]
    counts = {}
    for arm in plan.arms:
        tables = [result.arrays(config) for config in result.readings(noise, arm)]
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


def method(result: Result) -> tuple[tuple[str, str], ...]:
    """How it was measured, as pairs of a word and what there is to say."""
    plan, about = result.plan, result.about
    origin = about["provenance"]
    rows, environment = about["rows"], result.store.read_environment()
    seconds = sum(record.seconds for record in result.records.values())
    return (
        ("data", f"{origin['name']} ({origin['source']}), {origin['licence']}. {origin['citation']}"),
        ("done to it", "\n".join(origin["notes"]) or "nothing"),
        ("rows", f"{rows['train']} training, {rows['validation']} validation, {rows['test']} test"),
        *_training(plan),
        ("learning rates", f"{', '.join(f'{r:g}' for r in plan.learning_rates)} for every objective; chosen by validation {plan.select_by}"),
        ("statistics", "paired t intervals, 95%, Holm-corrected over objectives; 'over items' also draws the test items again (two-way bootstrap)"),
        ("test set", "read once for each objective and seed, by the model of the chosen learning rate"),
        ("machine", machine(environment)),
        ("cost", f"{seconds:.0f} seconds of training on one thread each"),
        ("said during training", "\n".join(_warnings(result)) or "nothing"),
        ("draw again", "legato page FOLDER"),
    )  # fmt: skip


def machine(environment: Mapping[str, object]) -> str:
    """What the trials were measured with, in a line."""
    return ", ".join(f"{key} {value}" for key, value in environment.items() if value is not None and key != "also")


def _training(plan: Plan) -> tuple[tuple[str, str], ...]:
    """The lines on the labels, the model and its optimizer."""
    setting = plan.setting
    if isinstance(setting, LanguageConfig):
        normed = "with" if setting.qk_norm else "without"
        return (
            ("model", f"{setting.model}, {setting.heads} heads, {normed} qk-layernorm, on windows of {setting.length} bytes; rows above are bytes"),
            ("training", f"{setting.steps} steps of {setting.batch_size} windows, {setting.optimizer}, {setting.decay} weight decay {setting.weight_decay:g}, warm-up over {setting.warmup:.0%}, cosine schedule"),
            ("measured on", f"{setting.validation_rows} windows of validation text and as many of test text; the loss is cross-entropy at a temperature that was fitted on validation text, raw where a table says so; accuracy is the share of next bytes that are foretold"),
            ("seeds", f"{plan.seeds[0]} to {plan.seeds[-1]}; each has its own initial weights and batches, equal for all objectives"),
        )  # fmt: skip
    return (
        ("label noise", f"{', '.join(f'{n:.0%}' for n in plan.label_noise)}, {setting.noise_kind}: real data, synthetic corruption; validation labels {setting.validation_labels}"),
        ("model", f"{setting.model}, {setting.epochs} epochs, batches of {setting.batch_size}, {setting.optimizer}, weight decay {setting.weight_decay:g}, cosine schedule"),
        ("seeds", f"{plan.seeds[0]} to {plan.seeds[-1]}; each has its own validation cut, noise, initial weights and batches, equal for all objectives"),
    )  # fmt: skip


def _warnings(result: Result) -> list[str]:
    """What objectives warned of, each once, with the number of trials that said so."""
    said = Counter(text for record in result.records.values() for text in record.metrics.get("warnings", []))
    return [f"{count} trials: {text}" for text, count in sorted(said.items())]
