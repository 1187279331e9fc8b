"""A sweep over sizes and learning rates on the lab: any training function, or the decoder (`decoder_sweep`)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from legato import errors
from legato.lab import page
from legato.lab.pack import open_results
from legato.lab.runner import Study, Trial
from legato.lab.runner import run as run_study
from legato.lab.store import Store
from legato.lab.trial import Outcome, Record, as_plain
from legato.studies import sweep_page
from legato.studies.result import page_folder
from legato.studies.sweep_config import PAPER_RATES
from legato.studies.sweep_runs import Run, Sweep, rate_to_try

STUDY, SCHEMA = "sweep", 1
OWN = "own"
"""The arm of a single factory."""


@dataclass(frozen=True)
class Grid:
    """What is swept."""

    arms: tuple[str, ...]
    sizes: tuple[str, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    margin: float
    """A run that ends more than this above the best of its arm, size and seed is unstable, in the unit of the loss."""
    refine: int = 0
    """Runs near the cliff for each arm, size and seed, beyond the grid."""

    def __post_init__(self) -> None:
        rates = np.asarray(self.learning_rates, dtype=np.float64)
        rules: list[tuple[str, bool, str, object]] = [
            (name, len(values) > 0 and len(set(values)) == len(values), "one or more different ones", values)
            for name, values in (("arms", self.arms), ("sizes", self.sizes), ("seeds", self.seeds))
        ]
        good = len(set(self.learning_rates)) == len(rates) >= 2 and np.isfinite(rates).all() and (rates > 0).all()
        rules += [
            ("learning_rates", bool(good), "two or more different numbers > 0", self.learning_rates),
            ("margin", 0 < self.margin < math.inf, "a number > 0", self.margin),
            ("refine", self.refine >= 0, "a whole number >= 0", self.refine),
        ]
        for name, fine, expected, got in rules:
            if not fine:
                raise errors.argument(name, expected=expected, got=got)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    arm: str
    size: str
    learning_rate: float
    seed: int
    setting: Any
    """A frozen dataclass: what is equal for all runs."""


def finish(
    grid: Grid, setting: Any, trial: Trial, folder: Path, *, workers: int, backend: str = "loky", progress: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Sweep:  # fmt: skip
    """Do the runs of a sweep that are missing in `folder`, draw its page there, and open it.

    Args:
        trial: (cell, scratch folder) -> an Outcome with the metrics of `outcome`.
        about: words -> what the page says of how it was measured.
    """
    store = Store(folder, STUDY, SCHEMA)
    told = {"grid": asdict(grid), "setting": as_plain(setting), "about": dict(about or {})}
    store.write_config(told)
    run_study(
        Study(trial, partial(next_cells, grid, setting)), store, workers=workers, backend=backend, progress=progress
    )
    draw(folder)
    return open_sweep(folder)


def next_cells(grid: Grid, setting: Any, records: Sequence[Record]) -> list[Cell]:
    """The grid, seed by seed; then, where an arm, size and seed is done, the next rate near its cliff."""
    cells = [
        Cell(arm, size, rate, seed, setting)
        for seed in grid.seeds
        for arm in grid.arms
        for size in grid.sizes
        for rate in grid.learning_rates
    ]
    if not grid.refine:
        return cells
    found = _sweep(grid, as_plain(setting), records)
    missing = {(arm, size, seed) for arm, size, _, seed in found.missing}
    for seed in grid.seeds:
        for arm in grid.arms:
            for size in grid.sizes:
                if (arm, size, seed) not in missing:
                    cells += [
                        Cell(arm, size, rate, seed, setting) for rate in _near_cliff(grid, found, arm, size, seed)
                    ]
    return cells


def _near_cliff(grid: Grid, found: Sweep, arm: str, size: str, seed: int) -> list[float]:
    """Rates tried beyond the grid, and the next one if there are fewer than asked for."""
    curve = found.tried(arm, size, seed)
    extra = [rate for rate in curve.learning_rates if rate not in grid.learning_rates]
    following = rate_to_try(curve, grid.margin) if len(extra) < grid.refine else None
    return [*extra, following] if following is not None and following not in curve.learning_rates else extra


def outcome(
    parameters: float, losses: Sequence[float], steps: int, patience: int, statistics: Mapping[str, float]
) -> Outcome:
    """What a run of a sweep measures: `losses` are those of all checks, the initial one first; the last is the final one."""
    words = why_lost(losses, patience)
    return Outcome(
        {
            "parameters": parameters, "loss": None if words else losses[-1], "initial_loss": losses[0], "lost": words, "steps": steps,
            "statistics": dict(statistics),
        }
    )  # fmt: skip


def why_lost(losses: Sequence[float], patience: int) -> str:
    """Why a run is given up: a loss that is not finite, or `patience` checks in a row above the first one; empty if it goes on.

    Args:
        losses: of all checks so far, the one before the first step first.
        patience: >= 1.
    """
    if not math.isfinite(losses[-1]):
        return "the loss is not finite"
    last = losses[1:][-patience:]
    if len(last) == patience and min(last) > losses[0]:
        return f"the loss was above the initial one in {patience} checks in a row"
    return ""


def open_sweep(path: Path) -> Sweep:
    """The sweep of a folder or a pack.

    Raises: StoreError when `path` is none, or when runs of its grid are missing.
    """
    store = open_results(path)
    told = store.read_config()
    if "grid" not in told:
        raise errors.StoreError(
            f"{path} is no sweep of legato. Fix: name the folder given to legato stability sweep --out."
        )
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in told["grid"].items()}
    grid = Grid(**plain)
    found = _sweep(grid, told["setting"], store.records())
    if found.missing:
        arm, size, rate, seed = found.missing[0]
        raise errors.StoreError(
            f"{path}: {len(found.missing)} runs of the grid are missing, the first {arm}, {size}, rate {rate:g}, seed {seed}. "
            "Fix: run the command that made it again; it finishes them."
        )
    return found


def draw(path: Path) -> Path:
    """Draw the page of a sweep again, from its folder or pack alone; the path of the page."""
    store, found = open_results(path), open_sweep(path)
    told, machine = store.read_config()["about"], store.read_environment()
    seconds = sum(record.seconds for record in store.records())
    method = (
        *told.items(),
        ("learning rates", ", ".join(f"{rate:g}" for rate in found.learning_rates)),
        ("seeds", ", ".join(map(str, found.seeds))),
        ("machine", ", ".join(f"{k} {v}" for k, v in machine.items() if v is not None and k != "also")),
        ("cost", f"{seconds:.0f} seconds of training on one thread each, {len(found.runs)} runs"),
        ("draw again", "legato page FOLDER"),
    )
    return page.write(sweep_page.sweep_page(found, "legato stability sweep", method), page_folder(path))


def _sweep(grid: Grid, setting: Mapping[str, Any], records: Sequence[Record]) -> Sweep:
    """The runs of these arms, sizes and seeds with this setting; a folder may hold others, of earlier commands."""
    runs = [
        run_of(record)
        for record in records
        if record.config["setting"] == setting
        and record.config["arm"] in grid.arms
        and record.config["size"] in grid.sizes
        and record.config["seed"] in grid.seeds
    ]
    return Sweep(tuple(runs), grid.arms, grid.sizes, tuple(sorted(grid.learning_rates)), grid.seeds, grid.margin)


def run_of(record: Record) -> Run:
    """The run that a record tells of."""
    config, told = record.config, record.metrics
    statistics = {name: math.nan if value is None else value for name, value in told["statistics"].items()}
    loss = math.nan if told["loss"] is None else told["loss"]
    return Run(
        config["arm"], config["size"], told["parameters"], config["learning_rate"], config["seed"], loss, told["initial_loss"],
        told["lost"], statistics,
    )  # fmt: skip


@dataclass(frozen=True)
class Training:
    """A training of the user's own, ready to start."""

    parameters: float
    """N, what sizes are compared by."""
    step: Callable[[], object]
    """Does one optimizer step."""
    loss: Callable[[], float]
    """The validation loss of the model as it is; the same data each time."""
    statistics: Callable[[], Mapping[str, float]] = dict
    """Numbers to follow over sizes, such as the largest attention logit."""


Factory: TypeAlias = Callable[[Any, float, int], Training]
"""(size, learning rate, seed) -> a fresh training."""


@dataclass(frozen=True)
class OwnSetting:
    """What all runs of a sweep over a training function share."""

    factories: tuple[tuple[str, str], ...]
    """(arm, import path) of what makes the trainings; a change behind the path is not noticed."""
    steps: int
    check_every: int
    patience: int
    read_at: tuple[int, ...]


def sweep(
    factory: Factory | Mapping[str, Factory],
    sizes: Sequence[Any],
    learning_rates: Sequence[float] = PAPER_RATES,
    *,
    steps: int,
    margin: float,
    seeds: int = 3,
    first_seed: int = 0,
    check_every: int | None = None,
    patience: int = 3,
    read_at: Sequence[int] = (),
    refine: int = 0,
    out: str | Path = "runs/sweep",
    workers: int = 1,
    backend: str = "loky",
    progress: bool = True,
) -> Sweep:
    """Train at every size, learning rate and seed; the page is in `out`, and the same call finishes what is missing there.

    A run whose loss is not finite, or above its initial value in `patience` checks in a row, is lost: it ends early and counts as the
    initial loss.

    Args:
        factory: (size, learning rate, seed) -> `Training`; or arm -> such, the first being the baseline. A function of a module where
            there are several workers.
        sizes: two or more for a forecast; plain values, named by `str`.
        learning_rates: the fixed grid, which sensitivities stand on.
        steps: of each run.
        margin: > 0; a run that ends more than this above the best of its arm, size and seed counts as unstable.
        seeds, first_seed: how many, and the first.
        check_every: steps between looks at the loss; a twentieth of the steps by default.
        patience: >= 1 looks.
        read_at: steps after which `Training.statistics` are read; they are named `NAME at step N`.
        refine: runs near the cliff for each arm, size and seed, which serve the first unstable rate alone.
        out, workers, backend, progress: as in `legato compare`.
    Raises: LegatoValueError for an argument out of range, before anything is trained.
    """
    factories = dict(factory) if isinstance(factory, Mapping) else {OWN: factory}
    for name, value in (("steps", steps), ("seeds", seeds), ("patience", patience), ("check_every", check_every or 1)):
        if value < 1:
            raise errors.argument(name, expected="a whole number >= 1", got=value)
    if wrong := [step for step in read_at if not 1 <= step <= steps]:
        raise errors.argument("read_at", expected=f"steps from 1 to {steps}", got=wrong)
    named = {str(size): size for size in sizes}
    setting = OwnSetting(
        tuple((arm, f"{made.__module__}:{getattr(made, '__qualname__', type(made).__name__)}") for arm, made in factories.items()),
        steps, check_every or max(1, steps // 20), patience, tuple(sorted(set(read_at))),
    )  # fmt: skip
    seeds_ = tuple(range(first_seed, first_seed + seeds))
    grid = Grid(tuple(factories), tuple(map(str, sizes)), tuple(learning_rates), seeds_, margin, refine)
    about = {"trained by": ", ".join(path for _, path in setting.factories), "steps": f"{steps} a run"}
    trial = partial(own_trial, factories=factories, sizes=named)
    return finish(grid, setting, trial, Path(out), workers=workers, backend=backend, progress=progress, about=about)


def own_trial(cell: Cell, folder: Path, *, factories: Mapping[str, Factory], sizes: Mapping[str, Any]) -> Outcome:
    """One run of the user's own training."""
    setting: OwnSetting = cell.setting
    made = factories[cell.arm](sizes[cell.size], cell.learning_rate, cell.seed)
    losses = [float(made.loss())]
    if not math.isfinite(losses[0]):
        raise errors.argument("factory", expected="a training whose first loss is finite", got=losses[0])
    statistics: dict[str, float] = {}
    step = 0
    while step < setting.steps and not why_lost(losses, setting.patience):
        step += 1
        try:
            made.step()
            if step in setting.read_at:
                statistics |= {f"{name} at step {step}": float(value) for name, value in made.statistics().items()}
            if step % setting.check_every == 0 or step == setting.steps:
                losses.append(float(made.loss()))
        except ArithmeticError:  # many loops stop themselves in this way when the loss is NaN
            losses.append(math.nan)
    return outcome(made.parameters, losses, step, setting.patience, statistics)
