"""The cases of the room flatness: every step trains, and a term is active in every timed one."""

from importlib.util import find_spec

import pytest

from legato.bench import flatness, flatness_spectrum


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


def test_products_until_the_largest_eigenvalue_are_counted(monkeypatch):
    """Every solver ends within the error of the value that a far tighter run gives, and a peer that is missing says so."""
    monkeypatch.setattr(flatness_spectrum, "SEEDS", (0,))
    monkeypatch.setattr(flatness_spectrum, "TOLERANCES", (1e-2, 1e-4))
    monkeypatch.setattr(flatness_spectrum, "BASES", (8,))
    cases = [case for case in flatness_spectrum.cases() if case.net == "mlp"]
    rows = {case.peer: case.measure() for case in cases}
    ours, power = rows["scipy eigsh on our products"], rows["power iteration"]
    assert 2 < ours.products <= ours.asked < power.peer_products
    assert ours.peer_products > 2
    assert power.met and power.products <= power.bar * power.peer_products
    for case in cases:
        row = rows[case.peer]
        assert row.installed == (not case.needs or find_spec(case.needs) is not None)
        assert row.installed or (row.peer_products is None and row.met is None)
