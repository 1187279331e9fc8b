"""The same study on a local Ray cluster, which opens no socket beyond this machine."""

import subprocess
import sys
from pathlib import Path

import pytest
from squares import Config, begun, contents, run, store, study

pytest.importorskip("ray", reason="ray is not installed: pip install 'legato[scale]'")

PROGRAM = """
import sys
from pathlib import Path
from squares import Config, run, store, study
from legato import errors
from legato.lab.workers import open_pool
folder = Path(sys.argv[1])
with open_pool(2, "ray"):  # starts the cluster, which both runs then find
    met = [Config(n, "meet") for n in range(6)]
    run(study(met, folder / "diary"), store(folder / "ray"), workers=2, backend="ray")
    wrong = study([Config(0), Config(1, "complain")], folder / "other")
    try:
        run(wrong, store(folder / "wrong"), workers=2, backend="ray")
    except errors.LegatoValueError as problem:
        print("complaint:", problem)
import ray
assert not ray.is_initialized()
"""


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(300)
def test_ray_finds_what_one_process_finds(tmp_path: Path, light_environment: dict[str, str]) -> None:
    environment = {key: value for key, value in light_environment.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    environment |= {"HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    assert "complaint: number: expected a lucky number; got 1." in done.stdout.splitlines()
    assert "6 of 6 trials are done" in done.stderr
    run(study([Config(n, "meet") for n in range(6)], tmp_path / "diary"), store(tmp_path / "one"))
    assert contents(store(tmp_path / "ray")) == contents(store(tmp_path / "one"))
    assert len({pid for _, pid in begun(tmp_path / "diary")}) == 3, "two workers, and this process"
