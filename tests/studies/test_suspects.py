"""The study of suspects: equal trials, what each treatment leaves, and that its page is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from legato.lab.trial import Record, as_plain
from legato.studies import suspects, verdicts
from legato.studies.labels import Rows
from legato.studies.suspects import ARMS, EXPERIMENT, SuspectsTrial


def record(config, **metrics):
    return Record(str(config), as_plain(config), metrics, 0.0, "0")


def test_every_arm_has_eight_trials_on_five_seeds_and_reads_no_test_data():
    assert {len(set(tried)) for tried in ARMS.values()} == {8}
    grid = EXPERIMENT.trials("full", {}, [])
    assert len(set(grid)) == len(grid) == 8 * len(ARMS) * 5 * 2
    assert not any(config.reads_test for config in grid)
    assert all(suspects.arm_of(config) == arm for arm, tried in ARMS.items() for config in tried)


def test_the_best_setting_on_validation_data_goes_on_to_fresh_seeds():
    """Every accuracy is a number of its own; the largest of each arm and kind must come back."""
    grid, rng = EXPERIMENT.trials("full", {}, []), np.random.default_rng(0)
    worth = {replace(config, seed=0): float(rng.random()) for config in grid}
    tuned = EXPERIMENT.tune([record(c, validation_accuracy=worth[replace(c, seed=0)]) for c in grid])
    confirmed = EXPERIMENT.trials("confirm", tuned, [])
    assert {config.seed for config in confirmed} == set(range(100, 110))
    best = {
        max((replace(c, kind=kind) for c in tried), key=worth.get) for tried in ARMS.values() for kind in suspects.KINDS
    }
    assert {replace(c, seed=0, reads_test=False) for c in confirmed} == best


@pytest.fixture(scope="module")
def rows():
    """Two easy classes, one label in ten wrong."""
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(400) % 2
    x = torch.randn(400, 6, generator=generator) + 3 * (2 * true - 1)[:, None]
    given = torch.where(torch.arange(400) % 10 == 3, 1 - true, true)
    return Rows(x, given, true, torch.arange(400), ("a", "b"))


def test_treatments_leave_what_they_say(rows):
    def left(treatment, share=suspects.DISAGREES):
        return suspects.treated(SuspectsTrial(treatment, 0.01, 0, share), rows)

    wrong = rows.given != rows.true
    for treatment in ("none", "relabel"):
        assert torch.equal(left(treatment)[0], torch.arange(400))
    assert torch.equal(left("none")[1], rows.given)
    assert torch.equal(left("oracle")[0], torch.arange(400)[~wrong])
    assert len(left("random", 0.2)[0]) == pytest.approx(320, abs=4 * np.sqrt(400 * 0.2 * 0.8))
    kept = left("remove", 0.1)[0]
    assert len(kept) == 360
    assert wrong[kept].float().mean() < 0.02
    assert wrong[left("remove")[0]].float().mean() < 0.02
    assert (left("relabel")[1] != rows.true).float().mean() < 0.02


def test_measures_are_paired_differences_of_test_accuracy_and_the_page_is_drawn():
    place = {arm: number for number, arm in enumerate(ARMS)}
    records = [
        record(replace(tried[0], seed=seed, kind=kind, reads_test=True), test_accuracy=place[arm] / 100 + seed / 1e4, rows=1600, wrong_left=0.1)
        for kind in suspects.KINDS
        for seed in (101, 100)
        for arm, tried in ARMS.items()
    ]  # fmt: skip
    found = EXPERIMENT.measures(records)
    asked = [claim for claim in verdicts.claims_of(EXPERIMENT.paper) if claim.study == suspects.NAME]
    assert found.keys() == {claim.id for claim in asked}
    for claim in asked:
        np.testing.assert_allclose(found[claim.id], [(place[claim.arm] - place[claim.baseline]) / 100] * 2)
    assert [panel.title for panel in EXPERIMENT.panels(records)] == ["With symmetric noise", "With pair noise"]
    assert EXPERIMENT.panels([record(ARMS["all rows"][0], validation_accuracy=0.5)]) == []


def test_a_trial_measures_what_was_left(tmp_path):
    config = SuspectsTrial("remove", 0.01, 0, 0.2, rows=300, epochs=2, reads_test=True)
    told = suspects.trial(config, tmp_path).metrics
    assert told["rows"] == 240
    assert told["wrong_left"] < told["wrong_before"]
    assert told["wrong_before"] == pytest.approx(0.2, abs=0.02)
    assert 0.3 < told["test_accuracy"] < 1
