"""The same study on a local Ray cluster, which opens no socket beyond this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from squares import Config, contents, run, store, study

pytest.importorskip("ray", reason="ray is not installed: pip install 'legato[scale]'")

PROGRAM = """
import sys
from pathlib import Path
from squares import Config, run, store, study
from legato import errors
folder = Path(sys.argv[1])
run(study([Config(n, seconds=0.1) for n in range(6)], folder / "diary"), store(folder / "ray"), workers=2, backend="ray")
try:
    run(study([Config(0), Config(1, "complain")], folder / "other"), store(folder / "wrong"), workers=2, backend="ray")
except errors.LegatoValueError as problem:
    print("complaint:", problem)
"""


@pytest.mark.slow
def test_ray_finds_what_one_process_finds(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    paths = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": paths}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "complaint: number: expected a lucky number; got 1.\n"
    assert "6 of 6 trials are done" in done.stderr
    run(study([Config(n, seconds=0.1) for n in range(6)], tmp_path / "here"), store(tmp_path / "one"))
    assert contents(store(tmp_path / "ray")) == contents(store(tmp_path / "one"))
    assert len({line.split()[1] for line in (tmp_path / "diary").read_text().splitlines()}) == 2
