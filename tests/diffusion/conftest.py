"""The parts in `known` are imported by name, also by programs of their own, so their folder must be on the path."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process wrote is there for the next one also without it; only a power cut would tell."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
