"""The selector study: its simulation against closed forms, equal trials, what is chosen, and that its page is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from legato import data
from legato.lab.trial import Record, as_plain
from legato.studies import selector, selector_objectives, selector_sources, verdicts
from legato.studies.selector import EXPERIMENT
from legato.studies.selector_objectives import ObjectiveConfig, Turning
from legato.studies.selector_sources import LEARNERS, SOURCES, Exp3, SourcesConfig


def record(config, **metrics):
    return Record(str(config), as_plain(config), metrics, 0.0, "0")


def test_every_arm_has_equal_trials_on_five_seeds_and_reads_no_test_data():
    grid = EXPERIMENT.trials("full", {}, [])
    assert not any(config.reads_test for config in grid)
    assert {config.seed for config in grid} == set(range(5))
    assert len(set(grid)) == len(grid) == 5 * (6 * 8 + 5 * 6)
    for part, count in {"sources": 8, "objectives": 6}.items():
        assert {len(set(tried)) for tried in selector.settings()[part].values()} == {count}


def test_the_best_setting_on_validation_data_goes_on_to_fresh_seeds():
    """Every accuracy is a number of its own; the largest of each arm must come back, with its seeds and the test set."""
    grid, rng = EXPERIMENT.trials("full", {}, []), np.random.default_rng(0)
    worth = {replace(config, seed=0): float(rng.random()) for config in grid}
    records = [record(c, validation_accuracy=worth[replace(c, seed=0)]) for c in grid]
    confirmed = EXPERIMENT.trials("confirm", EXPERIMENT.tune(records), [])
    assert {config.seed for config in confirmed} == set(range(100, 110))
    assert all(config.reads_test for config in confirmed)
    best = [max(tried, key=worth.get) for arms in selector.settings().values() for tried in arms.values()]
    assert {replace(c, seed=0, reads_test=False) for c in confirmed} == set(best)
    assert len(confirmed) == 10 * 11
    assert all(selector.revive(as_plain(config)) == config for config in confirmed)


def test_measures_are_paired_differences_and_the_best_fixed_loss_is_chosen_on_validation_data():
    records = []
    for number, arms in enumerate(selector.settings().values()):
        for place, (arm, tried) in enumerate(arms.items()):
            for seed in (101, 100):
                validation = {"ce": 0.9, "comp-sum": 0.8}.get(arm, 0.1)
                test = 100 * number + 10 * place + seed / 1000
                told = {"test_accuracy": test, "validation_accuracy": validation, "curve": [9.0] * 15 + [2 * test] * 15}
                records.append(record(replace(tried[0], seed=seed, reads_test=True), **told))
    found = EXPERIMENT.measures(records)
    assert found.keys() == {c.id for c in verdicts.claims_of(EXPERIMENT.paper) if c.study == "selector"}
    place = {part: list(arms) for part, arms in selector.settings().items()}
    for claim in verdicts.claims_of(EXPERIMENT.paper):
        if claim.study == "selector":
            other = "ce" if claim.baseline == "best fixed" else claim.baseline
            want = 10 * (place[claim.part].index(claim.arm) - place[claim.part].index(other))
            np.testing.assert_allclose(found[claim.id], [want * (1 + (claim.metric == "late share"))] * 2)


def test_the_clean_source_changes_half_way_and_the_oracle_knows():
    """The oracle learns digits from true labels; a blind choice is right once in four."""
    outcome = selector_sources.trial(SourcesConfig("oracle", 0.1, (), seed=3, steps=300, reads_test=True)).metrics
    assert outcome["clean_share"] == 1
    assert min(outcome["test_accuracy"], outcome["validation_accuracy"]) > 0.85
    blind = selector_sources.trial(SourcesConfig("uniform", 0.1, (), seed=3, steps=600)).metrics
    assert blind["clean_share"] == pytest.approx(1 / SOURCES, abs=4 * np.sqrt(3 / 16 / 600))
    assert "test_accuracy" not in blind
    assert len(blind["curve"]) == selector_sources.WINDOWS
    assert np.mean(blind["curve"]) == pytest.approx(blind["clean_share"])


class Always:
    """One source, whatever happens; it keeps what it was told."""

    def __init__(self, seed):
        self.told = []
        kept.append(self)

    def choose(self):
        return 0

    def report(self, progress):
        self.told.append(progress)


kept = []


def test_a_step_is_that_of_autograd_and_progress_sums_to_the_fall_of_the_held_out_loss(monkeypatch):
    """Twin: the same rows through torch's cross-entropy and plain gradient descent."""
    monkeypatch.setitem(selector_sources.LEARNERS, "always", Always)
    rng = np.random.default_rng(5)
    x, held = rng.normal(size=(40, 3)), rng.normal(size=(20, 3))
    y, held_y = rng.integers(4, size=40), rng.integers(4, size=20)
    y[0] = 3
    config = SourcesConfig("always", 0.3, (), seed=0, steps=60)
    weights, hits = selector_sources._train(config, x, y, held, held_y, np.random.default_rng(6))
    draw = np.random.default_rng(6)
    first, second = draw.permutation(SOURCES)[:2]
    w = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    for step in range(60):
        rows, blind = draw.integers(40, size=32), draw.integers(4, size=32)
        clean = (first if step < 30 else second) == 0
        assert hits[step] == clean
        loss = torch.nn.functional.cross_entropy(torch.tensor(x[rows]) @ w, torch.tensor(y[rows] if clean else blind))
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - 0.3 * gradient).detach().requires_grad_()
    np.testing.assert_allclose(weights, w.detach().numpy(), rtol=1e-9)
    last = float(torch.nn.functional.cross_entropy(torch.tensor(held) @ w, torch.tensor(held_y)).detach())
    assert sum(kept[-1].told) == pytest.approx(np.log(4) - last, rel=1e-9)


def test_exp3_is_its_formula():
    """Twin: multiplicative weights, with rewards by the largest progress so far."""
    learner, rng = Exp3(0.2, seed=1), np.random.default_rng(2)
    weights, largest, draws = np.ones(SOURCES), 1e-12, np.random.default_rng(1)
    for _ in range(60):
        p = 0.8 * weights / weights.sum() + 0.2 / SOURCES
        choice = learner.choose()
        assert choice == draws.choice(SOURCES, p=p / p.sum())
        progress = float(rng.normal() + choice)
        learner.report(progress)
        largest = max(largest, abs(progress))
        weights[choice] *= np.exp(0.2 / SOURCES * (1 + progress / largest) / 2 / p[choice])


def test_forgetting_finds_the_new_source_and_locking_in_does_not():
    made = {name: selector.settings()["sources"][name][0] for name in ("static log-barrier", "discounted log-barrier")}
    shares = {
        name: np.mean([selector_sources.trial(replace(c, seed=seed, steps=1500)).metrics["curve"][15:] for seed in (0, 1)])
        for name, c in made.items()
    }  # fmt: skip
    assert shares["discounted log-barrier"] > 0.6
    assert shares["static log-barrier"] < shares["discounted log-barrier"] - 0.2


def test_labels_turn_and_rows_do_not():
    x, y = torch.arange(20.0)[:, None], torch.zeros(20, dtype=torch.int64)
    batches = [data.Batches(x, labels, torch.arange(20), 8, seed=1) for labels in (y, y + 1)]
    turning = Turning(*batches, turn=2)
    assert len(turning) == 3
    for epoch in range(4):
        for (inputs, labels, index), (plain, _, _) in zip(turning.epoch(epoch), batches[0].epoch(epoch), strict=True):
            assert torch.equal(inputs, plain)
            assert torch.equal(inputs[:, 0].long(), index)
            assert (labels == (epoch >= 2)).all()


def test_no_arm_trains_on_what_the_selector_looks_at(monkeypatch):
    """The batches of a plain arm and of a selecting one are the same rows, and none of them is held out."""
    seen = {}
    fit = selector_objectives.training.fit

    def spy(model, objective, batches, **options):
        seen[type(objective).__name__] = batches.before.tensors[0], getattr(objective, "held_out", None)
        return fit(model, objective, batches, **options)

    monkeypatch.setattr(selector_objectives.training, "fit", spy)
    for text in ("ce", "select:ce/comp-sum:tau=1.7"):
        outcome = selector_objectives.trial(ObjectiveConfig(text, 0.01, 0, rows=64, epochs=2, reads_test=True), None)
    assert sum(outcome.metrics["curves"][name][-1] for name in ("ce", "comp-sum:tau=1.7")) == 2
    plain, (rows, held_out) = seen["Criterion"][0], seen["SelectedLoss"]
    assert torch.equal(plain, rows)
    assert len(held_out[0]) == 200
    assert not (rows.flatten(1)[:, None] == held_out[0].flatten(1)[None]).all(-1).any()


def test_the_smoke_form_runs_and_its_page_is_drawn(tmp_path):
    configs = EXPERIMENT.trials("smoke", {}, [])
    assert {config.seed for config in configs} == {0, 1}
    records = [
        record(config, **EXPERIMENT.trial(config, tmp_path / str(i)).metrics) for i, config in enumerate(configs)
    ]
    first, second = EXPERIMENT.panels(records)
    assert [row[0].text for row in first.tables[0].rows] == list(selector.LEARNERS)
    assert [row[0].text for row in second.tables[0].rows] == list(selector.FAMILIES)
    assert all(np.isfinite(values).all() for values in EXPERIMENT.measures(records).values())
    assert EXPERIMENT.panels([record(c, validation_accuracy=0.0) for c in EXPERIMENT.trials("full", {}, [])[:9]]) == []
    assert set(LEARNERS) | {"oracle"} == set(selector.LEARNERS)
