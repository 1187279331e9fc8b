"""A sweep of decoders that is killed, and then shared by two processes: the same table as one process makes undisturbed."""

import json
import subprocess
import sys
import time
from dataclasses import replace

from legato.studies.decoder_sweep import run
from legato.studies.sweep_config import SweepConfig

SWEEP = SweepConfig(
    sizes=("8x1", "16x1"), learning_rates=(0.01, 0.1, 0.3), arms=("none",), seeds=2, steps=60, length=8, batch_size=2, head_width=8, workers=1
)  # fmt: skip
RUNS = 12
WORDS = "stability sweep --sizes 8x1 16x1 --learning-rates 0.01 0.1 0.3 --arms none --seeds 2 --steps 60 --length 8 --batch-size 2 --head-width 8 --workers 1"


def launch(folder):
    command = [sys.executable, "-m", "legato", *WORDS.split(), "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def table(folder):
    """What every run measured, by the name of its config; how long it took is no part of it."""
    read = {path.name: json.loads(path.read_text()) for path in (folder / "trials").glob("*.json")}
    return {name: (body["config"], body["metrics"]) for name, body in read.items()}


def test_a_sweep_that_is_killed_and_finished_by_two_processes_is_the_table_of_one(tmp_path):
    process = launch(tmp_path / "run")
    while not list((tmp_path / "run" / "trials").glob("*.json")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < len(table(tmp_path / "run")) < RUNS
    both = [launch(tmp_path / "run") for _ in range(2)]
    run(replace(SWEEP, out=tmp_path / "alone"), progress=False)
    for process in both:
        said, _ = process.communicate(timeout=100)
        assert process.returncode == 0, said
    assert len(table(tmp_path / "run")) == RUNS
    assert table(tmp_path / "run") == table(tmp_path / "alone")
    assert not list((tmp_path / "run").rglob("*.tmp"))
