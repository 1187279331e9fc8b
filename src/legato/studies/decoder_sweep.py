"""`legato stability sweep`: the paper's decoder on text, over sizes, learning rates, seeds and remedies."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from legato import errors
from legato.data.text import load_text
from legato.lab.trial import Outcome
from legato.stability.decoder import Decoder
from legato.studies import language
from legato.studies.language import LanguageConfig
from legato.studies.sweep import Cell, Grid, finish
from legato.studies.sweep_arms import parse_arm, with_arm
from legato.studies.sweep_config import SweepConfig
from legato.studies.sweep_runs import Sweep

LOGIT = "largest attention logit of block 0 at step {}"
GRADIENT = "gradient RMS of the first MLP weight at the end"


def run(config: SweepConfig, *, progress: bool = True) -> Sweep:
    """Finish all runs of `config` and open the sweep; its page is in the folder.

    Raises: LegatoValueError for a size, arm or number that cannot be used, before anything is trained.
    """
    from legato.studies.compare import workers_of

    seeds = tuple(range(config.first_seed, config.first_seed + config.seeds))
    grid = Grid(config.arms, config.sizes, config.learning_rates, seeds, config.margin, config.refine)
    setting = setting_of(config)
    for arm in grid.arms:
        language.check_objective(with_arm(setting, arm).objective)
    for size in grid.sizes:
        _check_size(setting, size)
    about = {
        "text": f"{setting.data}, SHA-256 {setting.data_sha256[:12]}",
        "run": f"{setting.steps} steps of {setting.batch_size} windows of {setting.length} bytes, warm-up {setting.warmup:g}, then a cosine to {setting.lowest_rate:g}",
        "arms": ", ".join(
            f"{arm}: {parse_arm(arm) or 'no remedy; independent weight decay 1e-4'}" for arm in grid.arms
        ),
    }
    return finish(
        grid, setting, partial(decoder_trial, source=config.text), config.out, workers=workers_of(config.workers), backend=config.backend,
        progress=progress, about=about,
    )  # fmt: skip


def setting_of(config: SweepConfig) -> LanguageConfig:
    """What all runs share. Its width is that of one head; muParam's base is the smallest width."""
    probes = config.probe_steps or (round(config.warmup * config.steps), config.steps // 3)
    if wrong := [step for step in probes if not 0 <= step <= config.steps]:
        raise errors.argument("probe_steps", expected=f"steps from 0 to {config.steps}", got=wrong)
    widths = [_size(size)[0] for size in config.sizes]
    return language.config_for(
        load_text(config.text), learning_rate=0.0, seed=0, width=config.head_width, heads=1, depth=1, length=config.length,
        batch_size=config.batch_size, steps=config.steps, warmup=config.warmup, qk_norm=False, base_width=min(widths, default=256),
        probe_steps=tuple(sorted(set(probes))), device=config.device, autocast=config.autocast,
    )  # fmt: skip


def decoder_trial(cell: Cell, folder: Path | None = None, *, source: str | None = None) -> Outcome:
    """One training of a decoder, as a run of a sweep; `source` is the text as `load_text` takes it, by default the one of that name."""
    return Outcome(
        run_metrics(language.trial(language_config(cell), folder, text=load_text(source) if source else None).metrics)
    )


def run_metrics(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep keeps of a trial of the task language; the loss is that of the test text where it was read."""
    logits = {LOGIT.format(probe["step"]): probe["attention_max"][0] for probe in told["probes"]}
    lost = told["diverged"] or ""
    return {
        "parameters": told["parameters"], "loss": None if lost else told.get("test_nll", told["loss"]), "initial_loss": told["initial_loss"],
        "lost": lost, "steps": told["steps"], "statistics": logits | {GRADIENT: math.nan if lost else told["gradient_rms"]},
        "curve": told["curves"]["validation_loss"],
    }  # fmt: skip


def language_config(cell: Cell) -> LanguageConfig:
    """The training that a cell stands for."""
    width, depth = _size(cell.size)
    setting = with_arm(cell.setting, cell.arm)
    return replace(
        setting,
        width=width,
        depth=depth,
        heads=width // setting.width,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
    )


def _size(text: str) -> tuple[int, int]:
    """Width and depth of `32x2`."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise errors.argument("sizes", expected="WIDTHxDEPTH, such as 32x2", got=text)
    return int(parts[0]), int(parts[1])


def _check_size(setting: LanguageConfig, size: str) -> None:
    width, depth = _size(size)
    if width % setting.width:
        raise errors.argument(
            "sizes", expected=f"widths that are multiples of the head width {setting.width}", got=size
        )
    Decoder(2, width, depth, width // setting.width, length=1)  # says what else does not fit
