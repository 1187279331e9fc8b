"""The study of AST in small: its trials, what it tunes, and its measures against numbers made by hand."""

import json

import numpy as np
import pytest

from legato.lab.trial import Record, as_plain, trial_hash
from legato.studies import ast, ast_page, ast_trials, experiment, verdicts
from legato.studies.ast_trials import DistilTrial, ExpertsTrial, SelectTrial, Task

CHOSEN = {"chosen": dict.fromkeys(ast.ARMS, ast.GRID[0])}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ast")
    return experiment.measure("ast", ast.EXPERIMENT, "smoke", folder, workers=1), folder


def record(config, **metrics):
    return Record("k", as_plain(config), metrics, 1.0, "0")


def test_everything_runs_and_the_page_is_drawn(smoke):
    records, folder = smoke
    assert sorted(r.config.get("arm", r.config.get("recipe")) for r in records) == [
        "ast",
        "mtt",
        "plain",
        "random",
        "strong, both",
    ]
    made = next(r for r in records if r.config.get("arm") == "ast")
    assert len(made.metrics["loss"]) == 2
    assert [len(way) for way in made.metrics["ways"]] == [10]
    assert made.metrics["end_distance"] == made.metrics["ways"][0][-1]
    page = experiment.page("ast", ast.EXPERIMENT, "smoke", records, [], "here")
    assert [panel.title for panel in page.panels] == [
        "digits, 1 a class",
        "How smooth are the experts?",
        "How errors add up",
    ]
    assert len(page.panels[0].pictures) == 2
    assert list((folder / "experts").glob("*.safetensors"))


def test_a_set_waits_for_its_experts_and_stands_on_them():
    first = ast.trials("smoke", {}, [])
    assert not any(isinstance(config, DistilTrial) for config in first)
    done = [record(config) for config in first if isinstance(config, ExpertsTrial)]
    sets = [config for config in ast.trials("smoke", {}, done) if isinstance(config, DistilTrial)]
    assert len(sets) == 2
    other = DistilTrial(ExpertsTrial(sets[0].experts.task, "strong"), sets[0].arm)
    assert trial_hash("ast", 1, other) != trial_hash("ast", 1, DistilTrial(sets[0].experts, sets[0].arm))


def test_equal_trials_for_every_arm_and_fresh_seeds_to_confirm():
    experts = [config for config in ast.trials("full", {}, []) if isinstance(config, ExpertsTrial)]
    full = [c for c in ast.trials("full", {}, [record(e) for e in experts]) if isinstance(c, DistilTrial)]
    assert {sum(c.arm == arm for c in full) for arm in ast.ARMS} == {8}
    assert not any(c.reads_test for c in full)
    seeds = {c.experts.task.seed for c in full}
    confirm = ast.trials("confirm", CHOSEN, [])
    fresh = {config.task.seed for config in confirm if isinstance(config, SelectTrial)}
    assert fresh == set(range(100, 110))
    assert not seeds & fresh
    assert all(config.reads_test for config in confirm if isinstance(config, SelectTrial))


def test_the_setting_with_the_best_validation_is_chosen():
    found = []
    for arm in ast.ARMS:
        for place, setting in enumerate(ast.GRID):
            for seed in range(2):
                config = ast._set(Task("digits", seed), arm, setting)
                found.append(record(config, validation=0.5 + (0.1 if place == 2 else 0) + 0.01 * seed))
    chosen = ast.tune(found)["chosen"]
    assert set(map(str, chosen.values())) == {str(ast.GRID[2])}
    assert json.loads(json.dumps(chosen)) == chosen


def test_the_measures_are_paired_differences_in_the_order_of_the_seeds():
    rng = np.random.default_rng(0)
    records, accuracy, distance = [], {}, {}
    for seed in (101, 100, 102):  # stored in another order
        task = Task("digits", seed)
        for place, arm in enumerate(ast.ARMS):
            accuracy[arm, seed], distance[arm, seed] = rng.random(2)
            for data, ipc in ((task, 1), (task, 10), (Task("fashion-mini", seed, 14), 1)):
                config = ast._set(data, arm, ast.GRID[0], ipc=ipc)
                shift = 0.0 if (data.data, ipc) == ("digits", 1) else 0.1 * place
                records.append(record(config, accuracy=accuracy[arm, seed] + shift, end_distance=distance[arm, seed]))
        for arm in ast.SELECTIONS:
            records += [
                record(SelectTrial(t, arm, ipc), accuracy=0.25)
                for t, ipc in ((task, 1), (task, 10), (Task("fashion-mini", seed, 14), 1))
            ]
        for recipe, length in (
            ("strong", 2.0),
            ("strong, ramp", 1.0),
            ("strong, penalty", 4.0),
            ("strong, sample penalty", 2.0),
        ):
            records.append(
                record(ExpertsTrial(task, recipe), steps=[[length, 1.0], [length, 2.0]], errors=[[0.1, 0.1]] * 2)
            )
    found = ast.measures(records)

    def gap(a, b, of=accuracy):
        return [of[a, seed] - of[b, seed] for seed in (100, 101, 102)]

    assert found["ast-outperforms"] == pytest.approx(gap("ast", "mtt"))
    assert found["ast-outperforms-ten"] == pytest.approx(np.array(gap("ast", "mtt")) + 0.9)
    assert found["ast-random"] == pytest.approx([accuracy["mtt", s] - 0.25 for s in (100, 101, 102)])
    assert found["ast-interplay"] == pytest.approx(gap("strong", "mtt", distance))
    assert found["ast-mid-cumulative"] == pytest.approx(gap("mtt", "mid points", distance))
    assert found["ast-clipping-rate"] == pytest.approx([np.log(2)] * 3)
    assert found["ast-penalty-rate"] == pytest.approx([-np.log(2)] * 3)
    assert found["ast-penalty-sample-rate"] == pytest.approx([0.0] * 3)
    own = np.array([accuracy["mtt", s] for s in (100, 101, 102)])
    other = np.array([accuracy["init", s] for s in (100, 101, 102)])
    assert found["ast-init-steady"] == pytest.approx(abs(own - np.median(own)) - abs(other - np.median(other)))
    claimed = {claim.id for claim in verdicts.claims_of("2310.10541") if claim.study == "ast"}
    assert found.keys() == claimed


def test_the_way_of_a_student_begins_at_one_and_ends_at_its_matching_loss():
    task = Task("digits", 0, width=2)
    found = ast_trials.prepared(task)
    from legato.distillation import FlatModel, Recipe, Settings, train_expert
    from legato.distillation.flat import fresh

    expert = train_expert(found.net, found.train, found.val, Recipe(epochs=2))
    rows = found.train[0][:10], found.train[1][:10]
    flat = FlatModel(fresh(found.net, 0))
    still = ast_trials.way(flat, expert, rows, 1e-12, Settings(max_start=1), 0)
    assert still == pytest.approx([1.0] * 10, abs=1e-6)
    balanced = ast_trials.way(flat, expert, rows, 0.05, Settings(max_start=1, balance=True), 0)
    assert balanced != ast_trials.way(flat, expert, rows, 0.05, Settings(max_start=1), 0)


def test_groups_of_the_page_are_by_data_and_size():
    sets = [record(SelectTrial(Task("digits", 0), "random", ipc)) for ipc in (10, 1)] + [
        record(SelectTrial(Task("fashion-mini", 0), "random"))
    ]
    assert list(ast_page.grouped(sets)) == ["digits, 1 a class", "fashion-mini, 1 a class", "digits, 10 a class"]
