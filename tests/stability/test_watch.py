"""The watcher: right numbers, not a bit of the run changed, and nothing left behind."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode
from watched_models import VOCABULARY, Decoder, Encoder, adam, hooks, loss_of, made, rms, step, tokens, trained

from legato.errors import LegatoTypeError, LegatoValueError, LegatoWarning
from legato.stability.readings import adam_share
from legato.stability.watch import watch


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Decoder, {}), (Decoder, {"dropout": 0.2}), (Encoder, {})],
    ids=["kernel", "dropout", "multihead"],
)
def test_not_one_bit_of_the_run_is_changed(kind, options):
    """50 steps, of which every third is watched and every second of those exactly."""
    model = made(kind, dtype=torch.float32, **options)
    plain = trained(model, 50, watched=False)
    watched = trained(model, 50, watched=True, every=3, exact_every=2)
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))


def test_numbers_of_a_step_are_those_of_the_step():
    model, batch = made(), tokens()
    optimizer = adam(model, eps=1e-3, lr=0.02)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    x = model.embed(batch[:, :-1])
    outputs, largest = [], []
    for block in model.blocks:
        q, k, _ = block.queries_and_keys(x)
        z = (q @ k.transpose(-1, -2) / math.sqrt(8)).masked_fill(~torch.ones(8, 8, dtype=torch.bool).tril(), -math.inf)
        largest.append(z.amax((0, 2, 3)).tolist())
        x = block(x)
        outputs.append(rms(x))
    logits = model(batch[:, :-1])
    with watch(model, optimizer) as watcher:
        step(model, optimizer, batch, clip=0.05)
    reading = watcher.latest
    assert list(reading.attention) == ["blocks.0", "blocks.1"]
    for layer, want in zip(reading.attention.values(), largest, strict=True):
        assert layer.max == pytest.approx(want, rel=1e-12)
        assert all(low <= top <= high for low, top, high in zip(layer.lower, want, layer.upper, strict=True))
    assert list(reading.block_rms.values()) == pytest.approx(outputs, rel=1e-12)
    logits, log_z = logits.detach(), logits.detach().logsumexp(-1)
    assert vars(reading.logits) == pytest.approx(
        {"log_z": float(log_z.mean()), "log_z_rms": rms(log_z), "smallest": float(logits.min()), "largest": float(logits.max())},
        rel=1e-12,
    )  # fmt: skip
    for name, weight in model.named_parameters():
        assert reading.gradient_rms[name] == pytest.approx(rms(weight.grad), rel=1e-12)  # after clipping
        assert reading.parameter_rms[name] == pytest.approx(rms(before[name]), rel=1e-12)
        assert reading.update_rms[name] == pytest.approx(rms(weight - before[name]), rel=1e-9)
        assert (reading.eps[name], reading.learning_rate[name]) == (1e-3, 0.02)
    squares = sum(reading.gradient_rms[name] ** 2 * weight.numel() for name, weight in model.named_parameters())
    assert math.sqrt(squares) == pytest.approx(0.05, rel=1e-5)
    assert reading.metrics()["adam_share/head.weight"] == adam_share(reading.gradient_rms["head.weight"], 1e-3)
    for layer in reading.attention.values():
        assert all(high <= bound for high, bound in zip(layer.upper, layer.bound, strict=True))
    assert reading.metrics()["attention/blocks.1/head1/max"] == reading.attention["blocks.1"].max[1]


@pytest.mark.parametrize("ratio", [100.0, 10.0, 1.0, 0.1])
def test_adam_share_is_the_step_of_adam_under_a_constant_gradient(ratio):
    """|g| / (|g| + eps) at every step, thanks to the correction of the bias: 0.990, 0.909, 0.5, 0.0909."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=1.0, eps=1e-8)
    for number in range(1, 6):
        weight.grad = torch.full_like(weight, ratio * 1e-8)
        optimizer.step()
        assert float(-weight.detach()) == pytest.approx(number * adam_share(ratio * 1e-8, 1e-8), rel=1e-9)
    assert adam_share(ratio, 1.0) == pytest.approx(ratio / (1 + ratio), rel=1e-15)


def test_cadence_and_exact_steps():
    model = made()
    optimizer, told = adam(model), []
    with watch(
        model, optimizer, every=3, exact_every=2, start=5, log=lambda table, at: told.append((at, table))
    ) as watcher:
        for seed in range(11):
            step(model, optimizer, tokens(seed))
    assert [reading.step for reading in watcher.readings] == [6, 9, 12, 15] == [at for at, _ in told]
    assert [reading.attention["blocks.0"].max is not None for reading in watcher.readings] == [True, False, True, False]
    assert told[-1][1] == watcher.latest.metrics() and all(math.isfinite(value) for value in told[-1][1].values())


def test_few_readings_are_kept():
    model = made()
    optimizer = adam(model)
    with watch(model, optimizer, every=1, exact_every=0, keep=2) as watcher:
        for seed in range(4):
            step(model, optimizer, tokens(seed))
    assert [reading.step for reading in watcher.readings] == [2, 3] and watcher.latest.attention["blocks.0"].max is None


def test_gradient_accumulation_is_one_step():
    """Two halves of a batch, added up, show what the whole batch shows."""
    whole, halves = made(), made()
    first, second = adam(whole), adam(halves)
    with watch(whole, first) as one, watch(halves, second) as two:
        step(whole, first, tokens())
        for half in tokens().chunk(2):
            (loss_of(halves, half) / 2).backward()
        second.step()
    assert two.latest.metrics() == pytest.approx(one.latest.metrics(), rel=1e-9)


def test_validation_is_left_out():
    model, other = made(), made()
    first, second = adam(model), adam(other)
    with watch(model, first) as one, watch(other, second) as two:
        with torch.no_grad():
            loss_of(model, tokens(7))
        step(model, first, tokens())
        step(other, second, tokens())
    assert one.latest == two.latest


def test_nothing_is_left_behind():
    model = made()
    optimizer = adam(model)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with watch(model, optimizer, every=3) as watcher:
        assert hooks(model, optimizer)[0] != []
        step(model, optimizer, tokens())
        assert hooks(model, optimizer) == ([], 1, 1)  # the next step is not watched
        model.head.weight.data[0, 0] = 1.0
        step(model, optimizer, tokens())
        step(model, optimizer, tokens())
        assert hooks(model, optimizer)[0] != []
    assert hooks(model, optimizer) == ([], 0, 0) and _get_current_function_mode_stack() == []
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    step(model, optimizer, tokens())
    assert len(watcher.readings) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_forward_pass_leaves_nothing_behind(error):
    model = made()
    optimizer = adam(model)

    def fail(*_):
        raise error("stop")

    with pytest.raises(error), watch(model, optimizer):
        handle = model.blocks[1].mlp.register_forward_pre_hook(fail)
        step(model, optimizer, tokens())
    handle.remove()
    assert hooks(model, optimizer) == ([], 0, 0) and _get_current_function_mode_stack() == []


def test_a_run_goes_on_after_a_failed_forward_pass():
    """Out of memory, a smaller batch, and on: the step counts as if it had been done at once."""
    model = made()
    optimizer = adam(model)
    with watch(model, optimizer) as watcher:
        with pytest.raises(IndexError):
            model(torch.full((1, 3), VOCABULARY))
        assert _get_current_function_mode_stack() == []
        step(model, optimizer, tokens())
    assert list(watcher.latest.attention) == ["blocks.0", "blocks.1"]


def test_one_copy_from_the_device_for_each_watched_step(monkeypatch):
    class Scalars(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    copies = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: copies.append(len(self)) or tolist(self))
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Scalars() as scalars, watch(model, optimizer, every=2):
        for seed in range(3):
            step(model, optimizer, tokens(seed))
    assert len(copies) == 2 and scalars.count == 0


def test_several_optimizers_make_one_step():
    model = made()
    first = torch.optim.SGD(model.blocks.parameters(), lr=0.1)
    second = torch.optim.AdamW([*model.embed.parameters(), *model.head.parameters()], lr=0.01)
    with watch(model, [first, second], every=2) as watcher:
        for seed in range(3):
            model.zero_grad()
            loss_of(model, tokens(seed)).backward()
            first.step()
            second.step()
    assert [reading.step for reading in watcher.readings] == [0, 2]
    assert set(watcher.latest.update_rms) == {name for name, _ in model.named_parameters()}
    assert set(watcher.latest.eps) == {"embed.weight", "head.weight"}


def test_a_scaled_gradient_is_read_without_its_factor():
    """A fused optimizer gets the gradients scaled, and divides them itself."""
    model, other = made(dtype=torch.float32), made(dtype=torch.float32)
    first, second = adam(model, fused=True), adam(other, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watch(model, first) as one, watch(other, second) as two:
        scaler.scale(loss_of(model, tokens())).backward()
        scaler.step(first)
        step(other, second, tokens())
    assert one.latest.gradient_rms == pytest.approx(two.latest.gradient_rms, rel=1e-5)


def test_alarms_are_warned_of_once():
    model = made()
    optimizer = adam(model)
    with torch.no_grad():
        model.blocks[1].joint.weight.mul_(1e3)
    with warnings.catch_warnings(record=True) as caught, watch(model, optimizer, every=1) as watcher:
        warnings.simplefilter("always")
        for seed in range(2):
            step(model, optimizer, tokens(seed))
    assert {warning.category for warning in caught} == {LegatoWarning}
    assert [(alarm.rule, alarm.where) for alarm in watcher.alarms].count(("attention limit", "blocks.1")) == 1
    assert sum("blocks.1" in str(warning.message) for warning in caught) == len(
        [a for a in watcher.alarms if a.where == "blocks.1"]
    )


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": "gpt2"}, LegatoTypeError, "model: expected a torch.nn.Module"),
        ({"optimizer": torch.optim.SGD}, LegatoTypeError, "optimizer: expected a torch.optim.Optimizer"),
        ({"optimizer": []}, LegatoTypeError, "optimizer: expected a torch.optim.Optimizer, or several; got none"),
        ({"optimizer": adam(nn.Linear(2, 2))}, LegatoValueError, "parameters of the model"),
        ({"every": 0}, LegatoValueError, "every: expected a whole number >= 1; got 0"),
        ({"every": True}, LegatoValueError, "every: expected a whole number"),
        ({"exact_every": -1}, LegatoValueError, "exact_every"),
        ({"exact_every": 2.0}, LegatoValueError, "exact_every"),
        ({"start": -1}, LegatoValueError, "start"),
        ({"keep": 0}, LegatoValueError, "keep"),
        ({"log": "file"}, LegatoTypeError, "log: expected a callable or None; got str"),
        ({"logits": 3}, LegatoTypeError, "logits"),
    ],
)
def test_arguments_that_cannot_be_used(change, error, text):
    model = made()
    arguments = {"model": model, "optimizer": adam(model), **change}
    with pytest.raises(error, match=text):
        watch(arguments.pop("model"), arguments.pop("optimizer"), **arguments)


def test_a_watcher_watches_once_at_a_time():
    model = made()
    optimizer = adam(model)
    watcher = watch(model, optimizer)
    with pytest.raises(LegatoValueError, match="not watching yet"), watcher, watcher:
        pass
    assert hooks(model, optimizer) == ([], 0, 0)
