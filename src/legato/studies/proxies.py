"""Small-scale proxies for large-scale instabilities (2309.14322), with decoders of 3 to 400 thousand parameters on bytes of text.

full     fits the thresholds of the early warnings on runs of the smallest size; nothing else is tuned, since every arm has the whole grid of rates.
confirm  fresh seeds, losses on the test text, the warnings judged on other sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from legato.lab.trial import Record
from legato.studies import detector, proxies_measures, proxies_panels, proxies_trials
from legato.studies.decoder_sweep import setting_of
from legato.studies.experiment import Experiment
from legato.studies.language import LanguageConfig
from legato.studies.proxies_trials import (
    ARMS,
    COORDINATES,
    DETECTOR,
    DRIFT,
    EPS,
    FORECAST,
    INTERVENTIONS,
    MARGIN,
    SIZES,
    CoordinateConfig,
    Part,
    PartCell,
    cells,
)
from legato.studies.spec import Form
from legato.studies.sweep_config import SweepConfig

SEEDS: Mapping[Form, tuple[int, ...]] = {"smoke": (0, 1), "full": tuple(range(5)), "confirm": tuple(range(100, 110))}


def setting(form: Form) -> LanguageConfig:
    """What all trainings share, but for what their part changes."""
    shared = setting_of(SweepConfig(sizes=("16x1",), steps=150, probe_steps=(15, 75)))
    return replace(shared, checks=10, validation_rows=64, reads_test=form == "confirm")


def trials(form: Form, values: Mapping[str, Any], records: Sequence[Record]) -> list[PartCell | CoordinateConfig]:
    """Everything that a form measures; nothing depends on what was found."""
    base, seeds = setting(form), SEEDS[form]
    if form == "smoke":
        small = replace(base, steps=10, probe_steps=(5,), validation_rows=8)
        parts = [Part("sizes", ARMS[:2], ("16x1",), (0.01, 0.3), (("watch_every", 5),))]
        return [cell for part in parts for cell in cells(part, small, seeds)]
    if form == "full":
        return [*cells(DETECTOR, base, seeds)]
    parts = [SIZES, INTERVENTIONS, EPS, FORECAST, DRIFT]
    trainings = [cell for part in parts for cell in cells(part, base, seeds, values["thresholds"])]
    return [*trainings, *(coordinates(base, arm, seed) for seed in seeds for arm in COORDINATES.arms)]


def coordinates(base: LanguageConfig, arm: str, seed: int) -> CoordinateConfig:
    """A coordinate check of two blocks."""
    widths = tuple(int(size.partition("x")[0]) for size in COORDINATES.sizes)
    return CoordinateConfig(arm, widths, COORDINATES.learning_rates[0], seed, replace(base, depth=2, reads_test=False))


def tune(records: Sequence[Record]) -> dict[str, Any]:
    """The thresholds of the early warnings."""
    runs = detector.label(proxies_trials.watched_of(records, DETECTOR.name), MARGIN)
    found = detector.fit(runs)
    return {"thresholds": {name: getattr(found, name) for name in detector.GRID}}


EXPERIMENT = Experiment(
    paper="2309.14322",
    title="Small-scale proxies for large-scale Transformer training instabilities",
    trial=proxies_trials.trial,
    trials=trials,
    measures=proxies_measures.measures,
    panels=proxies_panels.panels,
    tune=tune,
    cut="decoders of 3 to 393 thousand parameters, 120 to 1,000 steps of 512 bytes, 256 tokens; the paper has up to 4.8 billion parameters, "
    "100,000 steps of 131,072 tokens and 32,101 tokens",
)
