"""The main job end to end on real digits, in small: trials, choice of rates, one test reading, verdict, table, page."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import legato
from legato import data, metrics
from legato.errors import LegatoError, StoreError
from legato.lab.trial import Record
from legato.studies import plan as plans
from legato.studies.compare import estimate, run
from legato.studies.config import CompareConfig
from legato.studies.plan import index, trim
from legato.studies.result import open_result

SMALL = CompareConfig(
    data="digits",
    objectives=("comp-sum:1.7", "ce"),
    seeds=2,
    learning_rates=(0.03, 0.3),
    epochs=2,
    label_noise=(0.0, 0.4),
    workers=1,
)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(dataclasses.replace(SMALL, out=tmp_path_factory.mktemp("run")))


def test_the_grid_is_whole_and_the_test_set_read_once_an_arm_and_seed(result):
    done = [config for config in index(result.store.records()) if not isinstance(config, plans.CostConfig)]
    assert len([c for c in done if not c.reads_test]) == 2 * 2 * 2 * 2
    assert len([c for c in done if c.reads_test]) == 2 * 2 * 2
    assert not any("test_error" in r.metrics for r in result.store.records() if r.config.get("reads_test") is False)


def test_rates_are_chosen_by_mean_validation_error(result):
    done = index(result.store.records())
    for (noise, arm), rate in result.summary.rates.items():
        means = {
            r: np.mean([done[result.plan.trial(noise, arm, r, s)]["validation_error"] for s in result.plan.seeds])
            for r in result.plan.learning_rates
        }
        assert means[rate] == min(means.values())


def test_every_arm_sees_the_same_labels_and_the_test_labels_stay_true(result):
    seen = [
        result.arrays(result.plan.trial(0.4, arm, result.summary.rates[0.4, arm], 0, reads_test=True))
        for arm in result.plan.arms
    ]
    assert np.array_equal(seen[0]["seen"], seen[1]["seen"])
    assert np.array_equal(seen[0]["true"], data.load("digits").test.targets.numpy())
    assert 0.3 < np.mean(seen[0]["seen"] != seen[0]["true"]) < 0.5


def test_a_reading_can_be_computed_again_by_hand(result):
    """The stored accuracy is that of the stored logits against the data set's own test labels."""
    config = result.plan.trial(0.0, "ce", result.summary.rates[0.0, "ce"], 1, reads_test=True)
    logits = torch.from_numpy(result.arrays(config)["logits"]).float()
    assert index(result.store.records())[config]["test_error"] == pytest.approx(
        metrics.error_rate(logits, data.load("digits").test.targets), abs=3e-3
    )


def test_verdict_table_best_and_page(result):
    assert result.plan.arms[0] == "ce"
    assert result.verdict.startswith("On the labels as they are ")
    assert "with 40% of the training labels corrupted" in result.verdict.split(". ")[0]
    assert [row["objective"] for row in result.table()] == ["ce", "comp-sum:tau=1.7"] * 2
    assert result.best.criterion(torch.zeros(2, 10), torch.tensor([0, 1])).isfinite()
    text = result.page().read_text()
    assert result.verdict.split(". Measured")[0] in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert len(text) < 3_000_000


def test_the_same_command_again_trains_nothing_and_a_redrawn_page_is_the_same(result):
    before = {p.name: p.stat().st_mtime_ns for p in (result.folder / "trials").iterdir()}
    page = result.page().read_text()
    again = run(dataclasses.replace(SMALL, out=result.folder))
    assert {p.name: p.stat().st_mtime_ns for p in (result.folder / "trials").iterdir()} == before
    assert open_result(result.folder).page().read_text() == page
    assert again.table() == result.table()


def test_an_unfinished_run_has_no_verdict(result, tmp_path):
    import shutil

    shutil.copytree(result.folder, tmp_path / "copy")
    next((tmp_path / "copy" / "trials").glob("*.json")).unlink()
    with pytest.raises(StoreError, match="trials are missing"):
        open_result(tmp_path / "copy")


def factory(input_shape, num_classes):
    return nn.Linear(input_shape[0], num_classes)


def test_from_python_with_arrays_and_a_factory(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(120, 3)), np.array(["no", "yes"])[np.arange(120) % 2]
    x[:, 0] += np.arange(120) % 2 * 3
    found = legato.compare(
        x,
        y,
        objectives=["ce", "mae"],
        model=factory,
        seeds=2,
        epochs=30,
        learning_rates=(0.1,),
        workers=1,
        out=tmp_path,
    )
    assert found.table()[0]["accuracy"] > 0.8
    assert found.about["class_names"] == ["no", "yes"]
    with pytest.raises(LegatoError, match="Did you mean 'seeds'"):
        legato.compare(x, y, seds=3)


def test_dry_run_counts_without_writing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, size = estimate(SMALL)
    assert size.trials == 24
    assert 0 < size.minutes < 5
    assert not list(Path().iterdir())


def test_a_time_limit_trims_seeds_first_and_says_so(result):
    wide = dataclasses.replace(result.plan, seeds=tuple(range(10)), learning_rates=(0.01, 0.1, 1.0))
    small = trim(wide, seconds_a_trial=1.0, workers=1, minutes=1.0)
    assert (len(small.seeds), len(small.learning_rates)) == (3, 3)
    smaller = trim(wide, seconds_a_trial=1.0, workers=1, minutes=0.6)
    assert (len(smaller.seeds), len(smaller.learning_rates)) == (3, 2)
    assert "3 of 10 seeds" in smaller.notes[0]
    assert trim(wide, 0.001, 1, 1.0) == wide


def test_a_plan_survives_the_store(result):
    stored = json.loads(json.dumps(plans.plan_to_json(result.plan)))
    assert plans.plan_from_json(stored) == result.plan
    record = Record("k", stored["setting"], {"a": 1}, 0.0, "v")
    assert result.plan.setting in index([record])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objectives": ("comp-sun:1",)}, "Did you mean 'comp-sum'"),
        ({"objectives": ()}, "one or more objectives"),
        ({"label_noise": (1.0,)}, "label_noise"),
        ({"learning_rates": (0.0,)}, "learning_rates"),
        ({"seeds": 0}, "seeds"),
        ({"epochs": 0}, "epochs"),
        ({"device": "cuda:99"}, "device"),
        ({"data": "digitz"}, "Did you mean 'digits'"),
        ({"model": "mpl"}, "Did you mean 'mlp'"),
        ({"model": "nowhere:net"}, "nowhere"),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(tmp_path, change, words):
    with pytest.raises(LegatoError, match=words):
        run(dataclasses.replace(SMALL, **{"out": tmp_path / "run"} | change))
    assert not list((tmp_path / "run").rglob("trials/*.json"))
