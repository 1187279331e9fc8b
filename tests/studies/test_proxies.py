"""The study of small proxies: its grid, its measures on runs that follow a known law, its detector on runs whose fate is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from legato.lab.trial import Record, as_plain, plain_json
from legato.stability.readings import AttentionReading, LogitReading, Reading
from legato.stability.rules import Thresholds
from legato.studies import detector, proxies, verdicts
from legato.studies.decoder_sweep import GRADIENT, LOGIT
from legato.studies.detector import Watched
from legato.studies.proxies_measures import cliffs, held_back, interventions, measures
from legato.studies.proxies_panels import panels
from legato.studies.proxies_trials import (
    ARMS,
    DRIFT,
    FORECAST,
    MARGIN,
    RATES,
    SIZES,
    CoordinateConfig,
    coordinates,
    runs_of,
    sweep_of,
    trial,
)

VALUES = {"thresholds": {"growth": 3.0, "growth_from": 30.0, "limit": 1e4, "entropy": 0.01}}
CLIFFS = {"none": 0.05, "qk-norm": 0.5, "all": 2.0}


def parameters(size):
    width, depth = map(int, size.split("x"))
    return 12 * depth * width**2


def metrics(config):
    """A run whose loss is a valley around 0.01 with a cliff at a rate that falls as the width, but for arms that are cured."""
    if isinstance(config, CoordinateConfig):
        power = 0.5 if config.arm == "none" else 0.0
        return {"rms": {name: [width**power for width in config.widths] for name in ("blocks.0.attention.query", "blocks.0", "blocks.1", "head")}}  # fmt: skip
    width, noise = int(config.size.partition("x")[0]), 1 + 0.01 * (config.seed % 10)
    cliff = CLIFFS.get(config.arm, 0.05) * (32 / width if config.arm == "none" else 1)
    failed = config.learning_rate > cliff * 1.2
    loss = 2 + 0.02 * noise * abs(math.log10(config.learning_rate / 0.01)) + (0.8 * noise if failed else 0.0)
    loss += 0.3 if config.arm == "eps:1e-2" else 0.0
    logit = (5 if "qk-norm" in config.arm else 1e4) * config.learning_rate * width * noise
    setting, steps = config.setting, config.setting.steps
    readings = [
        {"step": step, "attention": {"a": {"largest": [logit * step / steps], "entropy": [1.0]}}, "logits": None}
        for step in range(0, steps, setting.watch_every or steps)
    ]
    return {
        "parameters": parameters(config.size), "loss": loss, "initial_loss": 5.5, "lost": "", "steps": steps,
        "statistics": {LOGIT.format(s): logit * s for s in setting.probe_steps} | {GRADIENT: noise / width**2},
        "curve": [5.5 - (5.5 - loss) * k / setting.checks for k in range(1, setting.checks + 1)],
        "readings": readings if setting.watch_every else [], "log_z_rms": 5.0 if "z-loss" in config.arm else 5.6, "smallest_logit": -30.0,
    }  # fmt: skip


def records_of(configs):
    return [Record(str(k), as_plain(c), plain_json(metrics(c), "m"), 1.0, "0") for k, c in enumerate(configs)]


@pytest.fixture(scope="module")
def configs():
    return proxies.trials("confirm", VALUES, [])


@pytest.fixture(scope="module")
def records(configs):
    return records_of(configs)


def test_confirm_has_fresh_seeds_the_test_text_and_every_arm_on_the_same_grid(configs):
    trainings = [config for config in configs if not isinstance(config, CoordinateConfig)]
    assert {config.seed for config in configs} == set(range(100, 110))
    assert all(config.setting.reads_test for config in trainings)
    main = [config for config in trainings if config.size == "32x1" and config.part in ("sizes", "interventions")]
    assert {config.arm for config in main} == set(ARMS)
    for arm in ARMS:
        assert sorted({config.learning_rate for config in main if config.arm == arm}) == list(RATES)
    alike = {replace(config.setting, watch_every=0) for config in main}
    assert len(alike) == 1  # the same batches and schedule for every arm
    judged = {dict(config.thresholds)["growth"] for config in trainings if config.part == "sizes"}
    assert judged == {3.0}
    assert all(config.seed < 5 and config.size == "16x1" for config in proxies.trials("full", {}, []))
    assert len(proxies.trials("full", {}, [])) + sum(config.part == "sizes" for config in trainings) >= 200


def test_every_claim_of_the_study_has_a_measure_of_ten_seeds(records):
    claims = [claim for claim in verdicts.claims_of("2309.14322") if claim.study == "proxies"]
    found = measures(records)
    assert {claim.id for claim in claims} == set(found)
    for values in found.values():
        assert np.shape(values) == (10,)
        assert np.isfinite(values).all()


def test_measures_are_those_of_the_law(records):
    found = {name: float(np.mean(values)) for name, values in measures(records).items()}
    noise = 1.045
    assert found["proxies-qk-loss"] == pytest.approx(0.8 * noise)
    assert found["proxies-qk-logits"] == pytest.approx(math.log10(1e4 / 5))
    # Of seven rates none fails at 0.1 and 0.3; of the four from 0.01 upwards these are half.
    assert found["proxies-qk-sensitivity"] == pytest.approx(0.8 * noise * 2 / 7)
    assert found["proxies-qk-upper"] == pytest.approx(0.8 * noise * 2 / 4)
    assert found["proxies-size"] == pytest.approx(0)
    assert found["proxies-cliff"] == pytest.approx(
        math.log10(0.3 / 0.1) if False else math.log10(0.3) - math.log10(0.1) + 0, abs=0.6
    )
    assert found["proxies-mup-sensitivity"] == pytest.approx(0)
    assert found["proxies-mup-coordinates"] == pytest.approx(0.5)
    assert found["proxies-all"] == pytest.approx(math.log10(1.0 / 3e-4) - math.log10(3e-2 / 3e-4))
    assert found["proxies-gradient"] == pytest.approx(2 * math.log10(128 / 16))
    assert found["proxies-eps"] == pytest.approx(0.3)
    assert found["proxies-log-z"] == pytest.approx(0.6)


def test_a_cliff_beyond_the_grid_counts_half_a_decade_above_it(records):
    sweep = sweep_of(runs_of(records, SIZES.name), MARGIN, RATES)
    assert sweep.sizes == ("16x1", "32x1", "64x1")
    # none: 0.1, 0.05, 0.025 by width, so the first rates that fail are 0.3, 0.1 and 0.1 (0.03 is below 1.2 * 0.025).
    for size, want in (("16x1", 0.3), ("32x1", 0.1)):
        np.testing.assert_allclose(cliffs(sweep, "none", size), math.log10(want))
    whole = interventions(records, RATES)
    np.testing.assert_allclose(cliffs(whole, "all", "32x1"), 0.5)


def test_held_back_sizes_are_foreseen_from_smaller_ones_alone(records):
    cells = held_back(records)
    assert len(cells) * 10 >= 40
    assert {cell.size for cell in cells} == {"96x2", "128x2"}
    assert {cell.found.used for cell in cells if cell.size == "96x2"} == {4 * 10}
    assert {cell.found.used for cell in cells if cell.size == "128x2"} == {5 * 10}
    for cell in cells:
        low, high = cell.found.band.low, cell.found.band.high
        assert list(cell.held) == [low <= value <= high for value in cell.measured]
    others = [r for r in records if r.config.get("size") != "128x2"]
    moved = [replace(r, metrics=r.metrics | {"statistics": {}}) for r in records if r.config.get("size") == "128x2"]
    assert held_back([*others, *moved])[-1].found == cells[-1].found


def test_the_page_has_a_section_for_every_part_and_the_smoke_form_a_few(records):
    titles = [panel.title for panel in panels(records)]
    assert len(titles) == len(set(titles)) == 9
    names = [figure.name for panel in panels(records) for figure in panel.figures]
    assert len(names) == len(set(names))
    few = panels(records_of(proxies.trials("smoke", {}, [])))
    assert next(panel.title for panel in few) == "Loss against learning rate by size"
    assert panels(records_of(proxies.trials("full", {}, [])))[0].title == "Do the early warnings warn?"


def test_a_watched_trial_keeps_what_the_rules_need(tmp_path):
    config = proxies.trials("smoke", {}, [])[0]
    found = trial(config, tmp_path)
    assert not found.arrays
    assert [reading["step"] for reading in found.metrics["readings"]] == [0, 5]
    (layer,) = found.metrics["readings"][0]["attention"].values()
    assert len(layer["largest"]) == len(layer["entropy"]) == 1
    assert found.metrics["log_z_rms"] > 0
    assert len(found.metrics["curve"]) == config.setting.checks


def test_coordinates_of_the_base_width_are_those_of_the_standard_model(tmp_path):
    base = replace(proxies.setting("smoke"), batch_size=2, length=8)
    plain, scaled = (
        coordinates(replace(proxies.coordinates(base, arm, 0), widths=(16, 32))).metrics["rms"]
        for arm in ("none", "mup:simple")
    )
    assert plain["blocks.1"][0] == scaled["blocks.1"][0]
    assert plain["blocks.1"][1] != scaled["blocks.1"][1]


def reading(step, largest, entropy=1.0):
    layer = AttentionReading([largest], [largest], [entropy], None, None, None, "given")
    return Reading(step, {"a": layer}, LogitReading(5.0, 5.0, -10.0, 10.0))


def run(rate, losses, largest, seed=0):
    readings = tuple(reading(5 * k, value) for k, value in enumerate(largest))
    return Watched("none", "16x1", rate, seed, losses[-1], tuple(losses), 10, readings)


CALM = (3.0, 4.0, 5.0, 6.0, 6.0)
GOOD = run(0.01, (4.0, 3.0, 2.0), CALM)
SLOW = run(0.001, (5.0, 4.5, 4.0), CALM)
BAD = run(0.1, (3.5, 3.4, 3.3), (3.0, 4.0, 50.0, 200.0, 400.0))
LOST = run(1.0, (3.0, 6.0, math.nan), (3.0, 4.0, 5.0, 6.0, 6.0))


def test_what_failed_is_above_the_best_rate_and_seen_from_where_the_loss_stays_worse():
    labelled = {one.run.learning_rate: one.seen_at for one in detector.label([GOOD, SLOW, BAD, LOST], 0.25)}
    assert labelled == {0.01: None, 0.001: None, 0.1: 20, 1.0: 20}
    recovers = run(0.1, (9.0, 2.9, 2.3), CALM)
    assert [one.seen_at for one in detector.label([GOOD, recovers], 0.25)] == [None, 30]
    other_seed = run(0.1, (3.5, 3.4, 3.3), CALM, seed=1)
    assert [one.seen_at for one in detector.label([GOOD, other_seed], 0.25)] == [None, None]


def test_recall_false_alarms_and_lead_are_counted():
    found = detector.detect(detector.label([GOOD, SLOW, BAD, LOST], 0.25), Thresholds())
    assert (found.unstable, found.caught, found.stable, found.false) == (2, 1, 2, 0)
    assert found.leads == (20 - 10,)  # 3 to 50 is more than tenfold at step 10
    assert (found.recall, found.false_alarms, found.lead) == (0.5, 0.0, 10.0)
    touchy = detector.detect(detector.label([GOOD, SLOW, BAD, LOST], 0.25), replace(Thresholds(), limit=5.0))
    assert (touchy.caught, touchy.false) == (2, 2)
    assert math.isnan(detector.detect([], Thresholds()).recall)


def test_fitted_thresholds_catch_most_among_those_with_few_false_alarms():
    runs = detector.label([GOOD, SLOW, BAD, LOST], 0.25)
    found = detector.fit(runs, {"limit": (5.0, 45.0, 1e4), "growth": (10.0, 1e3)})
    assert (found.limit, detector.detect(runs, found).false) == (45.0, 0)
    only_touchy = detector.fit(runs, {"limit": (5.0, 5.5)})
    assert only_touchy.limit == 5.0  # where all give false alarms, among the fewest the better recall


def test_readings_survive_their_compact_form():
    from dataclasses import asdict

    readings = (reading(0, 3.0), reading(5, math.inf, math.nan))
    told = plain_json(detector.compact([asdict(one) for one in readings]), "readings")
    back = detector.revive(told)
    assert [one.step for one in back] == [0, 5]
    assert back[0].attention["a"].largest == [3.0]
    assert back[0].attention["a"].entropy == [1.0]
    assert math.isnan(back[1].attention["a"].largest[0])
    assert back[0].logits == readings[0].logits
    for limits in (Thresholds(), replace(Thresholds(), limit=2.0)):
        assert detector.first_alarm(back, limits) == detector.first_alarm(readings, limits)


def test_the_drift_and_the_forecast_say_what_they_change(configs):
    drift = next(config.setting for config in configs if getattr(config, "part", "") == DRIFT.name)
    assert (drift.steps, drift.watch_every) == (1000, 100)
    foreseen = next(config.setting for config in configs if getattr(config, "part", "") == FORECAST.name)
    assert (foreseen.steps, round(foreseen.warmup * foreseen.steps), foreseen.probe_steps) == (120, 40, (20, 40, 100))
