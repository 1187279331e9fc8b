"""`legato online`: sums by hand, a run that goes on, the page's first line, and what each complaint says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from legato import errors
from legato.data import costs as fetched
from legato.lab.statistics import Estimate
from legato.online.mdp import best_policy
from legato.online.readers import read_problem
from legato.studies import online_costs, online_costs_page, study
from legato.studies.online_costs import BEST, FORECAST, Answer, Question, Row, ask

MODEL = """
name = "battery"
states = ["empty", "full"]
actions = ["sell", "wait", "buy"]
start = "empty"
cost = "price * change"
[transitions]
sell = ["empty", "empty"]
wait = ["empty", "full"]
buy = ["full", "full"]
"""
DAYS = np.random.default_rng(0).integers(1, 9, (12, 3)) + np.array([0, 6, 1])


@pytest.fixture
def question(tmp_path):
    costs, model = tmp_path / "prices.csv", tmp_path / "battery.toml"
    costs.write_text("\n".join(",".join(map(str, day)) for day in DAYS))
    model.write_text(MODEL)
    return Question(str(costs), model, ("log-barrier:30", "hedge"), seeds=3)


@pytest.fixture
def found(question, tmp_path):
    return ask(question, tmp_path / "run", progress=False)


def row(found, name):
    return next(row for row in found.rows if row.name == name)


def test_the_bounds_by_hand(found):
    """A battery of one charge that starts empty: over three hours, buy before a rise and sell after it, or do nothing."""
    gains = np.stack([DAYS[:, b] - DAYS[:, a] for a in range(3) for b in range(a + 1, 3)] + [0 * DAYS[:, 0]])
    assert row(found, FORECAST).cost.mean == pytest.approx(-gains.max(0).sum())
    assert row(found, BEST).cost.mean == pytest.approx(-gains.sum(1).max())
    assert row(found, BEST).regret.mean == 0
    assert row(found, BEST).gap == 1
    assert row(found, "uniform").gap == 0


def test_follow_yesterday_by_hand(question, found):
    """Each day the plan that was the best for the day before; uniform on the first."""
    problem = read_problem(question.costs, question.model)
    total = found.curves["uniform"][0, 0] + problem.money(best_policy(problem.mdp, problem.adversary.losses(0))[0], 1)
    for k in range(1, len(DAYS)):
        plan = best_policy(problem.mdp, problem.adversary.losses(k - 1))[1]
        state = 0
        for h in range(3):
            action = plan[h, state]
            after = {0: 0, 1: state, 2: 1}[int(action)]
            total += DAYS[k, h] * (after - state)
            state = after
    assert row(found, "follow-yesterday").cost.mean == pytest.approx(float(total))


def test_only_what_draws_lots_has_runs_and_an_interval(found):
    learner = row(found, "log-barrier:30").cost
    assert learner.count == 3
    assert learner.low < learner.mean < learner.high
    assert all(r.cost.count == 1 and r.cost.low == r.cost.mean for r in found.rows if r.name != "log-barrier:30")
    assert [r.cost.mean for r in found.rows] == sorted(r.cost.mean for r in found.rows)


def test_more_episodes_go_through_the_file_again(question, tmp_path):
    longer = ask(Question(question.costs, question.model, ("hedge",), 30), tmp_path / "longer", progress=False)
    once = ask(Question(question.costs, question.model, ("hedge",), 6), tmp_path / "once", progress=False)
    twice = ask(Question(question.costs, question.model, ("hedge",), 24), tmp_path / "twice", progress=False)
    want = row(twice, FORECAST).cost.mean + row(once, FORECAST).cost.mean
    assert row(longer, FORECAST).cost.mean == pytest.approx(want)


def test_the_same_question_again_plays_nothing(question, found, tmp_path, monkeypatch):
    monkeypatch.setattr(online_costs, "play", lambda *_: pytest.fail("played again"))
    again = ask(question, tmp_path / "run", progress=False)
    assert [r.cost for r in again.rows] == [r.cost for r in found.rows]
    trials = list((tmp_path / "run" / "trials").glob("*.json"))
    assert len(trials) == len({"log-barrier:30", "hedge", "uniform", "follow-yesterday", "mean of 7", FORECAST})
    trials[0].unlink()
    with pytest.raises(errors.StoreError, match=r"not finished\. Fix: give the command"):
        online_costs.answer(tmp_path / "run")


def test_other_prices_are_other_trials(question, found, tmp_path):
    Path(question.costs).write_text("\n".join(",".join(map(str, day)) for day in DAYS + np.array([0, 1, 0])))
    other = ask(question, tmp_path / "run", progress=False)
    assert row(other, BEST).cost.mean == pytest.approx(row(found, BEST).cost.mean - len(DAYS))


def test_another_range_is_another_scale_of_the_losses(question, found, tmp_path):
    question.model.write_text(f"range = [-50, 50]\n{MODEL}")
    other = ask(question, tmp_path / "run", progress=False)
    assert row(other, BEST).cost.mean == pytest.approx(row(found, BEST).cost.mean)
    assert row(other, "hedge").cost.mean > row(found, "hedge").cost.mean + 0.1


def _told(**costs):
    kinds = {"hedge": "learner", "mr": "learner", FORECAST: "bound", BEST: "bound"}
    rows = [Row(n, kinds.get(n, "controller"), "", e := Estimate(c, c, c, 1), e, None) for n, c in costs.items()]
    return Answer({}, np.zeros((1, 1)), tuple(rows), np.ones(1, int)).verdict


def test_the_first_line_says_when_a_controller_beats_us():
    bounds = {BEST: 8.0, FORECAST: 5.0}
    hindsight = "; in hindsight the best fixed policy costs 8, and a perfect forecast would have cost 5"
    assert (
        _told(hedge=9.0, mr=10.0, week=12345.6, **bounds)
        == f"Hedge at 9 is the cheapest player, before week at 12,346{hindsight}"
    )
    assert (
        _told(hedge=9.0, mr=10.0, week=8.5, day=11.0, **bounds)
        == f"Week at 8.5 beats every learner, whose best is hedge at 9{hindsight}"
    )
    assert _told(hedge=9.0, week=8.5, day=7.0, **bounds).startswith("Day at 7 and week at 8.5 beat every learner, whose best is hedge at 9")  # fmt: skip


def test_the_page_has_the_policies_and_escapes_names(question, tmp_path):
    question.model.write_text(MODEL.replace('"battery"', '"<script>"'))
    found = ask(question, tmp_path / "run", progress=False)
    text = online_costs_page.write(found, tmp_path / "run").read_text()
    assert "<script>:" not in text
    assert found.verdict.split(";")[0] in text
    assert {p.stem for p in (tmp_path / "run" / "plots").iterdir()} == {"regret", "policies", "costs"}
    assert str(tmp_path) not in text + json.dumps(dict(found.about))


def test_the_page_is_redrawn_from_the_folder_alone(question, found, tmp_path):
    drawn = online_costs_page.write(found, tmp_path / "run").read_bytes()
    Path(question.costs).unlink()
    assert study.redraw(tmp_path / "run").read_bytes() == drawn


def test_shades():
    """Sure is opaque, undecided is nearly clear, and the colour is that of the likeliest action; rows are states."""
    policy = np.array([[[0, 1.0], [0.5, 0.5], [0.75, 0.25]]])
    drawn = online_costs_page.shades(policy, ["#ff0000", "#0000ff"])
    assert drawn.shape == (3, 1, 4)
    np.testing.assert_allclose(drawn[:, 0], [[0, 0, 1, 1], [1, 0, 0, 0.08], [1, 0, 0, 0.54]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learners": ("hegde",)}, "learner: .* Did you mean 'hedge'"),
        ({"learners": ("hedge:fast",)}, "NAME:RATE with a rate > 0.* got hedge:fast"),
        ({"learners": ("hedge:-1",)}, "got hedge:-1"),
        ({"learners": ("uniform:2",)}, "uniform has none"),
        ({"learners": ("uniform",)}, "learners: expected one or more of .* got .'uniform'"),
        ({"learners": ()}, "learners: expected one or more"),
        ({"episodes": 0}, "episodes: expected a whole number >= 1; got 0"),
        ({"seeds": 0}, "seeds: expected"),
        ({"window": -1}, "window: expected"),
    ],
)
def test_bad_questions(options, message):
    with pytest.raises(errors.LegatoValueError, match=message):
        Question("prices.csv", "battery.toml", **options)


def test_a_named_table_is_read_by_its_name(question, tmp_path, monkeypatch):
    monkeypatch.setattr(fetched, "read_days", lambda name, data_dir: (DAYS.astype(float), data_dir))
    found = ask(Question("italy-power-demand", question.model, ("hedge",)), tmp_path / "run", progress=False)
    assert found.about["costs"] == "italy-power-demand"
    assert re.search("no season", str(found.about["notes"]))
