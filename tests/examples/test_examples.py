"""Every example runs, and the network that it trains has learned something."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDED = {"lightning_module.py": "lightning", "hugging_face_trainer.py": "transformers"}
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_it_runs_and_learns(name, tmp_path):
    if name in NEEDED and find_spec(NEEDED[name]) is None:
        pytest.skip(f"needs {NEEDED[name]}: pip install {NEEDED[name]}")
    start = TORCHRUN if "torchrun" in name else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *start, str(EXAMPLES / name)], capture_output=True, text=True, timeout=110, cwd=tmp_path, env=environment
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"training accuracy (\d\.\d+)", done.stdout)
    assert len(found) == 1
    assert float(found[0]) > 0.95
