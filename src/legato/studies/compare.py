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
from legato.studies import classify, cost, examples, references, tracking
from legato.studies import objectives as objectives_table
from legato.studies.classify import Factory, TrialConfig
from legato.studies.config import CompareConfig
from legato.studies.plan import AnyConfig, Plan, next_trials, order_arms, plan_to_json, trim
from legato.studies.prepared import Source, prepare
from legato.studies.result import Result, open_result

STUDY = "compare"
SCHEMA = 1
RATES = {"sgd": (0.005, 0.02, 0.08, 0.32), "adamw": (0.0001, 0.0004, 0.0016, 0.0064)}
DEMONSTRATION = "fashion-mini"
TASKS = {"classify": classify.trial}
"""What a model may be trained for; a later task adds its trial here."""


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
    splits: Splits
    factory: Factory | None = None


def run(config: CompareConfig, factory: Factory | None = None) -> Result:
    """Finish all trials of `config` and open the result."""
    job = make_job(config, factory)
    store = Store(folder_of(config), STUDY, SCHEMA)
    store.write_config(description(job))
    train([job], store, workers=workers_of(config.workers), backend=config.backend)
    result = open_result(store.folder)
    examples.save(store, result, job.splits)
    if config.track is not None:
        tracking.replay(result, config.track)
    if config.pack:
        pack(open_results(store.folder), store.folder.with_name(f"{store.folder.name}.jsonl.xz"))
    return result


def make_job(config: CompareConfig, factory: Factory | None = None) -> Job:
    """Load the data of the first seed and spell out the grid."""
    source, splits = load(config)
    return Job(config, make_plan(config, splits, source, factory), source, splits, factory)


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
        return cost.trial(config, sources[config.setting.data_sha256], factory)
    if isinstance(config, references.ReferenceConfig):
        return references.trial(config, sources[config.data_sha256])
    return TASKS["classify"](config, folder, source=sources[config.data_sha256], factory=factory, models=models)


def load(config: CompareConfig) -> tuple[Source, Splits]:
    """The data of the first seed, and where every trial finds its own."""
    source = Source(
        config.data, config.target, config.group, config.classes, config.image_size, config.validation, config.test,
        config.data_dir, config.download,
    )  # fmt: skip
    return source, source.load(config.first_seed)


def make_plan(config: CompareConfig, splits: Splits, source: Source, factory: Factory | None = None) -> Plan:
    """Turn what the user asked for into the grid, with every default filled in and every number checked."""
    _check(config)
    rates = RATES[config.optimizer] if config.learning_rates == "auto" else tuple(sorted(set(config.learning_rates)))
    noise = config.label_noise
    if noise is None:
        noise = (0.0, 0.4) if config.data == DEMONSTRATION else (0.0,)
    setting = TrialConfig(
        data=splits.provenance.name,
        data_sha256=splits.provenance.sha256,
        objective="ce",
        learning_rate=0.0,
        seed=0,
        model=_model(config.model, splits),
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        augment=config.augment,
        noise_kind=config.noise_kind,
        validation_labels=config.validation_labels,
        device=config.device,
        autocast=config.autocast,
        train_rows=config.rows,
        attack_radius=config.attack_radius,
        keeps_model=config.save_model,
    )
    for arm in order_arms(config.objectives):
        objectives_table.parse(arm).build(classify.context(setting))  # what it cannot do without is said now
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
    config = replace(plan.trial(plan.label_noise[0], plan.baseline, plan.learning_rates[0], plan.seeds[0]), epochs=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as scratch:
            task = prepare(config, source)
            classify.train(config, task, Path(scratch), factory)  # warms caches up
            start = time.perf_counter()
            classify.train(config, task, Path(scratch), factory)
            return (time.perf_counter() - start) * plan.setting.epochs
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
    source, splits = load(config)
    plan = make_plan(config, splits, source, factory)
    readings = len(plan.label_noise) * len(plan.arms) * len(plan.seeds)
    trials = len(plan.grid()) + readings
    seconds = seconds_a_trial(plan, source, factory) * trials / workers_of(config.workers)
    bytes_ = 3000 * trials + readings * len(splits.test) * (2 * splits.num_classes + 10)
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
    splits = job.splits
    return {
        "asked": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(job.config).items()
            if key not in ("dry_run", "data_dir", "out")
        },
        "plan": plan_to_json(job.plan),
        "class_names": list(splits.class_names),
        "rows": {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        "provenance": asdict(splits.provenance),
    }


def _model(model: str, splits: Splits) -> str:
    """auto: an mlp for vectors and for grey pictures of up to 32 pixels, a convnet for other pictures."""
    if model != "auto":
        return model
    return "convnet" if splits.is_image and (splits.input_shape[0] > 1 or max(splits.input_shape[1:]) > 32) else "mlp"


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
