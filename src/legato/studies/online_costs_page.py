"""The page of `legato online`: who pays what, and the policies as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato.lab import drawing, page, palette, plots
from legato.lab.drawing import MUTED, box, mute_ticks, overlay, sheet, words
from legato.lab.page import Cell, Figure, Page, Panel, Table
from legato.lab.plots import Line
from legato.online.regret import band
from legato.studies.online_costs import BEST, FORECAST, UNIFORM, Answer, Row, amount, answer
from legato.studies.result import page_folder

COLUMNS = ("player", "sees", "cost", "an episode", "regret", "95 %", "of the gap")
MOST_STEPS, MOST_STATES = 366, 200
"""A picture with more cells than this in a direction shows nothing."""

Numbers = NDArray[np.float64]


def write(found: Answer, folder: Path) -> Path:
    """Write index.html and the plots; gives the path of index.html."""
    return page.write(answer_page(found), folder)


def draw(path: Path) -> Path:
    """Draw the page of a finished run again, from its folder or pack alone."""
    return write(answer(path), page_folder(path))


def cells(row: Row, episodes: int) -> tuple[str, ...]:
    """What the table says of a player."""
    between = f"{amount(row.regret.low)} to {amount(row.regret.high)}" if row.regret.count > 1 else ""
    gap = "" if row.gap is None else f"{100 * row.gap:.0f} %"
    return row.name, row.sees, amount(row.cost.mean), amount(row.cost.mean / episodes), amount(row.regret.mean), between, gap  # fmt: skip


def answer_page(found: Answer) -> Page:
    """The page of an answer."""
    about = found.about
    colours = palette.colours([row.name for row in found.rows], UNIFORM)
    panels = [
        _policies(found),
        _costs(found),
        Panel("The learners' rates", items=tuple((row.name, row.tuning) for row in found.rows if row.tuning)),
    ]
    return Page(
        title=f"legato online: {about['machine']}, {about['costs']}",
        verdict=found.verdict,
        figure=_curves(found, colours),
        tables=(_table(found, colours),),
        code="",
        panels=tuple(panel for panel in panels if panel.figures or panel.items),
        method=_method(about),
    )


def _table(found: Answer, colours: Mapping[str, str]) -> Table:
    episodes = found.about["episodes"]
    rows = []
    for row in found.rows:
        values = (None, None, row.cost.mean, row.cost.mean, row.regret.mean, None, row.gap)
        rows.append(tuple(Cell(text, value) for text, value in zip(cells(row, episodes), values, strict=True)))
    caption = (
        "Expected costs in the units of the file, summed over the episodes; regret is what is above the best fixed policy in hindsight, with a 95% "
        "interval over the runs where a learner draws lots. The gap is the way from uniform play to that policy."
    )
    return Table(COLUMNS, tuple(rows), caption, tuple(colours[row.name] for row in found.rows))


def _curves(found: Answer, colours: Mapping[str, str]) -> Figure:
    at, each = found.at.astype(float), {name: curves / found.at for name, curves in found.curves.items()}
    scale = 1000.0 ** max(0, int(np.log10(max(np.abs(curves).max() for curves in each.values()) + 1e-9) // 3))
    shown = [Line(row.name, row.name, at.tolist(), *band(each[row.name] / scale)) for row in found.rows]
    title = "cost of an episode above that of the best fixed policy" + (
        f", in units of {scale:,.0f}" if scale > 1 else ""
    )
    return plots.lines(
        "regret", {title: shown}, colours, xlabel="episodes", logarithmic=False, alt=found.verdict,
        caption="Means over the episodes so far, against the policy that was the best for these. Bands are 95% bootstrap intervals over the runs. "
        "Below 0 is cheaper than any fixed policy.",
    )  # fmt: skip


def _costs(found: Answer) -> Panel:
    middle = found.prices.mean(0)
    low, high = np.quantile(found.prices, [0.1, 0.9], axis=0)
    steps = list(range(1, len(middle) + 1))
    if len(steps) < 2:
        return Panel("The costs")
    figure = plots.lines(
        "costs", {"mean of a step": [Line("costs", "mean, 10 to 90 %", steps, middle, low, high)]}, palette.colours(["costs"]), xlabel="step",
        logarithmic=False, alt="The costs of each step of an episode",
    )  # fmt: skip
    return Panel("The costs", figures=(figure,))


def _policies(found: Answer) -> Panel:
    states, actions = found.about["states"], found.about["actions"]
    if len(states) > MOST_STATES or found.prices.shape[1] > MOST_STEPS:
        return Panel("The policies")
    text = (
        "The colour is the likeliest action in a state (from bottom to top) and step (from left to right); the paler, the less sure. Learners and "
        "controllers: after the last episode, averaged over the runs."
    )
    return Panel("The policies", text, figures=(policies_figure(found.policies, states, actions),))


def policies_figure(policies: Mapping[str, Numbers], states: Sequence[str], actions: Sequence[str]) -> Figure:
    """One picture a policy [H, S, A], and the actions' colours above."""
    colours = list(palette.colours(actions).values())

    def paint(width: int) -> Any:
        across = 3 if width > 500 else 1
        down = -(-len(policies) // across)
        cell, tall, head = width / across, 150, 30
        sheet_ = sheet(width, head + down * tall)
        text = overlay(sheet_)
        place = 4.0
        for action, colour in zip(actions[:6], colours, strict=False):
            text.text(place, 18, words(action, 16), fontsize=drawing.BODY, color=colour)
            place += 9 * min(len(action), 16) + 14
        for number, (name, policy) in enumerate(policies.items()):
            left, top = (number % across) * cell, head + (number // across) * tall
            axes = box(sheet_, left + 62, top + 24, cell - 74, tall - 58)
            axes.imshow(
                shades(policy, colours), aspect="auto", origin="lower", interpolation="nearest", extent=(0.5, len(policy) + 0.5, -0.5, len(states) - 0.5)
            )  # fmt: skip
            axes.set_xticks(sorted({1, len(policy)}))
            shown = range(len(states)) if len(states) <= 6 else (0, len(states) - 1)
            axes.set_yticks(list(shown), [words(str(states[s]), 9) for s in shown])
            text.text(left + 4, top + 15, words(name, 30), fontsize=drawing.SMALL, alpha=MUTED)
            mute_ticks(axes)
        return sheet_

    alt = f"Policies: {', '.join(policies)}; the likeliest action in each state and step"
    return drawing.figure("policies", paint, alt=alt)


def shades(policy: Numbers, colours: Sequence[str]) -> Numbers:
    """[S, H, 4] red, green, blue and opacity: the colour of the likeliest action; opacity 0.08 where all are alike, 1 where it is sure."""
    rgb = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])
    sure, least = policy.max(-1), 1 / policy.shape[-1]
    opacity = 0.08 + 0.92 * (sure - least) / (1 - least) if least < 1 else np.ones_like(sure)
    return np.concatenate([rgb[policy.argmax(-1)], np.clip(opacity, 0, 1)[..., None]], -1).swapaxes(0, 1)


def _method(about: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    again = f"legato online --costs {about['costs']} --model {about['model']} --episodes {about['episodes']} --seeds {about['seeds']}"
    passes = about["episodes"] / about["rows"]
    return (
        ("episodes", f"{about['episodes']:,}, {passes:.3g} passes over the {about['rows']:,} rows; each begins in the start state"),
        ("losses", f"the cost of a step, {about['low']:.5g} to {about['high']:.5g}, moved and scaled into [0, 1]; that range is known to the learners"),
        ("feedback", "a learner that sees its own path is told what it paid, and nothing else; full information comes after the episode"),
        (BEST, "the policy, a rule from step and state to action, with the least summed cost, by one backward dynamic programme: exact"),
        (FORECAST, "the best policy of each episode, had its costs been known before: no player can be cheaper"),
        ("mean of N", "a controller that plans each episode on the mean costs of the last N, by dynamic programming"),
        ("no guarantee", "the rates are those of the preset practical, chosen by hand and not tuned here; no bound is proved for them"),
        *(("about the costs", note) for note in about["notes"]),
        ("run again", again),
    )  # fmt: skip
