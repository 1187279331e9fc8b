"""A comparison of objectives on text: its grid, its score in nats a byte, its page, and what it cannot use."""

import random
from dataclasses import replace

import numpy as np
import pytest

from legato.cli import compare as cli
from legato.data.text import load_text
from legato.errors import LegatoError
from legato.lab import palette
from legato.studies import compare, cost, objectives, watched
from legato.studies.config import CompareConfig, LanguageOptions
from legato.studies.language import LanguageConfig, trial
from legato.studies.plan import Plan
from legato.studies.result import Result, open_result
from legato.studies.summary import summarise, verdict


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(draw.choice(["to", "be", "or", "not", "that", "is"]) for _ in range(20_000)))
    return path


@pytest.fixture(scope="module")
def text(text_file):
    return load_text(text_file)


@pytest.fixture(scope="module")
def compared(text_file, tmp_path_factory):
    options = LanguageOptions(
        width=8, depth=1, heads=1, length=16, batch_size=4, steps=12, checks=2, validation_rows=16, watch_every=5
    )
    asked = CompareConfig(
        data=str(text_file), task="language", objectives=("ce+z-loss:0.5", "ce"), seeds=2, learning_rates=(0.001, 0.03), workers=1,
        language=options, out=tmp_path_factory.mktemp("compared"),
    )  # fmt: skip
    rounds, cost.MOST_ROUNDS = cost.MOST_ROUNDS, cost.FEWEST_ROUNDS
    try:
        return asked, compare.run(asked)
    finally:
        cost.MOST_ROUNDS = rounds


def test_a_comparison_of_objectives_on_text(compared, text):
    _, result = compared
    assert result.plan.arms == ("ce", "ce+z-loss:coefficient=0.5")
    assert len(result.records) == 2 * 2 * 2 + 2 * 2 + 1
    for arm in result.plan.arms:
        means = {
            rate: np.mean(
                [result.metrics(result.plan.trial(0.0, arm, rate, seed))["validation_nll_scaled"] for seed in (0, 1)]
            )
            for rate in (0.001, 0.03)
        }
        assert result.rates[0.0, arm] == min(means, key=means.get)
    by_hand = trial(result.readings(0.0, "ce")[1], text=text)
    assert result.metrics(result.readings(0.0, "ce")[1])["test_nll"] == by_hand.metrics["test_nll"]
    row = result.table()[0]
    assert 1 - row["accuracy"] == pytest.approx(result.column(0.0, "ce", "test_error").mean())
    assert "decoder of width 8 and depth 1" in result.verdict
    assert "ZLoss(0.5)" in objectives.parse(result.plan.arms[1]).around[0]


def test_its_page_is_drawn_from_the_store_alone(compared):
    _, result = compared
    page = open_result(result.folder).page().read_text()
    assert "windows of validation text" in page
    assert "Which classes?" not in page
    assert open_result(result.folder).table() == result.table()


def test_arms_are_ranked_by_the_loss_of_test_text_in_nats_a_byte(compared):
    _, result = compared
    base, arm = result.summary.rows
    losses = [result.column(0.0, row.arm, "test_nll_scaled") for row in (base, arm)]
    assert (base.value.mean, arm.value.mean) == pytest.approx([loss.mean() for loss in losses])
    assert arm.difference.difference.mean == pytest.approx((losses[0] - losses[1]).mean())
    assert arm.over_items.mean == pytest.approx((losses[0] - losses[1]).mean(), abs=1e-6)
    assert base.nll_raw.mean == pytest.approx(result.column(0.0, "ce", "test_nll").mean())
    row = result.table()[1]
    assert (row["loss"], row["loss_low"]) == (arm.value.mean, arm.value.low)
    assert row["difference"] == arm.difference.difference.mean


def test_the_winner_has_the_smaller_loss_whatever_its_errors():
    """Losses and errors made by hand, which disagree."""
    setting = LanguageConfig("text", "0" * 64, 0.0, 0)
    arms = ("ce", "ce+sam:radius=0.05")
    rates = tuple((0.0, arm, 0.01) for arm in arms)
    plan = Plan(setting, arms, (0.0,), (0.01,), (0, 1, 2), fixed_rates=rates)
    made = {}
    for arm, loss, error in zip(arms, (2.0, 1.75), (0.5, 0.75), strict=True):
        numbers = dict.fromkeys(
            ("noisy_test_nll", "noisy_test_nll_scaled", "noisy_test_ece", "noisy_test_ece_scaled", "test_ece"), 0.25
        )
        for config in plan.readings({(0.0, arm): 0.01 for arm in arms}):
            if config.objective == arm:
                made[config] = numbers | {
                    "diverged": None,
                    "test_error": error,
                    "test_nll_scaled": loss + config.seed / 1000 * (arm != "ce"),
                }
    losses = {config: {"nll_scaled": np.full(4, made[config]["test_nll_scaled"])} for config in made}
    found = summarise(plan, made, losses.get)
    assert found.winner(0.0).arm == arms[1]
    assert found.rows[1].difference.difference.mean == pytest.approx(0.249)
    assert found.rows[1].over_items.mean == pytest.approx(0.249)
    words = verdict(found, "text")
    assert words.startswith("On this text ce + sam radius=0.05 beats ce by 0.249 nats a byte [0.2")
    alone = summarise(replace(plan, arms=("ce",)), made, losses.get)
    assert "ce reaches 2.000 [2.000, 2.000] nats a byte" in verdict(alone, "text")


def test_nothing_speaks_of_labels_or_points(compared, capsys):
    asked, result = compared
    cli.run(asked)
    for told in (capsys.readouterr().out, result.page().read_text()):
        assert "nats a byte" in told and "fewer nats" in told and "accuracy %" in told
        assert not [
            words for words in ("labels as they are", "labels are", "noise of training", " points") if words in told
        ]


def test_the_nll_chooses_unless_something_else_is_asked_for():
    assert CompareConfig(task="language").select_by == "nll"
    assert CompareConfig(task="language", select_by="error").select_by == "error"
    assert CompareConfig().select_by == "error"


def test_what_was_watched_at_the_chosen_rates_is_on_the_page(compared):
    _, result = compared
    readings = [result.metrics(config)["readings"] for arm in result.plan.arms for config in result.readings(0.0, arm)]
    assert [[reading["step"] for reading in run] for run in readings] == [[0, 5, 10]] * 4
    assert not any("readings" in result.metrics(config) for config in result.plan.grid())
    shown = watched.panel(result, palette.colours(result.plan.arms, "ce"))
    assert shown.text.startswith("Means over 2 seeds")
    assert [figure.name for figure in shown.figures] == ["attention", "gradients"]
    assert shown.title in result.page().read_text()


def test_lines_are_means_over_the_runs_that_were_not_lost(compared, monkeypatch):
    """Two heads and two runs by hand; a third one was lost."""
    _, result = compared

    def reading(step, upper, lower, gradient):
        return {
            "step": step,
            "attention": {"blocks.0.attention": {"upper": upper, "lower": lower}},
            "gradient_rms": {"blocks.0.up.weight": gradient},
        }

    runs = [
        {"diverged": None, "readings": [reading(0, [1.0, 3.0], [0.5, 2.0], 0.1), reading(5, [9.0, 5.0], [8.0, 4.0], 0.01)]},
        {"diverged": None, "readings": [reading(0, [5.0, 3.0], [4.0, 2.0], 0.001)]},
        {"diverged": "lost", "readings": [reading(0, [1e9, 0.0], [1e8, 0.0], 0.1)]},
    ]  # fmt: skip
    drawn = {}
    monkeypatch.setattr(Result, "readings", lambda self, noise, arm: range(3))
    monkeypatch.setattr(Result, "metrics", lambda self, place: runs[place])
    monkeypatch.setattr(watched.plots, "lines", lambda name, multiples, *_, **__: drawn.update({name: multiples}))
    watched.panel(result, {})
    (line, _), (slope, _) = drawn["attention"]["blocks.0"], drawn["gradients"]["blocks.0"]
    assert (line.x, line.mean.tolist(), line.low.tolist(), line.high.tolist()) == ([0], [4.0], [3.0], [4.0])
    assert slope.mean.tolist() == pytest.approx([-2.0])


def test_without_watching_there_is_no_panel(compared, monkeypatch):
    _, result = compared
    monkeypatch.setattr(Result, "metrics", lambda self, config: {"diverged": None})
    assert watched.panel(result, {}) is None


def test_the_same_command_again_trains_nothing(compared):
    asked, result = compared
    before = {path.name: path.stat().st_mtime_ns for path in (result.folder / "trials").iterdir()}
    assert compare.run(asked).table() == result.table()
    assert {path.name: path.stat().st_mtime_ns for path in (result.folder / "trials").iterdir()} == before


def test_the_grid_is_counted_beforehand(compared):
    plan, size = compare.estimate(compared[0])
    assert size.trials == 12
    assert plan == compared[1].plan


def test_each_task_has_data_of_its_own():
    assert CompareConfig().data == "fashion-mini"
    assert CompareConfig(task="language").data == "python"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 3}, "epochs: expected nothing, for the task language"),
        ({"batch_size": 4}, "Fix: --language.batch-size"),
        ({"label_noise": (0.4,)}, "label_noise: expected nothing"),
        ({"objectives": ("ce+saf:1",)}, "losses of logits and targets"),
        ({"language": LanguageOptions(heads=3)}, "heads: expected a divisor"),
        ({"language": LanguageOptions(length=500_000)}, "at least 500001 bytes in each span"),
        ({"language": LanguageOptions(steps=7)}, "steps: expected a multiple"),
        ({"language": LanguageOptions(watch_every=-1)}, "watch_every: expected a whole number >= 0"),
        ({"task": "classify"}, "Fix: --task language"),
        ({"task": "langage"}, "Did you mean 'language'"),
        ({"data": "pyton"}, "Did you mean 'python'"),
    ],
)
def test_what_a_comparison_on_text_cannot_use(compared, tmp_path, changes, words):
    with pytest.raises(LegatoError, match=words):
        compare.run(replace(compared[0], out=tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
