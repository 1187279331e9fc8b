"""The cases of condition preference: every step trains, and ours and the released order have one loss."""

import copy

import pytest
import torch

from legato.bench import cpo
from legato.diffusion import ControlledUNet

pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch):
    monkeypatch.setattr(cpo, "SHAPE", (3, 1, 8, 8))


@pytest.mark.parametrize("case", cpo.cases(), ids=lambda case: f"{case.part} against {case.peer}")
def test_every_step_trains_and_nothing_but_the_controlnet(case):
    for make in (case.ours, case.other):
        step = make()
        before = [p.detach().clone() for p in step.trainable]
        held = [p.detach().clone() for p in step.model.parameters() if not p.requires_grad]
        step()
        step()
        assert any(not torch.equal(p, old) for p, old in zip(step.trainable, before, strict=True))
        still = [p for p in step.model.parameters() if not p.requires_grad]
        assert all(torch.equal(p, old) for p, old in zip(still, held, strict=True))


def test_on_equal_noise_the_losses_and_gradients_are_equal():
    base, net = cpo.networks()
    before = copy.deepcopy(net)
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(1.02)
    x0, controls, text = cpo.data()
    drawn = cpo.noise_for(x0, torch.Generator().manual_seed(0))
    theirs = cpo.five_passes(base, net, before, (x0, controls, text), drawn, drawn)
    ours = cpo.objective(text).loss(ControlledUNet(base, net, before), (x0, controls, torch.arange(3)), 0)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    weights = [p for p in net.parameters() if p.requires_grad]
    found, want = (torch.autograd.grad(loss, weights) for loss in (ours, theirs))
    size = max(float(w.abs().max()) for w in want)
    assert max(float((a - b).abs().max()) for a, b in zip(found, want, strict=True)) < 1e-4 * size
    other = cpo.noise_for(x0, torch.Generator().manual_seed(5))
    apart = cpo.five_passes(base, net, before, (x0, controls, text), other, drawn)
    assert float(apart.detach()) != pytest.approx(float(theirs.detach()), rel=1e-3)


def test_a_cached_reference_is_not_run_again_and_a_copy_is_counted():
    step = cpo.our_step(cached=True)
    step()
    runs = []
    step.model.reference.register_forward_hook(lambda *seen: runs.append(1))
    step()
    assert runs == []
    shared, copied = cpo.lora_step(), cpo.lora_step(copied=True)
    size = sum(p.numel() * p.element_size() for p in copied.model.reference.parameters())
    gap = cpo.held_and_peak_bytes(copied) - cpo.held_and_peak_bytes(shared)
    assert gap == pytest.approx(size, rel=0.2)
