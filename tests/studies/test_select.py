"""`select:` in a comparison: its text form, the rows that it holds out, and what the page says of its choices."""

import dataclasses

import numpy as np
import pytest
import torch

import legato
from legato.errors import LegatoValueError
from legato.online import SelectedLoss
from legato.studies import classify, cost, panels
from legato.studies.compare import load, make_plan, run
from legato.studies.config import CompareConfig
from legato.studies.methods import Context, Training
from legato.studies.objectives import parse
from legato.studies.prepared import prepare

ARM = "select:ce/comp-sum:tau=1.7/every=2/rows=50/memory=20"
ASKED = CompareConfig(
    data="digits", objectives=("ce", ARM), seeds=2, learning_rates=(0.1,), epochs=2, label_noise=(0.4,), rows=300, workers=1
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("select:ce/comp-sum:1.7/label-smoothing:0.1", "select:ce/comp-sum:tau=1.7/label-smoothing:amount=0.1"),
        ("select:ce/comp-sum:tau=1.7/ensloss", "select:ce/comp-sum:tau=1.7/ensloss"),
        ("select:memory=30/comp-sum:tau=2,warmup=0.3/ce/memory=20", "select:comp-sum:tau=2,warmup=0.3/ce/memory=20"),
        ("sam:0.1+select:ce/mae/every=5", "select:ce/mae+sam:radius=0.1"),
        (ARM, ARM),
    ],
)
def test_canonical_form_is_stable(text, canonical):
    assert str(parse(text)) == canonical == str(parse(canonical))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("select", "two or more different losses"),
        ("select:ce", "select:ce/comp-sum:1.7"),
        ("select:ce/ce", "two or more different losses"),
        ("select:ce/trades", "losses of outputs and labels between the slashes; got trades"),
        ("select:ce/saf:1", "between the slashes"),
        ("select:ce/select:mae/gce", "between the slashes"),
        ("select:ce/comp-sun:1.7", "Did you mean 'comp-sum'"),
        ("select:ce/mae/memori=3", "Did you mean 'memory'"),
        ("select:ce/mae/every=0", "select:every: expected a finite number >= 1"),
        ("select:ce/mae+saf", "which looks at the model itself"),
        ("select:ce/mae+esam", "which looks at the model itself"),
        ("select:ce/mae+ce", "one loss in each objective"),
    ],
)
def test_errors_say_what_is_wrong(text, words):
    with pytest.raises(LegatoValueError, match=words.replace("+", r"\+")):
        parse(text)


def test_it_is_built_as_its_python_says():
    text = "select:ce/comp-sum:1.7/memory=0/boldness=2/every=3"
    built = parse(text).build(Context(10, seed=4))
    written = eval(parse(text).python(Context(10)), {"legato": legato, "torch": torch})
    for selected in (built, written):
        assert type(selected) is SelectedLoss
        assert list(selected.criteria) == list(selected.selector.names) == ["ce", "comp-sum:tau=1.7"]
        assert selected.criteria["comp-sum:tau=1.7"].tau == 1.7
        assert (selected.every, selected.selector.learner.discount, selected.selector.learner.boldness) == (3, 1, 2)


def test_boldness_0_chooses_blindly_whatever_happens():
    selector = parse("select:ce/mae/boldness=0").build(Context(10)).selector
    for _ in range(200):
        selector.report(1e3 * (selector.choose() == "ce"))
    assert list(selector.probs().values()) == pytest.approx([0.5, 0.5], abs=1e-7)


def test_held_out_rows_are_training_rows_that_no_batch_has():
    source, splits = load(ASKED)
    plan = make_plan(ASKED, splits, source)
    config = plan.trial(0.4, ARM, 0.1, 0)
    task = prepare(config, source)
    rows, held_out = classify.hold_out(config, task)
    assert (len(rows.index), len(held_out.index)) == (250, 50)
    both = torch.cat([rows.index, held_out.index])
    assert torch.equal(both.sort().values, task.train.index.sort().values)
    place = {int(i): n for n, i in enumerate(task.train.index)}
    for part in (rows, held_out):
        where = torch.tensor([place[int(i)] for i in part.index])
        assert torch.equal(part.inputs, task.train.inputs[where])
        assert torch.equal(part.seen, task.train.seen[where])
    assert torch.equal(classify.hold_out(config, task)[1].index, held_out.index)
    other = dataclasses.replace(config, seed=1)
    assert not torch.equal(classify.hold_out(other, task)[1].index, held_out.index)
    plain, none = classify.hold_out(plan.trial(0.4, "ce", 0.1, 0), task)
    assert plain is task.train
    assert none is None
    objective = classify.new_objective(config, task, torch.nn.Linear(64, 10))
    assert torch.equal(objective.held_out[0], held_out.inputs)
    with pytest.raises(LegatoValueError, match="fewer than the 300 training rows"):
        classify.hold_out(dataclasses.replace(config, objective="select:ce/mae/rows=300"), task)


def test_a_gradient_method_goes_around_it():
    held_out = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    model = torch.nn.Linear(5, 3)
    objective = parse("select:ce/mae+sam:0.1").objective(Context(2), Training(model, 8, 3, 1, held_out))
    assert objective.objective.held_out is held_out
    assert classify._choices(objective) == {"steps with ce": 0, "steps with mae": 0}


def test_a_comparison_tells_what_was_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "MOST_ROUNDS", 3)
    monkeypatch.setattr(cost, "FEWEST_ROUNDS", 3)
    result = run(dataclasses.replace(ASKED, seeds=1, out=tmp_path))
    assert result.plan.arms == ("ce", ARM)
    batches = -(-250 // ASKED.batch_size)
    for config in result.readings(0.4, ARM):
        curves = result.metrics(config)["curves"]
        told = np.array([curves["steps with ce"], curves["steps with comp-sum:tau=1.7"]])
        assert told.sum(0).tolist() == [batches, 2 * batches]
    shares = panels._shares(result, 0.4, ARM)
    np.testing.assert_allclose(shares["ce"] + shares["comp-sum:tau=1.7"], np.ones((1, 2)))
    panel = panels._choices(result)
    assert panel.title == "What did the selector choose?"
    assert panel.figures[0].svg
    monkeypatch.setattr(panels, "_shares", lambda *_: {})
    assert panels._choices(result) is None
    assert not any(name.startswith("steps with") for name in result.metrics(result.readings(0.4, "ce")[0])["curves"])
