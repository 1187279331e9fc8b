"""The trials of the study `proxies`: trainings of small decoders, watched or not, and coordinate checks of muParam."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from legato.data.text import load_text, windows
from legato.lab.trial import Outcome, Record
from legato.stability.mup import coordinate_check
from legato.studies import detector, language
from legato.studies.decoder_sweep import language_config, run_metrics
from legato.studies.detector import Watched
from legato.studies.language import LanguageConfig
from legato.studies.sweep import Cell, run_of
from legato.studies.sweep_config import PAPER_RATES
from legato.studies.sweep_runs import Run, Sweep

COORDINATE_STEPS = 10
ARMS = (
    "none", "qk-norm", "z-loss", "qk-norm+z-loss", "warmup:0.25", "warmup:0.5", "decay:conventional", "mup:simple", "mup:intermediate",
    "mup:full", "muon", "all",
)  # fmt: skip
"""What is done against instability, in the order of every table."""


@dataclass(frozen=True)
class Part:
    """Trainings that belong together."""

    name: str
    arms: tuple[str, ...]
    sizes: tuple[str, ...]
    learning_rates: tuple[float, ...]
    changes: tuple[tuple[str, Any], ...] = ()
    """Fields of `LanguageConfig`, which all arms start from."""


RATES = (*PAPER_RATES, 1.0)
"""The paper's grid and one half-decade more; sensitivities stand on the first seven."""
MARGIN = 0.25
"""Nats above the best loss from which a run counts as unstable."""
WATCHED = (("watch_every", 5),)
MAIN = "32x1"
SIZES = Part("sizes", ARMS[:2], ("16x1", MAIN, "64x1"), RATES, WATCHED)
INTERVENTIONS = Part("interventions", ARMS[2:], (MAIN,), RATES)
DETECTOR = Part("detector", ("none", "qk-norm", "warmup:0.25", "all"), ("16x1",), RATES, WATCHED)
EPS = Part("eps", ("eps:1e-4", "eps:1e-3", "eps:1e-2"), (MAIN,), (0.01,))
FORECAST = Part(
    "forecast", ("none",), ("16x2", "32x2", "48x2", "64x2", "96x2", "128x2"), (0.01, 0.03, 0.1),
    (("steps", 120), ("warmup", 1 / 3), ("probe_steps", (20, 40, 100)), ("checks", 2)),
)  # fmt: skip
"""The rate peaks at step 40."""
DRIFT = Part(
    "drift", ("qk-norm+weight-decay:0", "qk-norm+z-loss+weight-decay:0"), (MAIN,), (0.3,),
    (("steps", 1000), ("checks", 5), ("watch_every", 100), ("probe_steps", ())),
)  # fmt: skip
COORDINATES = Part("coordinates", ("none", "mup:simple", "mup:full"), ("16x2", "32x2", "64x2", "128x2"), (0.01,))


@dataclass(frozen=True)
class PartCell(Cell):
    """One training of a part."""

    part: str = ""
    thresholds: tuple[tuple[str, float], ...] = ()
    """Of the early warnings, as they were fitted earlier; they change nothing in the run, and say what it is judged by."""


@dataclass(frozen=True)
class CoordinateConfig:
    """How large outputs are over widths after a few steps at one learning rate."""

    arm: str
    widths: tuple[int, ...]
    learning_rate: float
    seed: int
    setting: LanguageConfig


def trial(config: PartCell | CoordinateConfig, folder: Path) -> Outcome:
    """One training, or one coordinate check; predictions are not kept."""
    if isinstance(config, CoordinateConfig):
        return coordinates(config)
    told = language.trial(language_config(config), folder).metrics
    kept = run_metrics(told)
    readings = detector.compact(told.get("readings", []))
    if readings and readings[-1]["logits"]:
        kept["log_z_rms"] = readings[-1]["logits"]["log_z_rms"]
        kept["smallest_logit"] = readings[-1]["logits"]["smallest"]
    return Outcome(kept | {"readings": readings})


def coordinates(config: CoordinateConfig) -> Outcome:
    """RMS of the output of each module after ten steps, one number a width; batches are the same at every width."""
    text = load_text(config.setting.data)
    factors: dict[int, Any] = {}

    def make(width: int) -> nn.Module:
        model, factors[width] = language.new_model(_at(config, width))
        return model

    def train(model: nn.Module) -> Tensor:
        width = model.get_parameter("norm.weight").numel()
        optimizer = language.new_optimizer(_at(config, width), model, factors[width])
        batches = windows(text.train, config.setting.length, COORDINATE_STEPS * config.setting.batch_size)
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(config.seed))
        for rows in order.split(config.setting.batch_size):
            optimizer.zero_grad(set_to_none=True)
            logits = model(batches[rows, :-1])
            nn.functional.cross_entropy(logits.flatten(0, 1), batches[rows, 1:].flatten()).backward()
            optimizer.step()
        return batches[: config.setting.batch_size, :-1]

    found = coordinate_check(make, config.widths, train)
    return Outcome({"rms": dict(found)})


def _at(config: CoordinateConfig, width: int) -> LanguageConfig:
    cell = Cell(config.arm, f"{width}x{config.setting.depth}", config.learning_rate, config.seed, config.setting)
    return language_config(cell)


def cells(
    part: Part, setting: LanguageConfig, seeds: Sequence[int], thresholds: Mapping[str, float] | None = None
) -> list[PartCell]:
    """All trainings of a part, seed by seed."""
    own = replace(setting, **dict(part.changes))
    judged_by = tuple(sorted((thresholds or {}).items())) if own.watch_every else ()
    return [
        PartCell(arm, size, rate, seed, own, part.name, judged_by)
        for seed in seeds
        for arm in part.arms
        for size in part.sizes
        for rate in part.learning_rates
    ]


def of_part(records: Sequence[Record], name: str) -> list[Record]:
    """The records of a part's trainings."""
    return [record for record in records if record.config.get("part") == name]


def runs_of(records: Sequence[Record], name: str) -> list[Run]:
    """The runs of a part."""
    return [run_of(record) for record in of_part(records, name)]


def sweep_of(runs: Sequence[Run], margin: float, rates: Sequence[float]) -> Sweep:
    """Runs as a sweep over those of the rates that they have; arms and sizes in the order of the runs, the smallest size first."""
    kept = tuple(run for run in runs if run.learning_rate in rates)
    sizes = dict.fromkeys(run.size for run in sorted(kept, key=lambda run: run.parameters))
    arms = sorted(dict.fromkeys(run.arm for run in kept), key=lambda arm: [*ARMS, arm].index(arm))
    found = tuple(sorted({run.learning_rate for run in kept}))
    return Sweep(kept, tuple(arms), tuple(sizes), found, tuple(sorted({run.seed for run in kept})), margin)


def watched_of(records: Sequence[Record], name: str) -> list[Watched]:
    """The runs of a part with their readings, where it was watched."""
    return [_watched(record) for record in of_part(records, name) if record.metrics["readings"]]


def _watched(record: Record) -> Watched:
    run, setting = run_of(record), record.config["setting"]
    losses = tuple(float("nan") if loss is None else loss for loss in record.metrics["curve"])
    return Watched(
        run.arm, run.size, run.learning_rate, run.seed, run.loss, losses, setting["steps"] // setting["checks"],
        detector.revive(record.metrics["readings"]),
    )  # fmt: skip
