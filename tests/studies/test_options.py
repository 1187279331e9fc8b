"""What a comparison can do beyond its main road: attacks, references, fewer rows, trackers, packs, saved models."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from legato import data, metrics, nets, training
from legato.errors import LegatoValueError
from legato.lab.statistics import Estimate
from legato.losses import worst_case
from legato.studies import readings, references
from legato.studies.compare import make_job, run
from legato.studies.config import CompareConfig
from legato.studies.prepared import Source, prepare
from legato.studies.result import open_result
from legato.studies.summary import verdict

ATTACKED = CompareConfig(
    data="digits", objectives=("ce", "trades:1,steps=2"), seeds=2, learning_rates=(0.1,), epochs=3, rows=400,
    attack_radius=0.1, select_by="robust-error", workers=1, save_model=True, pack=True,
)  # fmt: skip
TABLE = CompareConfig(
    data="breast_cancer", objectives=("ce", "hinge"), seeds=2, learning_rates=(0.01, 0.1, 0.3), epochs=3, label_noise=(0.2,),
    references=("hist-gradient-boosting",), workers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    return run(dataclasses.replace(ATTACKED, out=tmp_path_factory.mktemp("attacked") / "run"))


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return run(dataclasses.replace(TABLE, out=tmp_path_factory.mktemp("table") / "run"))


def test_accuracy_under_attack_is_that_of_the_saved_model_on_pixels(attacked):
    """The stored network, fed with standardised pixels, is broken by the same attack as often as the table says."""
    folder = next((attacked.folder / "models").glob("ce*"))
    card = json.loads((folder / "model.json").read_text())
    assert (card["data"], card["seed"], card["train_rows"]) == (
        attacked.plan.setting.data,
        attacked.plan.seeds[0],
        attacked.plan.setting.train_rows,
    )
    net = training.load_model(folder, nets.build)
    layer = nets.Standardise(*(torch.tensor(card["standardisation"][key]) for key in ("mean", "deviation")))
    test = data.to_unit(data.load("digits", seed=0)).test
    found = worst_case(
        torch.nn.Sequential(layer, net), test.inputs, test.targets, radius=0.1, bounds=(0.0, 1.0), steps=20, restarts=1,
        batch_size=500,
    )  # fmt: skip
    config = attacked.readings(0.0, "ce")[0]
    assert found.accuracy == pytest.approx(1 - attacked.metrics(config)["test_robust_error"], abs=0.01)
    assert found.accuracy < found.clean_accuracy


def test_the_page_and_the_table_tell_of_the_attack(attacked):
    assert "under attack %" in attacked.page().read_text()
    assert attacked.summary.rows[0].robust.mean < attacked.summary.rows[0].accuracy.mean
    assert "Trades(beta=1, radius=0.1" in dataclasses.replace(attacked.best, objective="trades:beta=1,steps=2").python


def test_an_attack_is_asked_for_before_anything_is_trained():
    for change in ({"attack_radius": None}, {"attack_radius": None, "objectives": ("ce",)}, {"attack_radius": 1.5}):
        with pytest.raises(LegatoValueError, match="attack"):
            make_job(dataclasses.replace(ATTACKED, **change))


def test_a_pack_draws_the_same_page(attacked, tmp_path):
    copy = tmp_path / "elsewhere.jsonl.xz"
    copy.write_bytes(attacked.folder.with_name("run.jsonl.xz").read_bytes())
    assert open_result(copy).page().read_text() == attacked.page().read_text()
    assert open_result(copy).table() == attacked.table()


def test_fewer_rows_are_drawn_by_the_seed():
    config = make_job(ATTACKED).plan.trial(0.0, "ce", 0.1, 1)
    kept, again = prepare(config, Source("digits")), prepare(config, Source("digits"))
    assert len(kept.train.true) == 400
    assert torch.equal(kept.train.index, again.train.index)
    assert set(kept.train.index.tolist()) <= set(data.load("digits", seed=1).train.index.tolist())
    other = prepare(dataclasses.replace(config, seed=2), Source("digits"))
    assert set(kept.train.index.tolist()) != set(other.train.index.tolist())


def test_gradient_boosting_stands_beside_the_table(tables):
    (row,) = tables.summary.references
    assert row.accuracy.mean > 0.85
    assert row.difference.mean == pytest.approx(row.accuracy.mean - tables.summary.rows[0].accuracy.mean)
    assert "hist-gradient-boosting: " in tables.page().read_text()
    config = tables.plan.reference(0.2, "hist-gradient-boosting", 0)
    assert tables.metrics(config)["learning_rate"] in references.RATES
    with pytest.raises(LegatoValueError, match="Did you mean 'hist-gradient-boosting'"):
        make_job(dataclasses.replace(TABLE, references=("hist-gradient-bosting",)))


def test_a_rate_at_the_edge_of_the_grid_is_said(tables):
    rows = [dataclasses.replace(row, at_edge=row.arm == "hinge") for row in tables.summary.rows]
    edged = dataclasses.replace(tables.summary, rows=tuple(rows))
    assert "the best learning rate of hinge is at the edge" in verdict(edged, "x").lower()
    inner = dataclasses.replace(edged, rows=tuple(dataclasses.replace(row, at_edge=False) for row in rows))
    assert "edge" not in verdict(inner, "x")
    for row in tables.summary.rows:
        assert row.at_edge == (row.learning_rate != 0.1)


def test_curves_go_to_a_tracker(tables):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install 'legato[track]'"
    )
    from legato.studies import tracking

    tracking.replay(tables, "tensorboard")
    folders = list((tables.folder / "tracking").iterdir())
    assert len(folders) == 2 * 2 * 4
    reader = events.EventAccumulator(str(min(f for f in folders if f.name.startswith("ce"))))
    reader.Reload()
    curve = [scalar.value for scalar in reader.Scalars("train_loss")]
    stored = [
        r.metrics["curves"]["train_loss"] for c, r in tables.records.items() if getattr(c, "objective", "") == "ce"
    ]
    assert any(np.allclose(curve, row) for row in stored)


def test_recalibration_is_the_calibration_error_at_that_temperature_and_isotonic_regression_mends_its_own_data():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(400, 3, generator=generator) * 3, torch.randint(3, (400,), generator=generator)
    found = readings.recalibrated(logits, target, logits, target, 2.5)
    want = metrics.expected_calibration_error(logits / 2.5, target)
    assert found["noisy_test_ece_recalibrated"] == pytest.approx(want, abs=1e-6)
    assert found["noisy_test_ece_isotonic"] < 0.02 < metrics.expected_calibration_error(logits, target)


def test_reliability_keeps_what_the_calibration_error_needs():
    generator = torch.Generator().manual_seed(1)
    logits, target = torch.randn(300, 4, generator=generator), torch.randint(4, (300,), generator=generator)
    kept = readings.reliability(logits, target)
    values = [np.array(kept[key], dtype=np.float64) for key in ("confidence", "accuracy", "count")]
    assert metrics.ece_of_bins(*values) == pytest.approx(metrics.expected_calibration_error(logits, target), abs=1e-6)


def test_the_table_of_a_page_leaves_out_columns_without_content(tables):
    text = tables.page().read_text()
    assert "under attack" not in text
    assert isinstance(tables.summary.rows[0].accuracy, Estimate)
