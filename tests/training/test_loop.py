"""The loop on real digits with real optimisers: exact resume, accumulation, divergence, averages, the gradient seam."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from legato import training
from legato.data import Batches
from legato.errors import LegatoTypeError, LegatoValueError

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def digits(rows=256, batch_size=32):
    data = load_digits()
    x, y = torch.tensor(data.data[:rows], dtype=torch.float32) / 16, torch.tensor(data.target[:rows])
    return Batches(x, y, torch.arange(rows), batch_size)


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10))


def fit(model=None, batches=None, **options):
    settings = {"epochs": 2, "optimizer": SGD, "schedule": training.cosine} | options
    return training.fit(model or net(), training.Criterion(nn.CrossEntropyLoss()), batches or digits(), **settings)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns_and_its_history_is_plain_json():
    rows = digits()
    x, y, _ = rows.tensors
    fitted = fit(epochs=8, validate=lambda m: {"validation_error": float((m(x).argmax(1) != y).float().mean())})
    assert fitted.history[-1]["validation_error"] < 0.05 < fitted.history[0]["validation_error"]
    assert fitted.steps == 64
    errors = [row["validation_error"] for row in fitted.history]
    assert (fitted.best.value, fitted.best.epoch) == (min(errors), errors.index(min(errors)))
    assert len(fitted.best.weights) == len(fitted.model.state_dict())
    json.dumps(fitted.history, allow_nan=False)


def test_a_plain_loop_written_by_hand_gives_the_same_weights():
    model, batches = net(), digits()
    optimizer = SGD(model.parameters())
    schedule = training.cosine(optimizer, 16)
    for epoch in range(2):
        for x, y, _ in batches.epoch(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    assert torch.equal(weights(model), weights(fit().model))


class Stop(Exception):
    pass


class StoppingBatches:
    """Batches that break off after some of them, as a killed process does."""

    def __init__(self, batches, after):
        self.batches, self.left = batches, after

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch):
        for batch in self.batches.epoch(epoch):
            self.left -= 1
            if self.left < 0:
                raise Stop
            yield batch


@pytest.mark.parametrize("optimizer", [SGD, partial(torch.optim.Adam, lr=0.01)])
@pytest.mark.parametrize("stop_after", [3, 8, 13])
def test_resume_is_bitwise_equal_to_an_undisturbed_run(tmp_path, optimizer, stop_after):
    options = {"epochs": 3, "optimizer": optimizer, "ema_decay": 0.9, "clip_norm": 1.0}
    torch.manual_seed(1)
    whole = fit(net(dropout=0.5), **options)
    torch.manual_seed(1)
    with pytest.raises(Stop):
        fit(net(dropout=0.5), StoppingBatches(digits(), stop_after), folder=tmp_path, checkpoint_seconds=0, **options)
    torch.manual_seed(99)  # a new process has other random numbers
    resumed = fit(net(dropout=0.5), folder=tmp_path, checkpoint_seconds=0, **options)
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert [row["train_loss"] for row in whole.history] == [row["train_loss"] for row in resumed.history]


def test_kill_nine_and_again(tmp_path):
    """The process dies for real between two steps; the next one goes on to the same last bit."""
    program = textwrap.dedent("""
        import os, signal, sys
        from functools import partial
        import torch
        sys.path.insert(0, sys.argv[1])
        import test_loop as t
        torch.set_num_threads(1)
        steps = iter(range(10**6))
        def optimizer(parameters):
            made = t.SGD(parameters)
            step = made.step
            def counted(*a, **k):
                if next(steps) == int(sys.argv[3]):
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(*a, **k)
            made.step = counted
            return made
        fitted = t.fit(t.net(), optimizer=optimizer, schedule=None, folder=sys.argv[2], checkpoint_seconds=0)
        torch.save(t.weights(fitted.model), sys.argv[2] + "/weights.pt")
    """)

    def run(folder, die_at):
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent), str(folder), str(die_at)],
            env=os.environ,
            check=False,
        ).returncode

    assert run(tmp_path / "a", 10) == -signal.SIGKILL
    assert run(tmp_path / "a", -1) == 0
    assert run(tmp_path / "b", -1) == 0
    assert torch.equal(
        torch.load(tmp_path / "a/weights.pt", weights_only=True),
        torch.load(tmp_path / "b/weights.pt", weights_only=True),
    )


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_batches_are_one_batch_whatever_their_sizes(accumulate):
    small = digits(rows=250, batch_size=32)  # eight batches, the last of 26 rows
    a = fit(batches=small, accumulate=accumulate, epochs=1)
    b = fit(batches=digits(rows=250, batch_size=32 * accumulate), epochs=1)
    torch.testing.assert_close(weights(a.model), weights(b.model), rtol=1e-4, atol=1e-6)


def test_a_run_that_diverges_is_recorded_and_stopped():
    fitted = fit(optimizer=partial(torch.optim.SGD, lr=1e20), epochs=50)
    assert "not finite" in fitted.diverged
    assert len(fitted.history) < 50
    json.dumps(fitted.history, allow_nan=False)


def test_the_average_is_that_of_its_formula():
    seen = []

    class Watch(nn.Module):
        def forward(self, output, target):
            return nn.functional.cross_entropy(output, target)

    model = net()
    objective = training.Criterion(Watch())
    objective_after = objective.after_step

    class Recorder:
        def __getattr__(self, name):
            return getattr(objective, name)

        def after_step(self, m):
            objective_after(m)
            seen.append(weights(m).clone())

    fitted = training.fit(model, Recorder(), digits(), epochs=1, optimizer=SGD, ema_decay=0.8)
    want = seen[0]
    for now in seen[1:]:
        want = 0.8 * want + 0.2 * now
    torch.testing.assert_close(weights(fitted.model), want, rtol=1e-5, atol=1e-6)


def test_an_objective_may_ask_for_the_gradient_twice():
    """SAM: climb by rho along the gradient, take the gradient there, come back."""
    model = net()

    class Sam:
        def __getattr__(self, name):
            return getattr(plain, name)

        def gradients(self, closure):
            loss = closure()
            with torch.no_grad():
                norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
                climbs = [0.05 * p.grad / norm for p in model.parameters()]
                torch._foreach_add_(list(model.parameters()), climbs)
            closure()
            with torch.no_grad():
                torch._foreach_sub_(list(model.parameters()), climbs)
            return loss

    plain = training.Criterion(nn.CrossEntropyLoss())
    fitted = training.fit(model, Sam(), digits(), epochs=4, optimizer=SGD)
    assert fitted.history[-1]["train_loss"] < 0.5 * fitted.history[0]["train_loss"]
    assert not torch.equal(weights(model), weights(fit(epochs=4, schedule=None).model))


def test_bf16_and_a_compiled_model_train():
    assert fit(autocast="bf16", epochs=6).history[-1]["train_loss"] < 2
    assert fit(torch.compile(net(), backend="aot_eager"), epochs=6).history[-1]["train_loss"] < 2


def test_a_saved_model_comes_back(tmp_path):
    from legato import nets

    model = nets.build("mlp", (64,), 10)
    training.save_model(tmp_path / "m", model, "mlp", (64,), 10)
    x = torch.randn(3, 64)
    assert torch.equal(training.load_model(tmp_path / "m", nets.build)(x), model.eval()(x))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"epochs": 0}, LegatoValueError, "epochs"),
        ({"accumulate": 0}, LegatoValueError, "accumulate"),
        ({"clip_norm": -1.0}, LegatoValueError, "clip_norm"),
        ({"ema_decay": 1.0}, LegatoValueError, "ema_decay"),
        ({"optimizer": torch.optim.SGD(net().parameters(), lr=1.0)}, LegatoTypeError, "function of the parameters"),
        ({"model": nn.Linear(64, 5)}, LegatoValueError, r"0 \.\. 4"),
    ],
)
def test_bad_arguments(change, error, words):
    with pytest.raises(error, match=words):
        fit(change.pop("model", None), **change)


def test_nan_in_the_first_batch():
    x, y, index = digits().tensors
    x = x.clone()
    x[5, 3] = torch.nan
    with pytest.raises(LegatoValueError, match="1 NaN"):
        fit(batches=Batches(x, y, index, 256))
