"""Worker processes import the trial functions of `squares` by name, so its folder must be on the path before any worker starts."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


@pytest.fixture
def light_environment() -> dict[str, str]:
    """For programs that import no torch: most of their time would go there."""
    paths = [str(HERE / "light"), str(HERE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture
def light_workers(light_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh workers without torch, for tests that end them anyhow; afterwards there are none."""
    from joblib.externals.loky import get_reusable_executor

    monkeypatch.setenv("PYTHONPATH", light_environment["PYTHONPATH"])
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
