"""`legato study NAME`: a paper's claims put to the test, in three forms that share one grid.

smoke    seconds: does everything still run? No verdict.
full     tunes every arm with equal trials on validation data, seeds 0 to 4; never reads the test set; writes tuned.json.
confirm  tunes nothing: committed learning rates, fresh seeds 100 to 109, the test set read for the first time. Gives the verdicts.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from legato import errors
from legato.lab import page
from legato.lab.claims import Judged
from legato.lab.files import pack_json, write
from legato.lab.pack import open_results, pack
from legato.lab.store import Store
from legato.lab.trial import Record
from legato.studies import (
    adversarial,
    ast,
    comp_sum,
    compare,
    ensloss,
    experiment,
    online,
    online_costs,
    online_costs_page,
    panels,
    proxies,
    saf,
    selector,
    smooth_diffusion,
    study_page,
    suspects,
    sweep,
    verdicts,
)
from legato.studies.classify import TrialConfig
from legato.studies.compare import Job
from legato.studies.config import CompareConfig
from legato.studies.experiment import Experiment
from legato.studies.plan import Plan, Results, index, order_arms
from legato.studies.result import Result, open_result, page_folder, result_of
from legato.studies.spec import Form, Part, Spec

STUDIES: Mapping[str, Spec | Experiment] = {
    "comp-sum": comp_sum.SPEC,
    "ensloss": ensloss.SPEC,
    "adversarial": adversarial.SPEC,
    "saf": saf.SPEC,
    "suspects": suspects.EXPERIMENT,
    "proxies": proxies.EXPERIMENT,
    "online": online.EXPERIMENT,
    "selector": selector.EXPERIMENT,
    "smooth-diffusion": smooth_diffusion.EXPERIMENT,
    "ast": ast.EXPERIMENT,
}


def run(
    name: str, form: Form, *, workers: int | None = None, out: Path | None = None, packed: bool = False
) -> tuple[Path, list[Judged]]:
    """Finish a form of a study; the claims are judged by the form `confirm` alone.

    Args:
        workers: processes side by side; default: the number of cores.
        out: folder of the run; default runs/study-NAME-FORM.
        packed: also write the store as one file, OUT.jsonl.xz.
    Returns: the path of the page (of tuned.json for the form `full`), and the judged claims.
    Raises: LegatoValueError for an unknown study, or when `confirm` has no committed learning rates yet.
    """
    spec = named(name)
    folder = out or Path("runs") / f"study-{name}-{form}"
    workers = compare.workers_of(workers)
    if isinstance(spec, Experiment):
        records = experiment.measure(name, spec, form, folder, workers=workers)
        choices = spec.tune(records) if form == "full" and spec.tune else None
    else:
        records, choices = _compare(name, spec, form, folder, workers)
    if packed:
        pack(open_results(folder), folder.with_name(f"{folder.name}.jsonl.xz"))
    if choices is None:
        return draw(folder)
    write(folder / "tuned.json", pack_json(choices))
    return folder / "tuned.json", []


def _compare(
    name: str, spec: Spec, form: Form, folder: Path, workers: int
) -> tuple[list[Record], Mapping[str, Any] | None]:
    """The trials of a form of a study that compares objectives, and what the form `full` chose."""
    jobs = {part: _job(name, part, spec.parts[part], form) for part in _parts(spec, form)}
    store = Store(folder, compare.STUDY, compare.SCHEMA)
    described = {part: compare.description(job) for part, job in jobs.items()}
    store.write_config({"name": name, "form": form, "parts": described})
    records = compare.train(list(jobs.values()), store, workers=workers, backend="loky")
    if form != "full":
        return records, None
    done = index(records)
    return records, {part: chosen(spec.parts[part], job.plan, done) for part, job in jobs.items()}


def draw(path: Path) -> tuple[Path, list[Judged]]:
    """Draw the page of a finished study from its folder or pack alone, and judge its claims again.

    Raises: StoreError when trials are missing.
    """
    store = open_results(path)
    about = store.read_config()
    name, form, spec = about["name"], about["form"], named(about["name"])
    judged = judge(path)
    if isinstance(spec, Experiment):
        machine = panels.machine(store.read_environment())
        built = experiment.page(name, spec, form, store.records(), judged, machine)
    else:
        built = study_page.build(name, spec, form, _results(path), judged)
    return page.write(built, page_folder(path)), judged


def judge(path: Path) -> list[Judged]:
    """The judged claims of a finished study; none but for the form `confirm`."""
    store = open_results(path)
    about = store.read_config()
    name, spec = about["name"], named(about["name"])
    if about["form"] != "confirm":
        return []
    if isinstance(spec, Experiment):
        return experiment.judge(name, spec, store.records())
    return verdicts.judge(name, spec.paper, _results(path))


def _results(path: Path) -> dict[str, Result]:
    """The comparisons of a finished study, by part."""
    store = open_results(path)
    return {part: result_of(store, told, page_folder(path)) for part, told in store.read_config()["parts"].items()}


def redraw(path: Path) -> Path:
    """Draw the page of a comparison, a sweep or a study again, from its folder or its pack."""
    about = open_results(path).read_config()
    if about["study"] == sweep.STUDY:
        return sweep.draw(path)
    if about["study"] == online_costs.STUDY:
        return online_costs_page.draw(path)
    if "form" in about:
        return draw(path)[0]
    return open_result(path).page()


def named(name: str) -> Spec | Experiment:
    """The study of this name. Raises LegatoValueError with the nearest one."""
    if name not in STUDIES:
        raise errors.choice("study", name, STUDIES)
    return STUDIES[name]


def chosen(part: Part, plan: Plan, done: Results) -> list[tuple[float, str, float]]:
    """(label noise, objective, rate) of what goes on to `confirm`: every objective, or the best of each family by validation data."""
    rates = plan.choose(done)
    return [
        (noise, best, rates[noise, best])
        for noise in plan.label_noise
        for group in _groups(part)
        for best in [min(group, key=lambda arm: plan.score(done, noise, arm, rates[noise, arm]))]
    ]


def tuned(name: str, part: str, asked: Part) -> tuple[tuple[float, str, float], ...]:
    """The committed learning rates of a part: (label noise, objective, rate), one for each family of objectives.

    Raises: LegatoValueError when there are none, or when they are not those of the part's grid.
    """
    path = files("legato.studies") / "tuned" / f"{name}.json"
    fix = f"legato study {name}, then commit its tuned.json as studies/tuned/{name}.json"
    try:
        rows = tuple(
            (float(noise), str(arm), float(rate))
            for noise, arm, rate in json.loads(path.read_text(encoding="utf-8"))[part]
        )
    except (FileNotFoundError, KeyError) as problem:
        raise errors.argument("form", expected="committed learning rates", got=f"none for {part}", fix=fix) from problem
    wanted = [(noise, group) for noise in asked.config.label_noise or () for group in _groups(asked)]
    if len(rows) != len(wanted) or not all(any(n == noise and arm in g for n, arm, _ in rows) for noise, g in wanted):
        raise errors.argument(
            "form", expected="committed rates for every objective and noise level", got="those of another grid", fix=fix
        )
    return rows


def _groups(part: Part) -> list[tuple[str, ...]]:
    """The objectives of each family; without families each objective is one."""
    return [order_arms(family) for family in part.families] or [(arm,) for arm in order_arms(part.config.objectives)]


def _parts(spec: Spec, form: Form) -> list[str]:
    """What a form runs: smoke a few parts, full those that are tuned, confirm all."""
    if form == "smoke":
        return list(spec.smoke)
    return [name for name, part in spec.parts.items() if form == "confirm" or part.fixed_rate is None]


def _job(name: str, part: str, asked: Part, form: Form) -> Job:
    config = _seeds(asked.config, form)
    rows = tuned(name, part, asked) if form == "confirm" and asked.fixed_rate is None else ()
    if asked.families and rows:
        config = replace(config, objectives=tuple(arm for _, arm, _ in rows))
    job = compare.make_job(config)
    return replace(job, plan=_fixed(asked, form, job.plan, rows))


def _seeds(config: CompareConfig, form: Form) -> CompareConfig:
    """Seeds 0 to 4 to tune, 100 to 109 to confirm; smoke makes everything small."""
    if form == "full":
        return replace(config, seeds=5, first_seed=0)
    if form == "confirm":
        return replace(config, seeds=10, first_seed=100)
    rates = config.learning_rates if config.learning_rates == "auto" else config.learning_rates[-1:]
    return replace(config, seeds=2, epochs=1, rows=256, learning_rates=rates, objectives=config.objectives[:2])


def _fixed(asked: Part, form: Form, plan: Plan, tuned_rates: tuple[tuple[float, str, float], ...]) -> Plan:
    """The plan with what the form decides: `full` reads no test data, `confirm` tunes nothing."""
    if isinstance(plan.setting, TrialConfig):
        setting = replace(plan.setting, keeps_test_curve=asked.keeps_test_curve, sharpness_rows=asked.sharpness_rows)
        plan = replace(plan, setting=setting)
    if form == "full":
        return replace(plan, reads_test=False)
    if form == "smoke":
        return plan
    if asked.fixed_rate is None:
        return replace(plan, fixed_rates=tuned_rates)
    rates = tuple((noise, arm, asked.fixed_rate) for noise in plan.label_noise for arm in plan.arms)
    return replace(plan, fixed_rates=rates)
