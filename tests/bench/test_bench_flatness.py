"""The cases of the room flatness: every step trains, and a term is active in every timed one."""

import pytest

from legato.bench import flatness


@pytest.mark.parametrize("case", flatness.cases(), ids=lambda case: f"{case.part} against {case.peer}")
def test_every_step_runs(case, monkeypatch):
    monkeypatch.setattr(flatness, "NETS", {"resnet": (4, 1, 8, 8), "mlp": (4, 16)})
    for make in (case.ours, case.other):
        step = make()
        step()
        step()


def test_the_term_is_active_in_the_timed_steps(monkeypatch):
    monkeypatch.setattr(flatness, "NETS", {"mlp": (4, 16)})
    kept = []
    step = flatness.term_step(lambda training: kept.append(flatness._saf(training)) or kept[0], "mlp")
    for _ in range(2 * flatness.BLOCKS):
        step()
    assert kept[0].stats["valid_share"] == 1
