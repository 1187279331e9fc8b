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
from typing import Literal

from legato import errors
from legato.lab import page
from legato.lab.claims import Judged
from legato.lab.files import pack_json, write
from legato.lab.pack import open_results, pack
from legato.lab.store import Store
from legato.studies import adversarial, comp_sum, compare, ensloss, study_page, verdicts
from legato.studies.compare import Job
from legato.studies.config import CompareConfig
from legato.studies.plan import Plan, index
from legato.studies.result import Result, open_result, page_folder, result_of
from legato.studies.spec import Part, Spec

Form = Literal["smoke", "full", "confirm"]
STUDIES: Mapping[str, Spec] = {"comp-sum": comp_sum.SPEC, "ensloss": ensloss.SPEC, "adversarial": adversarial.SPEC}


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
    jobs = {part: _job(name, part, form) for part in _parts(spec, form)}
    store = Store(folder, compare.STUDY, compare.SCHEMA)
    described = {part: compare.description(job) for part, job in jobs.items()}
    store.write_config({"name": name, "form": form, "parts": described})
    records = compare.train(list(jobs.values()), store, workers=compare.workers_of(workers), backend="loky")
    if packed:
        pack(open_results(folder), folder.with_name(f"{folder.name}.jsonl.xz"))
    if form == "full":
        done = index(records)
        rates = {
            part: [(noise, arm, rate) for (noise, arm), rate in job.plan.choose(done).items()]
            for part, job in jobs.items()
        }
        write(folder / "tuned.json", pack_json(rates))
        return folder / "tuned.json", []
    return draw(folder)


def draw(path: Path) -> tuple[Path, list[Judged]]:
    """Draw the page of a finished study from its folder or pack alone, and judge its claims again.

    Raises: StoreError when trials are missing.
    """
    results, judged = judge(path)
    about = open_results(path).read_config()
    built = study_page.build(about["name"], named(about["name"]), about["form"], results, judged)
    return page.write(built, page_folder(path)), judged


def judge(path: Path) -> tuple[dict[str, Result], list[Judged]]:
    """The comparisons of a finished study by part, and its judged claims; none but for the form `confirm`."""
    store = open_results(path)
    about = store.read_config()
    results = {part: result_of(store, told, page_folder(path)) for part, told in about["parts"].items()}
    if about["form"] != "confirm":
        return results, []
    return results, verdicts.judge(about["name"], named(about["name"]).paper, results)


def redraw(path: Path) -> Path:
    """Draw the page of a comparison or a study again, from its folder or its pack."""
    if "parts" in open_results(path).read_config():
        return draw(path)[0]
    return open_result(path).page()


def named(name: str) -> Spec:
    """The study of this name. Raises LegatoValueError with the nearest one."""
    if name not in STUDIES:
        raise errors.choice("study", name, STUDIES)
    return STUDIES[name]


def tuned(name: str, part: str, plan: Plan) -> tuple[tuple[float, str, float], ...]:
    """The committed learning rates of a part: (label noise, objective, rate).

    Raises: LegatoValueError when there are none, or when they are not those of the plan's arms and noise levels.
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
    if {(noise, arm) for noise, arm, _ in rows} != {(noise, arm) for noise in plan.label_noise for arm in plan.arms}:
        raise errors.argument(
            "form", expected="committed rates for every objective and noise level", got="those of another grid", fix=fix
        )
    return rows


def _parts(spec: Spec, form: Form) -> list[str]:
    """What a form runs: smoke a few parts, full those that are tuned, confirm all."""
    if form == "smoke":
        return list(spec.smoke)
    return [name for name, part in spec.parts.items() if form == "confirm" or part.fixed_rate is None]


def _job(name: str, part: str, form: Form) -> Job:
    asked = STUDIES[name].parts[part]
    job = compare.make_job(_seeds(asked.config, form))
    return replace(job, plan=_fixed(name, part, asked, form, job.plan))


def _seeds(config: CompareConfig, form: Form) -> CompareConfig:
    """Seeds 0 to 4 to tune, 100 to 109 to confirm; smoke makes everything small."""
    if form == "full":
        return replace(config, seeds=5, first_seed=0)
    if form == "confirm":
        return replace(config, seeds=10, first_seed=100)
    rates = config.learning_rates if config.learning_rates == "auto" else config.learning_rates[-1:]
    return replace(config, seeds=2, epochs=1, rows=256, learning_rates=rates, objectives=config.objectives[:2])


def _fixed(name: str, part: str, asked: Part, form: Form, plan: Plan) -> Plan:
    """The plan with what the form decides: `full` reads no test data, `confirm` tunes nothing."""
    plan = replace(plan, setting=replace(plan.setting, keeps_test_curve=asked.keeps_test_curve))
    if form == "full":
        return replace(plan, reads_test=False)
    if form == "smoke":
        return plan
    if asked.fixed_rate is None:
        return replace(plan, fixed_rates=tuned(name, part, plan))
    rates = tuple((noise, arm, asked.fixed_rate) for noise in plan.label_noise for arm in plan.arms)
    return replace(plan, fixed_rates=rates)
