"""`legato study NAME`: a paper's claims put to the test, in three forms that share one grid.

smoke    minutes no, seconds yes: does everything still run? No verdict.
full     tunes every arm with equal trials on validation data, seeds 0 to 4; never reads the test set; writes tuned.json.
confirm  tunes nothing: committed learning rates, fresh seeds 100 to 109, the test set read for the first time. Gives the verdicts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np

from legato import errors
from legato.lab import claims as lab_claims
from legato.lab import page, palette, plots
from legato.lab.claims import NOT_TESTED, Judged
from legato.lab.files import pack_json, write
from legato.lab.page import Cell, Page, Panel, Table
from legato.lab.plots import Interval
from legato.lab.store import Store
from legato.studies import compare
from legato.studies.config import CompareConfig
from legato.studies.plan import Plan, index
from legato.studies.result import Result

Form = Literal["smoke", "full", "confirm"]
FAMILY = ("ce", "label-smoothing:0.1", "comp-sum:0", "comp-sum:0.5", "comp-sum:1.5", "comp-sum:1.7", "comp-sum:2")
GRID = CompareConfig(objectives=FAMILY, label_noise=(0.0, 0.4), learning_rates=(0.01, 0.03, 0.1, 0.3, 1.0))


@dataclass(frozen=True)
class Spec:
    """A study: its parts are comparisons, each in a folder of its own."""

    paper: str
    title: str
    parts: Mapping[str, CompareConfig]


STUDIES: Mapping[str, Spec] = {
    "comp-sum": Spec(
        "2304.07288",
        "Comp-sum losses over tau, with clean and with corrupted labels",
        {
            "fashion-mini mlp": replace(GRID, data="fashion-mini", model="mlp"),
            "digits mlp": replace(GRID, data="digits", model="mlp", epochs=40),
            "fashion-mini convnet": replace(GRID, data="fashion-mini", model="convnet"),
        },
    )
}


def run(name: str, form: Form, *, workers: int | None = None, out: Path | None = None) -> tuple[Path, list[Judged]]:
    """Finish a form of a study; the claims are judged by the form `confirm` alone.

    Raises: LegatoValueError for an unknown study, or when `confirm` has no committed learning rates yet.
    """
    if name not in STUDIES:
        raise errors.choice("study", name, STUDIES)
    folder = out or Path("runs") / f"study-{name}-{form}"
    results: dict[str, Result] = {}
    rates: dict[str, list[tuple[float, str, float]]] = {}
    for part, asked in STUDIES[name].parts.items():
        config = replace(_form(asked, form), workers=workers, out=folder / part.replace(" ", "-"))
        source, splits = compare.load(config)
        plan = compare.make_plan(config, splits, source)
        if form == "full":
            plan = replace(plan, reads_test=False)
            rates[part] = _tune(config, plan)
            continue
        if form == "confirm":
            plan = replace(plan, fixed_rates=tuned(name, part, plan))
        results[part] = compare.finish(config, plan, source, splits)
        results[part].page()
    if form == "full":
        write(folder / "tuned.json", pack_json(rates))
        return folder / "tuned.json", []
    judged = lab_claims.judge(claims_of(name), _differences(name, results)) if form == "confirm" else []
    return page.write(_page(name, form, results, judged), folder), judged


def claims_of(name: str) -> tuple[lab_claims.Claim, ...]:
    """The claims of a study's paper, with those that no run can test."""
    path = Path(str(files("legato.studies") / "claims.toml"))
    return tuple(claim for claim in lab_claims.load(path) if claim.paper == STUDIES[name].paper)


def tuned(name: str, part: str, plan: Plan) -> tuple[tuple[float, str, float], ...]:
    """The committed learning rates of a part: (label noise, objective, rate).

    Raises: LegatoValueError when there are none, or when they are not those of the plan's arms and noise levels.
    """
    path = files("legato.studies") / "tuned" / f"{name}.json"
    fix = f"legato study {name} --form full, then commit its tuned.json as studies/tuned/{name}.json"
    try:
        rows = tuple(
            (float(noise), str(arm), float(rate))
            for noise, arm, rate in json.loads(path.read_text(encoding="utf-8"))[part]
        )
    except (FileNotFoundError, KeyError) as problem:
        raise errors.argument("form", expected="committed learning rates", got=f"none for {part}", fix=fix) from problem
    if {(noise, arm) for noise, arm, _ in rows} != {(noise, arm) for noise in plan.label_noise for arm in plan.arms}:
        raise errors.argument(
            "form", expected="committed rates for every objective and noise level", got="those of another grid", fix=fix
        )
    return rows


def _form(config: CompareConfig, form: Form) -> CompareConfig:
    if form == "full":
        return replace(config, seeds=5, first_seed=0)
    if form == "confirm":
        return replace(config, seeds=10, first_seed=100)
    return replace(config, seeds=2, epochs=1, learning_rates=(0.1,), objectives=("ce", "comp-sum:1.7"))


def _tune(config: CompareConfig, plan: Plan) -> list[tuple[float, str, float]]:
    store = Store(compare.folder_of(config), compare.STUDY, compare.SCHEMA)
    records = compare.train(
        config,
        plan,
        store,
        partial(compare.run_trial, source=compare.load(config)[0], factory=None, models=store.folder),
    )
    return [(noise, arm, rate) for (noise, arm), rate in plan.choose(index(records)).items()]


def _differences(name: str, results: Mapping[str, Result]) -> dict[str, np.ndarray]:
    """claim -> accuracy of its arm minus that of its baseline, one number a seed."""

    def accuracy(result: Result, noise: float, arm: str) -> np.ndarray:
        done, rates = index(result.store.records()), result.summary.rates
        cells = [result.plan.trial(noise, arm, rates[noise, arm], seed, reads_test=True) for seed in result.plan.seeds]
        return np.array([1 - done[cell]["test_error"] for cell in cells])

    return {
        claim.id: accuracy(results[claim.part], claim.label_noise, claim.arm)
        - accuracy(results[claim.part], claim.label_noise, claim.baseline)
        for claim in claims_of(name)
        if claim.study == name
    }


def _page(name: str, form: Form, results: Mapping[str, Result], judged: Sequence[Judged]) -> Page:
    spec = STUDIES[name]
    tested = [j for j in judged if j.difference is not None]
    counts = [
        f"{sum(j.verdict == word for j in judged)} {word}"
        for word in ("shows", "does not show", "undecided", NOT_TESTED)
    ]
    verdict = f"Of {len(judged)} claims: {', '.join(counts)}" if judged else f"Form {form}: everything runs, no verdict"
    rows = tuple(
        (
            Cell(j.verdict),
            Cell(j.claim.id),
            Cell(j.difference.text(100, 1) if j.difference else j.claim.reason),
            Cell(f"{100 * j.claim.minimal_effect:g}" if j.difference else ""),
            Cell(f"{j.p_value:.2g}" if j.p_value is not None else ""),
        )
        for j in judged
    )
    table = Table(("verdict", "claim", "points [95%, Holm]", "needed", "p"), rows)
    forest = (
        plots.forest(
            "claims",
            [
                Interval(
                    j.verdict,
                    j.verdict,
                    j.claim.id,
                    *(100 * v for v in (j.difference.mean, j.difference.low, j.difference.high)),
                )
                for j in tested
                if j.difference
            ],
            palette.colours(("shows", "undecided", "does not show"), "undecided"),
            unit="points of test accuracy, arm minus baseline",
            alt=verdict,
        )
        if tested
        else None
    )
    words = "\n".join(f"{j.claim.id}: {j.claim.words}" for j in judged)
    panels = [Panel(part, result.verdict) for part, result in results.items()]
    method = (
        ("claims", words),
        ("paper", f"arXiv {spec.paper}"),
        ("form", form),
        ("run again", f"legato study {name} --form {form}"),
    )
    return Page(
        f"legato study {name}: {spec.title}", verdict, forest, (table,) if rows else (), "", tuple(panels), method
    )
