"""A sweep over gradient descent on parabolas, whose every loss and cliff is known."""

import json
import math
import shutil

import numpy as np
import pytest

from legato.errors import LegatoValueError, StoreError
from legato.stability.sensitivity import lr_sensitivity
from legato.studies import study, sweep
from legato.studies.sweep import Grid, Training, open_sweep, why_lost
from legato.studies.sweep_runs import CLIFF, Curve, Run, Sweep, rate_to_try

RATES = (0.01, 0.1, 0.4, 1.6, 6.4)
STEPS = 20
calls: list[tuple[int, float, int]] = []


def parabola(size, learning_rate, seed, start=2.0):
    """x <- x - rate * size * x on size x^2 / 2: the loss is (1 - rate * size)^(2 steps) of the first, and falls below a rate of 2 / size."""
    calls.append((size, learning_rate, seed))
    state = {"x": start + 0.1 * seed}

    def step():
        state["x"] *= 1 - learning_rate * size

    return Training(1000.0 * size, step, lambda: 1 + size * state["x"] ** 2 / 2, lambda: {"x": abs(state["x"])})


def steeper(size, learning_rate, seed):
    return parabola(2 * size, learning_rate, seed)


def of(folder, **options):
    """Sizes 1, 2, 4, 8: the rate is too high above 2, 1, 1/2, 1/4."""
    chosen = {"steps": STEPS, "margin": 0.5, "seeds": 2, "out": folder, "progress": False, "read_at": (5,)} | options
    return sweep.sweep(chosen.pop("factory", parabola), chosen.pop("sizes", (1, 2, 4, 8)), RATES, **chosen)


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing a page takes longer than all of these trainings."""
    monkeypatch.setattr(sweep, "draw", lambda path: path)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, of(folder)


def test_losses_statistics_and_sensitivities_are_those_of_the_closed_form(done):
    _, found = done
    curve = found.curve("own", "2")
    for s, seed in enumerate(found.seeds):
        first = 1 + (2 + 0.1 * seed) ** 2
        for r, rate in enumerate(RATES):
            want = 1 + (first - 1) * (1 - 2 * rate) ** (2 * STEPS)
            if rate < 1:
                assert curve.losses[s, r] == pytest.approx(want)
            else:
                assert math.isnan(curve.losses[s, r])
    assert curve.initial == pytest.approx([1 + 2.0**2, 1 + 2.1**2])
    assert curve.parameters == 2000
    run = next(r for r in found.runs if (r.size, r.learning_rate, r.seed) == ("2", 0.1, 0))
    assert run.statistics == {"x at step 5": pytest.approx(2 * 0.8**5)}
    want = lr_sensitivity(RATES, curve.losses, curve.initial)
    assert curve.interval().mean == pytest.approx(want.mean())
    assert curve.sensitivity().whole.mean == pytest.approx(want.mean())


def test_lost_runs_end_early_and_are_listed(done):
    folder, found = done
    lost = {(run.size, run.learning_rate) for run in found.lost}
    assert lost == {(str(n), rate) for n in (1, 2, 4, 8) for rate in RATES if rate * n > 2}
    steps = [json.loads(path.read_text())["metrics"] for path in (folder / "trials").glob("*.json")]
    assert {told["steps"] for told in steps if told["lost"]} == {3}
    assert {told["steps"] for told in steps if not told["lost"]} == {STEPS}
    page = (folder / "index.html").read_text()
    assert "Which runs were lost?" in page
    assert "the loss was above the initial one in 3 checks in a row" in page


@pytest.mark.usefixtures("undrawn")
def test_the_cliff_is_refined_towards_its_true_place(tmp_path):
    """2 / size, between the grid's rates; each run halves the distance on the log axis."""
    coarse = of(tmp_path, seeds=1, sizes=(1, 2, 4))
    fine = of(tmp_path, seeds=1, sizes=(1, 2, 4), refine=5)
    for size in (1, 2, 4):
        cliff = fine.cliff("own", str(size), 0)
        assert cliff <= coarse.cliff("own", str(size), 0)
        assert 0.9 * 2 / size < cliff < 1.1 * 2 / size  # a little below 2 / size a run ends above the margin
    assert fine.curve("own", "2").losses.shape == (1, len(RATES))
    assert fine.curve("own", "2").interval() == coarse.curve("own", "2").interval()


@pytest.mark.usefixtures("undrawn")
def test_the_cliff_of_a_larger_size_is_foreseen(tmp_path):
    """It falls as 1 / N: N = 1000 size, cliff = 2 / size."""
    found = of(tmp_path, sizes=(1, 2, 4, 8, 16), refine=6, seeds=1).foresee(CLIFF, "own", 64_000.0, shape="line")
    assert found.band.value == pytest.approx(2 / 64, rel=0.2)
    assert found.fit.coefficients[1] == pytest.approx(-1, abs=0.05)
    assert found.used == 5


def test_a_statistic_is_foreseen_at_one_rate_and_its_name_says_where_it_was_read(done):
    _, found = done
    band = found.foresee("x at step 5", "own", 16_000.0, learning_rate=0.01).band
    assert band.low < band.value < band.high
    with pytest.raises(LegatoValueError, match="statistic: expected one of first unstable learning rate, x at step 5"):
        found.foresee("x at step 6", "own", 16_000.0, learning_rate=0.01)
    with pytest.raises(LegatoValueError, match=r"learning_rate: expected one of the grid, 0\.01, 0\.1"):
        found.foresee("x at step 5", "own", 16_000.0)
    with pytest.raises(LegatoValueError, match="arm: expected one of own"):
        found.foresee("x at step 5", "other", 16_000.0, learning_rate=0.01)


@pytest.mark.usefixtures("undrawn")
def test_the_same_call_trains_nothing_more_seeds_train_only_these_and_another_setting_is_not_mixed_in(done, tmp_path):
    found = done[1]
    folder = shutil.copytree(done[0], tmp_path / "copy")
    calls.clear()
    assert of(folder) == found
    assert calls == []
    more = of(folder, seeds=3)
    assert {seed for _, _, seed in calls} == {2}
    assert len(more.runs) == 4 * 5 * 3
    calls.clear()
    other = of(folder, steps=10, seeds=1)
    assert len(calls) == len(other.runs) == 4 * 5
    assert of(folder) == found


@pytest.mark.usefixtures("undrawn")
def test_several_arms_stand_side_by_side(tmp_path):
    found = of(tmp_path, factory={"none": parabola, "steep": steeper}, sizes=(1, 2), seeds=1)
    assert found.arms == ("none", "steep")
    np.testing.assert_allclose(found.curve("steep", "1").losses, found.curve("none", "2").losses)


def test_the_page_is_redrawn_from_the_folder_alone_and_missing_runs_are_named(done, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "copy")
    first = (folder / "index.html").read_bytes()
    (folder / "index.html").unlink()
    assert study.redraw(folder).read_bytes() == first
    assert open_sweep(folder) == done[1]
    next((folder / "trials").glob("*.json")).unlink()
    with pytest.raises(StoreError, match="1 runs of the grid are missing, the first own"):
        open_sweep(folder)


def stops(size, learning_rate, seed):
    made = parabola(size, learning_rate, seed)

    def step():
        if learning_rate * size > 2:
            raise FloatingPointError("NaN loss")
        made.step()

    return Training(made.parameters, step, made.loss)


@pytest.mark.usefixtures("undrawn")
def test_a_loop_that_stops_itself_with_an_arithmetic_error_is_a_lost_run(tmp_path):
    found = of(tmp_path, factory=stops, sizes=(1,), seeds=1, read_at=())
    assert {run.learning_rate: run.lost for run in found.lost} == {6.4: "the loss is not finite"}


def test_a_run_is_lost_after_enough_checks_in_a_row_above_the_first():
    assert why_lost([2.0], 3) == ""
    assert why_lost([2.0, 3.0, 3.0], 3) == ""
    assert why_lost([2.0, 3.0, 1.9, 3.0, 3.0], 3) == ""
    assert why_lost([2.0, 1.0, 3.0, 3.0, 2.1], 3) == "the loss was above the initial one in 3 checks in a row"
    assert why_lost([2.0, 2.0, 2.0, 2.0], 3) == ""
    assert why_lost([2.0, math.inf], 3) == why_lost([2.0, math.nan], 3) == "the loss is not finite"


def test_without_a_cliff_there_is_no_rate_to_try():
    flat = Curve(1.0, RATES, np.array([[3.0, 2.0, 2.1, 2.2, 2.2]]), np.array([4.0]))
    assert rate_to_try(flat, 0.5) is None
    steep = Curve(1.0, RATES, np.array([[3.0, 2.0, 2.1, math.nan, math.nan]]), np.array([4.0]))
    assert rate_to_try(steep, 0.5) == pytest.approx(math.sqrt(0.4 * 1.6))
    assert rate_to_try(Curve(1.0, RATES, np.full((1, 5), math.nan), np.array([4.0])), 0.5) is None


def test_an_arm_that_never_learns_has_no_sensitivity_and_no_cliff():
    runs = tuple(Run("own", "1", 10.0, rate, 0, math.nan, 4.0, "the loss is not finite") for rate in RATES)
    lost = Sweep(runs, ("own",), ("1",), RATES, (0,), 0.5)
    assert lost.curve("own", "1").interval() is None
    assert math.isnan(lost.cliff("own", "1", 0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps: expected a whole number >= 1"),
        ({"seeds": 0}, "seeds: expected a whole number >= 1"),
        ({"patience": 0}, "patience: expected a whole number >= 1"),
        ({"read_at": (21,)}, "read_at: expected steps from 1 to 20"),
        ({"margin": 0.0}, "margin: expected a number > 0"),
        ({"refine": -1}, "refine: expected a whole number >= 0"),
        ({"sizes": ()}, "sizes: expected one or more different ones"),
        ({"sizes": (1, 1)}, "sizes: expected one or more different ones"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_trained(options, words, tmp_path):
    calls.clear()
    with pytest.raises(LegatoValueError, match=words):
        of(tmp_path, **options)
    assert calls == []


def test_a_training_that_begins_with_no_finite_loss_is_named(tmp_path):
    with pytest.raises(LegatoValueError, match="factory: expected a training whose first loss is finite; got nan"):
        of(tmp_path, factory=lambda *_: Training(1.0, lambda: None, lambda: math.nan), seeds=1)


@pytest.mark.parametrize("rates", [(0.1,), (0.1, 0.1), (0.1, -1.0), (0.1, math.nan)])
def test_a_grid_needs_two_rates(rates):
    with pytest.raises(LegatoValueError, match="learning_rates: expected two or more different numbers > 0"):
        Grid(("a",), ("1",), rates, (0,), 0.5)


def test_a_folder_that_is_no_sweep_is_named(tmp_path):
    from legato.lab.store import Store

    Store(tmp_path, "other", 1).write_config({})
    with pytest.raises(StoreError, match="no sweep of legato"):
        open_sweep(tmp_path)
