"""What the SAF study reads of a model, what its claims make of it, and the parts of an objective that a trial does itself."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.flatness import trajectory_loss
from legato.lab.claims import Claim
from legato.studies import classify, flatness_readings, verdicts
from legato.studies.methods import Context
from legato.studies.prepared import Source, prepare
from legato.studies.result import Best


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 6, generator=generator), torch.randint(3, (32,), generator=generator)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def test_the_watch_compares_with_the_outputs_of_some_epochs_ago():
    x, y = batch()
    model, watch = net(), flatness_readings.Watch(x, y, lag=2)
    logits, found = [], []
    for epoch in range(4):
        with torch.no_grad():
            model[0].weight.mul_(1.1)
            logits.append(model(x))
        found.append(watch(model))
        assert found[-1]["rows_loss"] == pytest.approx(float(F.cross_entropy(logits[-1], y)))
        assert found[-1]["ball_sharpness"] > 0
        if epoch < 2:
            assert math.isnan(found[-1]["trajectory_loss"])
            assert math.isnan(found[-1]["loss_fall"])
        else:
            assert found[-1]["loss_fall"] == pytest.approx(found[-3]["rows_loss"] - found[-1]["rows_loss"])
            assert found[-1]["trajectory_loss"] == pytest.approx(float(trajectory_loss(logits[-1], logits[-3])))


def test_sharpness_is_read_of_frozen_averages_too_and_leaves_them_frozen():
    x, y = batch()
    model = net()
    want = flatness_readings.sharpness(model, x, y)
    assert want.keys() == set(flatness_readings.MEASURES)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert flatness_readings.sharpness(model, x, y) == want
    assert not any(parameter.requires_grad for parameter in model.parameters())
    hessian = torch.func.hessian(
        lambda bias: F.cross_entropy(F.linear(torch.tanh(model[0](x)), model[2].weight, bias), y)
    )
    assert want["sharpness_lambda_max"] >= float(torch.linalg.eigvalsh(hessian(model[2].bias.detach())).max()) * 0.999
    assert want["sharpness_one_step"] < want["sharpness_ball"]


def test_a_broken_model_counts_as_sharp_and_stops_nothing():
    x, y = batch()
    model = net()
    model[0].weight.data.fill_(math.nan)
    assert set(flatness_readings.sharpness(model, x, y).values()) == {flatness_readings.BROKEN}
    assert math.isnan(flatness_readings.Watch(x, y)(model)["ball_sharpness"])


NUMBERS = {
    "ce+weight-decay:amount=0.005": ([2.0, 8.0], {"a": [None, 1, 2, 3, 4], "b": [None, 2, 4, 6, 7], "rows_loss": [9, 5, 4, 3.5, 2]}),
    "ce+saf:lam=1": ([1.0, 2.0], {"a": [1, 2, 3, 4, 5], "b": [5, 4, 3, 2, 1], "rows_loss": [9, 3, 2.5, 2.25, 2]}),
}  # fmt: skip


class FakeResult:
    """Two arms, two seeds, numbers made by hand."""

    plan = SimpleNamespace(arms=("ce+weight-decay:amount=0.005", "ce+saf:lam=1"))

    def column(self, noise, arm, metric):
        return np.array(NUMBERS[arm][0])

    def readings(self, noise, arm):
        return [arm, arm]

    def metrics(self, reading):
        return {"curves": NUMBERS[reading][1]}


def claim(**fields):
    return Claim(
        "id", "0000.00000", "words", "saf", "part", **{"arm": "ce+saf:*", "baseline": "ce|ce+weight-decay:*"} | fields
    )


def test_measures_of_the_claims():
    result = FakeResult()
    np.testing.assert_allclose(verdicts.MEASURES["flatness"](result, claim()), np.log([2, 4]))
    assert verdicts.MEASURES["accuracy"](result, claim()).tolist() == [1, 6]
    assert verdicts.MEASURES["largest fall of the loss"](result, claim()).tolist() == [
        1,
        1,
    ]  # 1.5 in one epoch against 0.5
    same = claim(arm="ce|ce+weight-decay:*", baseline="a ~ b")
    assert verdicts.MEASURES["rank correlation"](result, same).tolist() == pytest.approx([1, 1])
    assert verdicts.MEASURES["rank correlation"](result, claim(baseline="a ~ b")).tolist() == pytest.approx([-1, -1])
    with pytest.raises(ValueError, match="one objective that matches"):
        verdicts.MEASURES["accuracy"](result, claim(arm="ce*"))


SETTING = classify.TrialConfig("digits", "", "ce", 0.3, 0, "mlp", 6, 64, label_noise=0.4, train_rows=300)


def trained(objective, tmp_path, **changes):
    config = replace(SETTING, objective=objective, **changes)
    source = Source("digits")
    torch.manual_seed(0)
    return classify.train(config, prepare(config, source), tmp_path / objective.replace(":", "-"))


def test_an_objective_may_bring_a_weight_decay(tmp_path):
    own, told, plain = (
        trained("ce+weight-decay:0.05", tmp_path),
        trained("ce", tmp_path, weight_decay=0.05),
        trained("comp-sum:1", tmp_path),
    )
    states = [torch.cat([p.flatten() for p in fitted.model.parameters()]) for fitted in (own, told, plain)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_early_stopping_evaluates_the_best_epoch(tmp_path):
    stopped, plain = trained("ce+early-stopping", tmp_path), trained("ce", tmp_path)
    errors = [row["validation_error"] for row in plain.history]
    assert errors[-1] > min(errors), "else the test sees nothing"
    assert stopped.best.epoch == errors.index(min(errors))
    assert all(torch.equal(value, stopped.best.weights[name]) for name, value in stopped.model.state_dict().items())
    assert not all(torch.equal(value, stopped.best.weights[name]) for name, value in plain.model.state_dict().items())


@pytest.mark.parametrize(
    "objective", ["ce+saf:lam=1", "ce+sam:radius=0.1+ema:decay=0.99", "gce:q=0.5", "comp-sum:tau=1.7+mesa:lam=1"]
)
def test_the_lines_that_are_printed_run_in_a_process_of_their_own(objective):
    """What they use is there after their own imports, and nothing else has been imported before."""
    lines = Best(objective, 0.1, Context(10)).python
    given = "import torch as t; model, num_samples, num_classes = t.nn.Linear(4, 3), 8, 3; del t\n"
    done = subprocess.run(
        [sys.executable, "-c", given + lines], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    assert done.returncode == 0, f"{lines}\n{done.stderr}"
