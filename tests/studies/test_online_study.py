"""`legato study online`: the grid is fair and the halves are apart, each measure by hand, and the smoke form runs to a page."""

from collections import Counter

import numpy as np
import pytest

from legato.data import costs
from legato.lab.trial import Record, trial_hash
from legato.online.mdp import best_policy
from legato.studies import experiment, online, online_panels, online_trials, verdicts
from legato.studies.online_trials import PARTS, Play, trial


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return experiment.measure("online", online.EXPERIMENT, "smoke", tmp_path_factory.mktemp("smoke"), workers=1)


@pytest.fixture
def days(monkeypatch):
    """Four days, the demand of each twice that of the one before; the first two are for tuning."""
    made = np.outer([1.0, 2, 4, 8], np.repeat([0, 2, 1, 3, 0, 1, 5, 1], 3))
    monkeypatch.setattr(costs, "read_days", lambda: (made, None))
    monkeypatch.setattr(online_trials, "DAYS", 2)
    online_trials.battery.cache_clear()
    yield made
    online_trials.battery.cache_clear()


def records(values):
    """Made-up records of (part, arm, size, environment, rate) -> value."""
    return [
        Record(str(i), {"part": p, "arm": a, "episodes": s[0], "actions": s[1], "environment": e, "rate": r}, {"value": v}, 1.0, "0")
        for i, ((p, a, s, e, r), v) in enumerate(values.items())
    ]  # fmt: skip


def test_every_arm_of_a_part_has_as_many_settings():
    counts = Counter((play.part, play.arm) for play in online.trials("full", {}, []))
    for name, part in PARTS.items():
        assert {counts[name, arm] for arm in part.arms} <= {5 * 5}
    assert {play.environment for play in online.trials("full", {}, [])} == set(range(5))
    assert not any(play.held_out for play in online.trials("full", {}, []))


def test_confirming_tunes_nothing_and_meets_nothing_that_tuning_has_met():
    tuned = {name: {arm: part.rates(arm)[3] for arm in part.arms} for name, part in PARTS.items()}
    plays = online.trials("confirm", tuned, [])
    assert {play.environment for play in plays} == set(range(100, 110))
    assert all(play.rate == tuned[play.part].get(play.arm, 0.0) for play in plays)
    assert all(play.held_out == play.part.startswith("battery") for play in plays)
    assert len({trial_hash("online", 1, play) for play in plays}) == len(plays)


def test_the_days_of_the_verdicts_are_others(days):
    early, late = online_trials.battery(3, False), online_trials.battery(3, True)
    np.testing.assert_allclose(sorted(early.costs.max(1)), [5, 10])
    np.testing.assert_allclose(sorted(late.costs.max(1)), [20, 40])
    assert early.costs.shape == (2, 8)


def test_the_perfect_forecast_by_hand(days):
    """Two passes: twice the sum of the best of each day, less twice the best fixed policy, in units of loss."""
    problem = online_trials.battery(0, True)
    tables = [problem.adversary.losses(k) for k in range(2)]
    want = 2 * (
        sum(best_policy(problem.mdp, t)[0] for t in tables) - best_policy(problem.mdp, tables[0] + tables[1])[0]
    )
    played = Play("battery, once", "perfect forecast", 0, 4, 3, held_out=True)
    assert trial(played, None).metrics["value"] == pytest.approx(want, abs=1e-12)


def test_rates_are_those_with_the_smallest_mean():
    values = {}
    for name, part in PARTS.items():
        for arm in part.arms:
            for place, rate in enumerate(part.rates(arm)):
                for environment in range(5):
                    values[name, arm, part.tuned_at, environment, rate] = (
                        abs(place - len(arm) % 5) + environment * (-1) ** place
                    )
    chosen = online.tune(records(values))
    for name, part in PARTS.items():
        for arm in part.arms:
            means = [abs(place - len(arm) % 5) + 2 * (-1) ** place for place in range(5)]
            assert chosen[name][arm] == part.rates(arm)[int(np.argmin(means))]


def test_rates_are_spread_evenly():
    assert PARTS["gains"].rates("entropy, mixed") == (0.03, 0.09, 0.3, 0.9, 3.0)


def test_every_claim_has_a_measure_and_every_measure_a_claim():
    asked = {claim.id for claim in verdicts.claims_of("2301.12942") if claim.study == "online"}
    assert set(online.measures(everything())) == asked


def everything(change=lambda part, arm, size, environment: 1.0):
    """Records of a confirming run, each value made up."""
    return records({
        (name, arm, size, environment, part.arms.get(arm, 0.0)): change(name, arm, size, environment)
        for name, part in PARTS.items() for arm in (*part.arms, *part.fixed) for size in part.sizes for environment in (100, 101)
    })  # fmt: skip


def test_measures_by_hand():
    """Powers of the number of episodes have their exponents as slopes; the rest are logarithms of ratios, and shares."""
    powers = {"log-barrier": 0.45, "mr": 0.5, "luo": 0.7}

    def value(part, arm, size, environment):
        if part == "growth":
            return (2 if environment == 100 else 3) * size[0] ** powers.get(arm, 1.0)
        if part == "actions":
            return {"mr": 2.0, "log-barrier": 2.0 + size[1]}.get(arm, 9.0)
        if part.startswith("battery"):
            return {"uniform": 40.0, "log-barrier": 10.0, "luo": 20.0, "hedge": -2.0, "mean of 7": -4.0}.get(arm, 1.0)
        return 2.0 if arm in ("entropy", "mgr", "mgr, entropy") else 1.0

    found = online.measures(everything(value))
    want = {
        "online-rate-log-barrier": 0.25, "online-rate-magnitude-reduced": 0.2, "online-root-log-barrier": 0.15, "online-root-magnitude-reduced": 0.1,
        "online-regret-log-barrier": 0.25 * np.log(100_000), "online-actions": np.log(34 / 2) - np.log(4 / 2),
        "online-negative": np.log(2), "online-negative-mixed": 0, "online-averaging-inverse": np.log(2), "online-simulator-free": np.log(2),
        "online-simulator-free-uniform": 0, "online-battery-luo": 0.25, "online-battery-uniform": 0.75, "online-battery-controller": -0.05,
    }  # fmt: skip
    for claim, number in want.items():
        np.testing.assert_allclose(found[claim], [number] * 2, atol=1e-12, err_msg=claim)


def test_a_bandit_that_hardly_learns_pays_the_mean():
    """At a rate of nearly 0 play stays uniform: the regret is the mean over the arms less the best arm."""
    played = Play("spikes", "entropy", 1, 300, 20, rate=1e-12)
    rng = np.random.default_rng((online_trials.FAR, 1))
    chance = 0.05 * rng.random(20)
    losses = -10.0 * (rng.random((300, 20)) < chance)
    want = losses.mean(1).sum() - losses.sum(0).min()
    assert trial(played, None).metrics["value"] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("arm", ["log-barrier", "entropy", "entropy, mixed"])
def test_a_bandit_learns(arm):
    slow, fast = (trial(Play("gains", arm, 2, 1500, 5, rate=rate), None).metrics["value"] for rate in (1e-9, 3.0))
    assert fast < 0.5 * slow


def test_averaging_is_near_the_inverse_and_one_hot_features_are_plain():
    errors = [trial(Play("inverse", "averaged", 3, count, 4), None).metrics["value"] for count in (100, 40_000)]
    assert errors[1] < errors[0] / 10  # like 1/sqrt(samples), so about a twentieth
    assert trial(Play("one-hot", "difference", 3, 100, 4), None).metrics["value"] < 1e-9


def test_arms_are_what_they_are_called():
    assert online_trials.learner_of(Play("growth", "luo", 0, 10, 4, rate=30.0)).rate == 30
    found = online_trials.learner_of(Play("simulator-free", "mgr, entropy", 0, 10, 4, rate=100.0))
    assert (found.covariance, found.regulariser, found.rate) == ("mgr", "entropy", 100.0)
    assert (
        online_trials.learner_of(Play("covariance", "averaged", 0, 10, 4, rate=3.0)).name
        == "log-barrier (averaged 200)"
    )


def test_the_smoke_form_runs_to_a_page(smoke):
    page = experiment.page("online", online.EXPERIMENT, "smoke", smoke, [], "a machine")
    assert {panel.title for panel in page.panels} == {PARTS[name].title for name in online.SMOKE}
    by_arm = {(r.config["part"], r.config["arm"]): r.metrics["value"] for r in smoke}
    assert by_arm["growth", "hedge"] < by_arm["growth", "uniform"]


def test_the_page_of_a_confirming_run_compares_sizes():
    sizes = {"growth": ("1,000", "10,000", "31,623", "100,000"), "actions": ("2 actions", "8 actions", "32 actions")}
    shown = {panel.title: panel for panel in online_panels.panels(everything(lambda p, a, s, e: e * s[0] ** 0.5))}
    for name, columns in sizes.items():
        panel = shown[PARTS[name].title]
        assert panel.tables[0].columns == ("arm", "rate", *columns, "slope")
        assert len(panel.figures) == 1
    row = shown[PARTS["growth"].title].tables[0].rows[0]
    assert row[-1].text.startswith("0.50 [0.50, 0.50]")


def test_names_of_trials_are_pinned():
    """A changed default or meaning must raise the schema, or old results pass for new ones."""
    play = Play("growth", "log-barrier", 100, 1000, 4, 10.0)
    assert trial_hash("online", 1, play)[:16] == "88cb8f2dc58e14a9"
