"""The cases of the room stability: every step trains, and both ways of looking see the same logits."""

import pytest
import torch

from legato.bench import stability
from legato.stability.watch import watch


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in (("SHAPE", (2, 8)), ("WIDTH", 16), ("DEPTH", 2), ("HEADS", 2), ("CADENCE", 3)):
        monkeypatch.setattr(stability, name, value)


@pytest.mark.parametrize("kind", ["plain", "watched", "exact", "hooked"])
def test_every_call_does_as_many_steps_and_the_same_ones(kind):
    training, reference = stability._Training(), stability._Training()
    before = training.model.head.weight.detach().clone()
    training.calls(kind)()
    for _ in range(3):
        reference.step()
    assert not torch.equal(before, training.model.head.weight)
    assert torch.equal(reference.model.head.weight, training.model.head.weight)


def test_the_hooks_see_what_the_watcher_sees():
    training = stability._Training()
    with (
        watch(training.model, training.optimizer, every=1, exact_every=1) as watcher,
        stability.Hooks(training.model) as hooks,
    ):
        training.step()
    assert watcher.latest is not None
    for name, (largest, entropy) in hooks.read().items():
        seen = watcher.latest.attention[name]
        assert seen.max == pytest.approx(largest, rel=1e-5)
        assert seen.entropy == pytest.approx(entropy, rel=1e-4)
    assert not training.model.blocks[0].attention._forward_hooks


def test_a_run_in_a_process_is_counted(monkeypatch):
    """A process that does nothing but start takes longer than calling a function that does nothing."""
    import subprocess
    import sys

    from legato.bench import timing

    child = timing._seconds(lambda: subprocess.run([sys.executable, "-S", "-c", "sum(range(10**6))"], check=True))
    assert child > 0.005 > timing._seconds(lambda: None)


def test_the_sweeps_case_trains_and_measures(monkeypatch):
    seen = []
    monkeypatch.setattr(stability, "RUN", (16, 1, 6))
    fit = stability.training.fit
    monkeypatch.setattr(stability.training, "fit", lambda *a, **k: seen.append(fit(*a, **k)) or seen[0])
    stability.one_run()
    errors = [entry["validation_error"] for entry in seen[0].history]
    assert len(errors) == 6
    assert errors[-1] < errors[0]
