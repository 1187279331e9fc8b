"""The cases of the room distillation: both sides give the same gradient."""

import pytest
import torch

from legato.bench import distillation
from legato.bench.distillation_peers import naive_unrolling
from legato.distillation import unrolled_grad


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_both_sides_find_the_same_gradient(momentum, monkeypatch):
    """In float64 to rounding; in float32 both round along 20 steps."""
    monkeypatch.setattr(distillation, "WIDTH", 4)
    monkeypatch.setattr(distillation, "IMAGES", (5, 3, 8, 8))

    def gradient(method, dtype):
        return distillation._gradient(method, 20, momentum, dtype).images_grad.double()

    want = gradient(naive_unrolling, torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        assert float((gradient(unrolled_grad, dtype) - want).norm()) < tolerance * float(want.norm())


def test_every_step_runs(monkeypatch):
    monkeypatch.setattr(distillation, "WIDTH", 2)
    monkeypatch.setattr(distillation, "IMAGES", (2, 3, 8, 8))
    for case in distillation.cases():
        for make in (case.ours, case.other):
            assert torch.isfinite(make()().loss)


def test_memory_does_not_grow_with_the_graphs(monkeypatch):
    from legato.bench.memory import peak_bytes

    monkeypatch.setattr(distillation, "WIDTH", 8)
    monkeypatch.setattr(distillation, "IMAGES", (10, 3, 16, 16))
    few, many, naive = (
        peak_bytes(step) for step in (distillation.ours(5), distillation.ours(20), distillation.peer(20))
    )
    assert many < 1.5 * few
    assert many < 0.4 * naive
