"""The cases of the room diffusion: every step trains the adapters, with the penalty where it says so."""

import pytest
import torch

from legato.bench import smooth

pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.mark.parametrize("case", smooth.cases(), ids=lambda case: case.part)
def test_every_step_runs(case, monkeypatch):
    monkeypatch.setattr(smooth, "SHAPE", (2, 1, 8, 8))
    for make in (case.ours, case.other):
        step = make()
        step()
        step()


def test_the_penalty_is_there(monkeypatch):
    monkeypatch.setattr(smooth, "SHAPE", (2, 1, 8, 8))
    seen = []
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: seen.append(float(loss.detach())))
    for make in (smooth.plain_step, smooth.cases()[0].ours, smooth.cases()[1].ours):
        make()()
    assert seen[0] < min(seen[1:])
    assert seen[1] == pytest.approx(seen[2], rel=0.5)
