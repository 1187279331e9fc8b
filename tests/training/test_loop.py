"""The loop on real digits with real optimisers, against loops written by hand; divergence, averages, the gradient seam."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from io import StringIO
from typing import Any

import pytest
import torch
from small_run import SGD, Changed, NanAt, Sam, digits, fit, losses, net, rows, weights
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from legato import training
from legato.data import Batches, IndexedLoader
from legato.errors import DeviceError, LegatoTypeError, LegatoValueError, LegatoWarning
from legato.training import progress
from legato.training import run as loop
from legato.training.objective import Batch


def error_of(model: nn.Module) -> dict[str, float]:
    x, y, _ = rows()
    return {"validation_error": float((model(x).argmax(1) != y).float().mean())}


def test_it_learns_and_its_history_is_plain_json() -> None:
    logged: list[dict[str, Any]] = []
    fitted = fit(epochs=8, validate=error_of, log=logged.append)
    errors = [entry["validation_error"] for entry in fitted.history]
    assert errors[-1] < 0.05 < errors[0]
    assert (fitted.steps, [entry["step"] for entry in fitted.history]) == (64, [8 * epoch for epoch in range(1, 9)])
    assert fitted.best is not None
    assert (fitted.best.value, fitted.best.epoch) == (min(errors), errors.index(min(errors)))
    assert fitted.best.weights.keys() == fitted.model.state_dict().keys()
    assert logged == fitted.history
    assert fitted.seconds == pytest.approx(sum(entry["seconds"] for entry in fitted.history))
    json.dumps(fitted.history, allow_nan=False)


def test_the_best_weights_are_those_of_their_epoch() -> None:
    seen: list[Tensor] = []
    values = iter([0.5, 0.2, float("nan"), 0.2])

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append(weights(model).clone())
        return {"loss": next(values)}

    fitted = fit(epochs=4, validate=validate, best="loss")
    assert fitted.best is not None
    assert (fitted.best.value, fitted.best.epoch) == (0.2, 1)
    assert torch.equal(torch.cat([w.flatten() for w in fitted.best.weights.values()]), seen[1])
    assert [entry["loss"] for entry in fitted.history] == [0.5, 0.2, None, 0.2]


def test_a_best_metric_that_is_not_there_is_named_once() -> None:
    with pytest.warns(LegatoWarning, match=r"best='nll'.*\(validation_error\)") as caught:
        assert fit(validate=error_of, best="nll").best is None
    assert len(caught) == 1


@pytest.mark.parametrize(
    "options",
    [{}, {"autocast": "bf16"}, {"clip_norm": 0.1}, {"schedule": None}, {"schedule": training.one_cycle}],
    ids=["plain", "bf16", "clipped", "constant", "one cycle"],
)
def test_a_plain_loop_written_by_hand_gives_the_same_weights(options: dict[str, Any]) -> None:
    model, batches = net(), digits()
    optimizer = SGD(model.parameters())
    schedule = options.get("schedule", training.cosine)
    steps = schedule(optimizer, 16) if schedule else None
    for epoch in range(2):
        for x, y, _ in batches.epoch(epoch):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16) if "autocast" in options else nullcontext():
                loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            if "clip_norm" in options:
                nn.utils.clip_grad_norm_(model.parameters(), options["clip_norm"])
            optimizer.step()
            if steps:
                steps.step()
    fitted = fit(**options)
    assert torch.equal(weights(model), weights(fitted.model))
    if "autocast" in options:
        assert not torch.equal(weights(model), weights(fit().model))


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_batches_are_one_batch_whatever_their_sizes(accumulate: int) -> None:
    """Eight batches, the last of 26 rows, so that the last group is short and of mixed sizes."""
    precise = {"dtype": torch.float64, "count": 250}
    a = fit(net().double(), digits(batch_size=32, **precise), accumulate=accumulate)
    b = fit(net().double(), digits(batch_size=32 * accumulate, **precise))
    torch.testing.assert_close(weights(a.model), weights(b.model), rtol=1e-10, atol=1e-12)
    assert losses(a) == pytest.approx(losses(b), rel=1e-12)
    assert a.steps == b.steps == 2 * -(-8 // accumulate)


@pytest.mark.parametrize(("bad", "text"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_a_loss_that_is_not_finite_is_recorded_with_its_step(
    monkeypatch: pytest.MonkeyPatch, bad: float, text: str
) -> None:
    monkeypatch.setattr(loop, "LOOK_EVERY", 5)
    validated: list[int] = []
    fitted = fit(
        objective=NanAt(11, bad), epochs=9, validate=lambda model: validated.append(1) or {"validation_error": 0.5}
    )
    assert fitted.diverged == f"the loss is not finite: {text} at step 11, in epoch 1"
    assert fitted.steps == 15, "the next look at the losses ends it"
    assert (len(fitted.history), fitted.history[-1]["train_loss"], len(validated)) == (2, None, 1)
    json.dumps(fitted.history, allow_nan=False)


def test_a_learning_rate_that_explodes_stops_the_run() -> None:
    fitted = fit(optimizer=partial(torch.optim.SGD, lr=1e20), epochs=50)
    assert "not finite" in (fitted.diverged or "")
    assert len(fitted.history) < 50


def test_words_of_stop_end_the_run_after_that_epoch() -> None:
    seen: list[int] = []

    def stop(history: Sequence[dict[str, Any]]) -> str | None:
        seen.append(len(history))
        return "enough" if len(history) == 2 else None

    fitted = fit(epochs=5, stop=stop)
    assert (fitted.diverged, len(fitted.history), seen) == ("enough", 2, [1, 2])
    assert fit(epochs=3, stop=lambda history: None).diverged is None


def test_the_average_is_that_of_its_formula() -> None:
    seen: list[Tensor] = []

    class Recorder(Changed):
        def after_step(self, model: nn.Module) -> None:
            seen.append(weights(model).clone())

    fitted = fit(objective=Recorder(), epochs=1, ema_decay=0.8)
    want = seen[0]
    for now in seen[1:]:
        want = 0.8 * want + 0.2 * now
    torch.testing.assert_close(weights(fitted.model), want, rtol=1e-5, atol=1e-6)


def test_an_objective_may_ask_for_the_gradient_twice() -> None:
    model = net()
    fitted = fit(model, objective=Sam(model), epochs=4, schedule=None)
    first, *_, last = losses(fitted)
    assert first is not None
    assert last is not None
    assert last < 0.5 * first
    assert not torch.equal(weights(model), weights(fit(epochs=4, schedule=None).model))


def test_a_compiled_model_trains_like_itself_and_is_kept_without_its_compilation() -> None:
    compiled = torch.compile(net(), backend="aot_eager")
    a, b = fit(compiled, validate=error_of, ema_decay=0.9), fit(validate=error_of, ema_decay=0.9)
    torch.testing.assert_close(weights(a.model), weights(b.model), rtol=1e-4, atol=1e-6)
    plain = fit(compiled, epochs=1, validate=error_of)
    assert plain.best is not None
    assert plain.best.weights.keys() == net().state_dict().keys()


def test_a_loader_with_workers_trains_like_one_without() -> None:
    x, y, _ = rows()

    def batches(workers: int) -> IndexedLoader:
        return IndexedLoader(DataLoader(TensorDataset(x, y), 48, shuffle=True, num_workers=workers))

    seen: list[Tensor] = []

    class Recorder(Changed):
        def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
            inputs, targets, index = batch
            assert torch.equal(inputs, x[index])
            assert torch.equal(targets, y[index])
            seen.append(index)
            return self.plain.loss(model, batch, step)

    one, other = (fit(batches=batches(workers), objective=Recorder(), epochs=1) for workers in (0, 2))
    assert torch.equal(weights(one.model), weights(other.model))
    assert sorted(torch.cat(seen[:6]).tolist()) == list(range(256))


def test_validation_in_eval_mode_leaves_no_trace() -> None:
    """Dropout draws the same numbers with and without it, whatever `validate` does to the modes."""

    def validate(model: nn.Module) -> dict[str, float]:
        assert not any(module.training for module in model.modules())
        model.train()
        model[2].eval()  # type: ignore[index]
        return {"validation_error": 1.0}

    weights_of = []
    for option in (None, validate):
        model = net(dropout=0.5)
        weights_of.append(weights(fit(model, epochs=3, validate=option).model))
        assert all(module.training for module in model.modules())
    assert torch.equal(*weights_of)


def test_a_validation_that_raises_ends_the_run_with_the_model_in_training_mode() -> None:
    def validate(model: nn.Module) -> dict[str, float]:
        raise ZeroDivisionError

    model = net()
    with pytest.raises(ZeroDivisionError):
        fit(model, validate=validate)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [
        (0.1, LegatoTypeError, "validate: expected a function that returns a dict of numbers by name; got float"),
        ({"error": "low"}, LegatoTypeError, "error = 'low'"),
        ({"error": torch.zeros(2)}, LegatoTypeError, "error = tensor"),
        ({"epoch": 1.0, "seconds": 2.0}, LegatoValueError, "names other than epoch, .*; got epoch, seconds"),
    ],
)
def test_what_validate_returns_is_checked(found: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fit(validate=lambda model: found)


def test_progress_without_a_terminal_is_a_line_and_no_escape_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(progress=True)
    text = capsys.readouterr().err
    assert text.startswith("16/16 steps, ")
    assert (text.count("\n"), "\x1b" in text, "\r" in text) == (1, False, False)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    fit(progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/")[0] for line in lines] == [*map(str, range(1, 17)), "16"]
    assert " s left" in lines[3]


def test_progress_on_a_terminal_is_a_bar_that_reaches_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress.ProgressBar(500, 100, "results in [there]") as bar:
        bar.show(499)
        bar.show(500)
    last = terminal.getvalue().split("\x1b[2K")[-1]
    assert "500/500" in last
    assert "results in [there]" in last


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"epochs": 0}, LegatoValueError, "epochs"),
        ({"epochs": 2.5}, LegatoValueError, "epochs: expected a whole number >= 1; got 2.5"),
        ({"accumulate": 0}, LegatoValueError, "accumulate"),
        ({"clip_norm": -1.0}, LegatoValueError, "clip_norm"),
        ({"clip_norm": float("nan")}, LegatoValueError, "clip_norm"),
        ({"ema_decay": 1.0}, LegatoValueError, "ema_decay"),
        ({"checkpoint_seconds": -1}, LegatoValueError, "checkpoint_seconds"),
        ({"autocast": "fp16"}, LegatoValueError, "autocast: expected None or 'bf16'; got 'fp16'"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99 cannot be used"),
        ({"optimizer": torch.optim.SGD(net().parameters(), lr=1.0)}, LegatoTypeError, "function of the parameters"),
        ({"optimizer": lambda parameters: None}, LegatoTypeError, "returns an optimizer; got NoneType"),
        ({"schedule": "cosine"}, LegatoTypeError, r"function of \(optimizer, total_steps\); got str"),
        ({"schedule": lambda optimizer, steps: None}, LegatoTypeError, "steps by itself; got NoneType"),
        ({"objective": nn.CrossEntropyLoss()}, LegatoTypeError, r"without .*loss.*wrap a loss function: Criterion"),
        ({"batches": [1, 2]}, LegatoTypeError, "legato.data.Batches"),
        ({"batches": Batches(*rows(0), 4)}, LegatoValueError, "at least one batch"),
        ({"model": nn.Linear(64, 5)}, LegatoValueError, r"0 \.\. 4"),
        ({"model": nn.Linear(64, 10).requires_grad_(False)}, LegatoValueError, "trainable"),
        ({"objective": training.Criterion(lambda o, t: o.sum(1))}, LegatoValueError, "scalar loss; got shape"),
        ({"objective": training.Criterion(lambda o, t: o.sum().detach())}, LegatoValueError, "no graph"),
        ({"objective": training.Criterion(nn.MSELoss())}, LegatoValueError, "the shape of the outputs"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fit(**change)


class Few:
    """One batch where eight are promised, and whatever `change` makes of it."""

    def __init__(self, change: Callable[[Batch], Any]) -> None:
        self.change = change

    def __len__(self) -> int:
        return 8

    def epoch(self, epoch: int) -> Any:
        yield self.change(next(digits().epoch(0)))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda batch: batch, LegatoValueError, "8 batches in epoch 0, as len.*; got 1"),
        (lambda batch: batch[:2], LegatoTypeError, "of three tensors"),
        (lambda batch: {"inputs": batch[0]}, LegatoTypeError, "of three tensors"),
        (lambda batch: (batch[0][:3], *batch[1:]), LegatoValueError, "of one length >= 1; got 3, 32 and 32 rows"),
        (lambda batch: (batch[0], batch[1].int(), batch[2]), LegatoValueError, "int64; got torch.int32"),
        (lambda batch: (batch[0] / batch[0], *batch[1:]), LegatoValueError, r"inputs: .* got \d+ NaN"),
    ],
)
def test_bad_batches(change: Callable[[Batch], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fit(batches=Few(change))


def test_a_saved_model_comes_back(tmp_path: Any) -> None:
    from legato import nets

    model = nets.build("mlp", (64,), 10)
    training.save_model(tmp_path / "m", model, "mlp", (64,), 10)
    x = torch.randn(3, 64)
    assert torch.equal(training.load_model(tmp_path / "m", nets.build)(x), model.eval()(x))
    with pytest.raises(LegatoTypeError, match="what JSON holds"):
        training.save_model(tmp_path / "n", model, "mlp", (64,), 10, rate=float("nan"))
