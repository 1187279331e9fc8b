"""The main job: which objective should I train my model with?

`compare` is for Python, `run` for the command line; both make a plan, hand its trials to the lab, and open the result from the store.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from legato import data, errors
from legato.data import Splits
from legato.lab.pack import open_results, pack
from legato.lab.runner import Study
from legato.lab.runner import run as run_study
from legato.lab.store import Store
from legato.lab.trial import Outcome, Record
from legato.studies import cost, examples, references, tasks, tracking
from legato.studies.classify import Factory
from legato.studies.config import CompareConfig
from legato.studies.plan import AnyConfig, Plan, next_trials, order_arms, plan_to_json, trim
from legato.studies.prepared import Source
from legato.studies.result import Result, open_result
from legato.studies.tasks import Loaded

STUDY = "compare"
SCHEMA = 1
DEMONSTRATION = "fashion-mini"


def compare(
    x: Any,
    y: Any = None,
    *,
    objectives: Sequence[str] = CompareConfig.objectives,
    model: str | Factory = "auto",
    out: str | Path | None = None,
    **options: Any,
) -> Result:
    """Which objective should I train my model with? The same as `legato compare`, from Python.

    Args:
        x: [N, D] vectors or [N, C, H, W] images (array or tensor), a map-style Dataset of (input, class), or anything that the command
            line takes as DATA (a name, a file, a folder).
        y: [N] classes, integers or strings; only with arrays.
        objectives: text forms, `ce` is the baseline; see `legato.studies.objectives`.
        model: a name, an import path, or `factory(input_shape, num_classes) -> Module`.
        out: folder of the run; what is finished there is not done again.
        options: the other fields of `CompareConfig`, by name.
    Returns: a `Result` with `.verdict`, `.table()`, `.best` and `.page()`.
    Raises: LegatoError for anything that cannot be used, before a model is trained.
    """
    known = CompareConfig.__dataclass_fields__
    for name in options:
        if name not in known:
            raise errors.choice("option", name, known)
    factory = None if isinstance(model, str) else model
    folder = Path(out) if out is not None else None
    if not isinstance(x, str | Path):
        folder = folder or Path("runs") / "arrays"
        x = _save_arrays(x, y, folder)
    named = (
        model
        if isinstance(model, str)
        else f"{model.__module__}:{getattr(model, '__qualname__', type(model).__name__)}"
    )
    config = CompareConfig(data=str(x), objectives=tuple(objectives), model=named, out=folder, **options)
    return run(config, factory)


@dataclass(frozen=True)
class Job:
    """A comparison that is ready to run: what was asked, the grid that it became, and its data."""

    config: CompareConfig
    plan: Plan
    source: Source
    data: Loaded
    factory: Factory | None = None


def run(config: CompareConfig, factory: Factory | None = None) -> Result:
    """Finish all trials of `config` and open the result."""
    job = make_job(config, factory)
    store = Store(folder_of(config), STUDY, SCHEMA)
    store.write_config(description(job))
    train([job], store, workers=workers_of(config.workers), backend=config.backend)
    result = open_result(store.folder)
    if isinstance(job.data, Splits):
        examples.save(store, result, job.data)
    if config.track is not None:
        tracking.replay(result, config.track)
    if config.pack:
        pack(open_results(store.folder), store.folder.with_name(f"{store.folder.name}.jsonl.xz"))
    return result


def make_job(config: CompareConfig, factory: Factory | None = None) -> Job:
    """Load the data of the first seed and spell out the grid."""
    source, found = load(config)
    return Job(config, make_plan(config, found, source, factory), source, found, factory)


def train(jobs: Sequence[Job], store: Store, *, workers: int, backend: str) -> list[Record]:
    """Hand the trials of one or more comparisons to the runner; each finds its data by the fingerprint in its config."""
    sources = {job.plan.setting.data_sha256: job.source for job in jobs}
    factories = {job.factory for job in jobs}
    trial = partial(run_trial, sources=sources, factory=factories.pop(), models=store.folder / "models")
    study = Study(trial, partial(next_trials, [job.plan for job in jobs]))
    return run_study(study, store, workers=workers, backend=backend)


def run_trial(
    config: AnyConfig, folder: Path, *, sources: Mapping[str, Source], factory: Factory | None, models: Path
) -> Outcome:
    """One trial: a training, a reference model, or the measurement of step times."""
    if isinstance(config, cost.CostConfig):
        parts = tasks.task_of(config.setting).parts
        return cost.trial(config, partial(parts, sources[config.setting.data_sha256], factory))
    if isinstance(config, references.ReferenceConfig):
        return references.trial(config, sources[config.data_sha256])
    return tasks.task_of(config).trial(config, folder, sources[config.data_sha256], factory, models)


def load(config: CompareConfig) -> tuple[Source, Loaded]:
    """The data of the first seed, and where every trial finds its own."""
    if config.task not in tasks.TASKS:
        raise errors.choice("task", config.task, tasks.TASKS)
    return tasks.TASKS[config.task].load(config)


def make_plan(config: CompareConfig, found: Loaded, source: Source, factory: Factory | None = None) -> Plan:
    """Turn what the user asked for into the grid, with every default filled in and every number checked."""
    _check(config)
    task = tasks.TASKS[config.task]
    optimizer = config.language.optimizer if config.task == "language" else config.optimizer
    rates = task.rates[optimizer] if config.learning_rates == "auto" else tuple(sorted(set(config.learning_rates)))
    noise = config.label_noise
    if noise is None:
        noise = (0.0, 0.4) if config.data == DEMONSTRATION else (0.0,)
    setting = task.setting(config, found)
    for arm in order_arms(config.objectives):
        task.check(replace(setting, objective=arm))  # what it cannot do without is said now
    plan = Plan(
        setting,
        order_arms(config.objectives),
        tuple(dict.fromkeys(noise)),
        rates,
        tuple(range(config.first_seed, config.first_seed + config.seeds)),
        config.select_by,
        references=config.references,
    )
    if config.minutes is None:
        return plan
    return trim(plan, seconds_a_trial(plan, source, factory), workers_of(config.workers), config.minutes)


def seconds_a_trial(plan: Plan, source: Source, factory: Factory | None = None) -> float:
    """An estimate from one epoch of the first arm's first trial, on one thread."""
    task = tasks.task_of(plan.setting)
    config, epochs = task.epoch(plan.trial(plan.label_noise[0], plan.baseline, plan.learning_rates[0], plan.seeds[0]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as scratch:
            task.trial(config, Path(scratch), source, factory, None)  # warms caches up
            start = time.perf_counter()
            task.trial(config, Path(scratch), source, factory, None)
            return (time.perf_counter() - start) * epochs
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Estimate:
    """What a run is going to take."""

    trials: int
    minutes: float
    megabytes: float


def estimate(config: CompareConfig, factory: Factory | None = None) -> tuple[Plan, Estimate]:
    """Trials, minutes and disk of a comparison, from one measured epoch; trains nothing else and writes nothing."""
    source, found = load(config)
    plan = make_plan(config, found, source, factory)
    readings = len(plan.label_noise) * len(plan.arms) * len(plan.seeds)
    trials = len(plan.grid()) + readings
    seconds = seconds_a_trial(plan, source, factory) * trials / workers_of(config.workers)
    bytes_ = 3000 * trials + readings * tasks.TASKS[config.task].test_bytes(found, plan.setting)
    return plan, Estimate(trials, seconds / 60, bytes_ / 1e6)


def folder_of(config: CompareConfig) -> Path:
    """`--out`, or a folder named after the data and what is taken of it."""
    taken = [name.replace("/", "-") for name in config.classes] + (
        [str(config.image_size)] if config.image_size else []
    )
    return config.out or Path("runs") / "-".join([Path(config.data).stem or "data", *taken])


def workers_of(asked: int | None) -> int:
    """`--workers`, or the cores that this process may use."""
    from joblib import cpu_count

    return asked or int(cpu_count())


def description(job: Job) -> dict[str, Any]:
    """What the store keeps beside the trials, so that table, verdict and page need no data set."""
    return {
        "asked": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(job.config).items()
            if key not in ("dry_run", "data_dir", "out")
        },
        "plan": plan_to_json(job.plan),
        **tasks.TASKS[job.config.task].facts(job.data),
    }


def _check(config: CompareConfig) -> None:
    """Numbers that no trial could use, named before the first one starts."""
    rules: list[tuple[str, bool, str, object]] = [
        ("seeds", config.seeds >= 1, "a whole number >= 1", config.seeds),
        ("epochs", config.epochs >= 1, "a whole number >= 1", config.epochs),
        ("batch_size", config.batch_size >= 1, "a whole number >= 1", config.batch_size),
        ("rows", config.rows is None or config.rows >= 1, "a whole number >= 1", config.rows),
        ("workers", config.workers is None or config.workers >= 1, "a whole number >= 1", config.workers),
        ("minutes", config.minutes is None or config.minutes > 0, "a number > 0", config.minutes),
        ("weight_decay", 0 <= config.weight_decay < np.inf, "a number >= 0", config.weight_decay),
        ("clip_norm", config.clip_norm is None or config.clip_norm > 0, "a number > 0", config.clip_norm),
    ]
    rules += [("label_noise", 0 <= share < 1, "shares >= 0 and < 1", share) for share in config.label_noise or ()]
    if config.learning_rates != "auto":
        rules.append(("learning_rates", len(config.learning_rates) > 0, "one or more numbers > 0, or auto", "none"))
        rules += [("learning_rates", 0 < rate < np.inf, "numbers > 0, or auto", rate) for rate in config.learning_rates]
    radius = config.attack_radius
    rules.append(
        ("attack_radius", radius is None or 0 < radius < 1, "a share of the pixel range, above 0 and below 1", radius)
    )
    if config.select_by == "robust-error":
        rules.append(("select_by", radius is not None, "an attack to measure: --attack-radius", "none"))
    references.check(config.references)
    for name, fine, expected, got in rules:
        if not fine:
            raise errors.argument(name, expected=expected, got=got)
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as problem:
        raise errors.argument(
            "device", expected="a device that torch has here", got=repr(config.device), fix="--device cpu"
        ) from problem


def _save_arrays(x: Any, y: Any, folder: Path) -> Path:
    """Put arrays from Python where every worker, and the same call on another day, finds them."""
    if y is None:
        x, y = data.arrays_of(x)
    data.from_arrays(x, y)  # whatever is wrong with them is said now
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "data.npz", x=np.asarray(x), y=np.asarray(y))
    return folder / "data.npz"
