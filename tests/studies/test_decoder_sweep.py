"""The sweep of decoders: what an arm means, what a cell trains, and the forecasts of a sweep on the command line."""

import math
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from legato.cli import main
from legato.data.text import load_text
from legato.errors import LegatoValueError
from legato.lab.trial import as_plain
from legato.studies import decoder_sweep, language, sweep, sweep_forecast
from legato.studies.decoder_sweep import GRADIENT, LOGIT, language_config, setting_of
from legato.studies.sweep import Cell, open_sweep
from legato.studies.sweep_arms import REMEDIES, WHOLE, parse_arm
from legato.studies.sweep_config import SweepConfig
from legato.studies.sweep_runs import CLIFF, Run, Sweep

RATES = (1e-3, 1e-2, 1e-1)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("".join(f"{n} little {'ducks' if n % 3 else 'geese'} went out to play, and {n * 7 % 100} came home. " for n in range(900)))  # fmt: skip
    return path


@pytest.fixture
def config(text, tmp_path):
    return SweepConfig(
        sizes=("8x1", "16x1"), learning_rates=RATES, seeds=1, steps=6, batch_size=2, length=8, head_width=8, text=str(text),
        probe_steps=(2,), workers=1, out=tmp_path / "run",
    )  # fmt: skip


def test_an_arm_changes_what_it_says_and_nothing_else(config):
    setting = setting_of(config)
    plain = as_plain(language_config(Cell("none", "16x1", 0.01, 3, setting)))
    expected = {
        "qk-norm": {"qk_norm": True},
        "z-loss": {"objective": "ce+z-loss:coefficient=0.0001"},
        "z-loss:1e-3": {"objective": "ce+z-loss:coefficient=0.001"},
        "warmup:0.5": {"warmup": 0.5},
        "decay:conventional": {"decay": "conventional", "weight_decay": 0.1},
        "weight-decay": {"weight_decay": 0.0},
        "mup:simple": {"mup": "simple"},
        "muon": {"optimizer": "muon"},
        "eps:1e-6": {"eps": 1e-6},
        "qk-norm+eps:1e-6": {"qk_norm": True, "eps": 1e-6},
        "all": {"qk_norm": True, "objective": "ce+z-loss:coefficient=0.0001", "warmup": 0.25, "mup": "full"},
    }
    for arm, want in expected.items():
        found = as_plain(language_config(Cell(arm, "16x1", 0.01, 3, setting)))
        changed = {name: value for name, value in found.items() if value != plain[name]}
        if "objective" in changed:
            changed["objective"] = changed["objective"].replace("1e-3", "0.001")
        assert changed == want, arm
    assert parse_arm("all") == parse_arm(WHOLE)
    assert {piece.partition(":")[0] for arm in expected for piece in arm.split("+")} - {"all"} == set(REMEDIES)


def test_a_cell_is_its_size_rate_and_seed_with_heads_of_one_width(config):
    found = language_config(Cell("none", "16x3", 0.01, 7, setting_of(config)))
    assert (found.width, found.depth, found.heads, found.learning_rate, found.seed) == (16, 3, 2, 0.01, 7)
    assert found.base_width == 8
    assert (found.qk_norm, found.objective, found.decay, found.weight_decay) == (False, "ce", "independent", 1e-4)


def test_the_default_probes_are_the_end_of_the_warm_up_and_a_third_of_the_run(config):
    assert setting_of(SweepConfig(text=config.text)).probe_steps == (30, 100)
    assert setting_of(config).probe_steps == (2,)


def test_a_run_is_the_training_it_stands_for(config):
    cell = Cell("qk-norm", "16x1", 0.01, 1, setting_of(config))
    found = decoder_sweep.decoder_trial(cell, config.out, source=config.text).metrics
    want = language.trial(language_config(cell), text=load_text(config.text)).metrics
    assert found["loss"] == want["loss"]
    assert found["parameters"] == 12 * 16**2
    assert found["statistics"] == {
        LOGIT.format(2): want["probes"][0]["attention_max"][0],
        GRADIENT: want["gradient_rms"],
    }


def test_a_sweep_killed_and_run_again_is_the_one_that_was_not(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "draw", lambda path: path)
    config = replace(config, seeds=3)
    whole = decoder_sweep.run(config, progress=False)
    words = ["--sizes", *config.sizes, "--learning-rates", *map(str, RATES), "--seeds", "3", "--steps", "6", "--batch-size", "2",
             "--length", "8", "--head-width", "8", "--text", config.text, "--probe-steps", "2", "--workers", "1"]  # fmt: skip
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "legato", "stability", "sweep", *words, "--out", str(out)], stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and len(list((out / "trials").glob("*.json"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = set((out / "trials").glob("*.json"))
    assert 3 <= len(before) < len(whole.runs)
    assert main(["stability", "sweep", *words, "--out", str(out)]) == 0
    assert open_sweep(out) == whole


def law(n, rate, seed=0):
    """A sweep without a training: logits grow as the root of N, gradients fall, and the cliff is at 3e3 / N."""
    cliff = 3e3 / n
    loss = 2.0 + abs(math.log10(rate / 0.01)) / 50 + (1.0 if rate > cliff else 0.0)
    noise = 1 + 0.05 * math.sin(n + seed)
    statistics = {LOGIT.format(2): noise * rate * 100 * math.sqrt(n), GRADIENT: noise * 1e-3 / n}
    return Run("none", f"{n}", float(n), rate, seed, loss, 5.0, "", statistics)


@pytest.fixture
def lawful(monkeypatch):
    sizes, rates = (1e4, 3e4, 1e5), (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
    runs = tuple(law(n, rate, seed) for n in sizes for rate in rates for seed in (0, 1))
    found = Sweep(runs, ("none",), tuple(f"{n}" for n in sizes), rates, (0, 1), 0.5)
    monkeypatch.setattr(sweep_forecast, "open_sweep", lambda path: found)
    return found


def test_forecasts_of_a_sweep_follow_its_law(lawful, tmp_path):
    asked = sweep_forecast.Question(1e6, learning_rates=(0.02,), eps=1e-9)
    rows = {row.statistic: row for row in sweep_forecast.answer(tmp_path, asked)}
    logit, gradient, cliff = (rows[name] for name in (LOGIT.format(2), GRADIENT, CLIFF))
    assert logit.found.band.value == pytest.approx(0.02 * 100 * 1e3, rel=0.1)
    assert logit.chance(asked) == logit.found.probability_above(1e4)
    assert gradient.found.band.value == pytest.approx(1e-9, rel=0.1)
    assert gradient.chance(asked) == 1 - gradient.found.probability_above(1e-8) > 0.99
    assert cliff.chance(asked) is None
    assert cliff.found is not None
    assert lawful.cliff("none", "30000.0", 0) == 0.16


def test_a_forecast_that_is_refused_is_a_note_among_others_and_an_error_alone(lawful, tmp_path):
    asked = sweep_forecast.Question(1e6, shape="quadratic")
    rows = sweep_forecast.answer(tmp_path, asked)
    assert all("expected 4 or more different ones for a quadratic" in note for note in sweep_forecast.notes(rows))
    assert sweep_forecast.tables(rows, asked) == []
    with pytest.raises(LegatoValueError, match="4 or more different ones"):
        sweep_forecast.answer(tmp_path, sweep_forecast.Question(1e6, CLIFF, shape="quadratic"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"statistic": "first unstable"}, "Did you mean 'first unstable learning rate'"),
        ({"arms": ("non",)}, "Did you mean 'none'"),
        ({"learning_rates": (0.03,)}, "learning_rate: expected one of the grid"),
        ({"size": -1.0}, "size: expected a finite number > 0"),
        ({"eps": 0.0}, "eps: expected a finite number > 0"),
        ({"threshold": 0.0}, "threshold: expected a finite number > 0"),
        ({"level": 1.5}, "level: expected a number above 0 and below 1"),
    ],
)
def test_what_a_sweep_does_not_have_is_named(lawful, tmp_path, options, words):
    with pytest.raises(LegatoValueError, match=words):
        sweep_forecast.answer(tmp_path, sweep_forecast.Question(**({"size": 1e6} | options)))


def test_the_command_prints_a_table_for_each_statistic(lawful, capsys):
    assert main(["stability", "forecast", "runs/x", "--size", "1e6", "--learning-rates", "0.02"]) == 0
    said = capsys.readouterr().out
    for name in (LOGIT.format(2), GRADIENT, CLIFF):
        assert f"{name}, at N = 1 M" in said
    assert main(["stability", "forecast", "runs/x", "--size", "1e6", "--arms", "non"]) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ("qknorm",)}, "Did you mean 'qk-norm'"),
        ({"arms": ("qk-norm+qk-norm",)}, "arms: expected each part once"),
        ({"arms": ("qk-norm:1",)}, "expected no value"),
        ({"arms": ("z-loss:much",)}, "expected a number >= 0; got much"),
        ({"arms": ("eps:-1",)}, "expected a number >= 0; got -1"),
        ({"arms": ("mup:simpel",)}, "Did you mean 'simple'"),
        ({"sizes": ("8",)}, "sizes: expected WIDTHxDEPTH"),
        ({"sizes": ("8x0",)}, "sizes: expected WIDTHxDEPTH"),
        ({"sizes": ("12x1",)}, "multiples of the head width 8"),
        ({"head_width": 3, "sizes": ("6x1",)}, "an even width of each head"),
        ({"steps": 7}, "steps: expected a multiple of the 6 checks"),
        ({"probe_steps": (7,)}, "probe_steps: expected steps from 0 to 6"),
        ({"learning_rates": (0.1,)}, "learning_rates: expected two or more"),
        ({"seeds": 0}, "seeds"),
        ({"text": "no-such-text"}, "text"),
    ],
)
def test_what_cannot_be_swept_is_named_before_anything_is_trained(config, changes, words, monkeypatch):
    monkeypatch.setattr(decoder_sweep, "finish", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(LegatoValueError, match=words):
        decoder_sweep.run(replace(config, **changes), progress=False)
