"""Killing a study at any moment loses at most the trials in flight, and several processes share one folder."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import pytest
from squares import PATIENCE, Config, begun, contents, run, store, study, wait_until

QUICK, TRIALS = 3, 8
HELD = ["square"] * QUICK + ["hold"] * (TRIALS - QUICK)
"""Some trials end at once, and those after them not before the test says so."""
Launch: TypeAlias = Callable[[int, list[str]], "subprocess.Popen[str]"]
"""(workers, behaviours) -> the sample study as a program of its own, in a process group of its own."""
looks_at_processes = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes by /proc")


@pytest.fixture
def launch(tmp_path: Path, light_environment: dict[str, str]) -> Iterator[Launch]:
    group: list[subprocess.Popen[str]] = []

    def start(workers: int, behaviours: list[str]) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            "import squares; squares.main()",
            str(tmp_path / "run"),
            str(workers),
            *behaviours,
        ]
        group.append(
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=light_environment)
        )
        return group[-1]

    yield start
    for process in group:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def in_flight(tmp_path: Path, workers: int) -> None:
    """Wait until all workers hold a trial, and the quick ones are done."""
    wait_until(lambda: len(begun(tmp_path / "diary")) == QUICK + workers)
    wait_until(lambda: len(store(tmp_path / "run").finished()) == QUICK)


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def finish_and_compare(tmp_path: Path, behaviours: list[str]) -> None:
    """The same study again, to its end: the store must be as if nothing had happened."""
    (tmp_path / "go").touch()
    configs = [Config(number, behaviour) for number, behaviour in enumerate(behaviours)]
    run(study(configs, tmp_path / "diary"), store(tmp_path / "run"))
    quick = store(tmp_path / "undisturbed")
    quick.create()
    for config in configs:
        quick.put(config, study([], tmp_path / "other").trial(Config(config.number), tmp_path), 0.0)
    assert contents(store(tmp_path / "run")) == contents(quick)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not list((tmp_path / "run" / "scratch").iterdir())


@looks_at_processes
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_of_the_parent_loses_the_trials_in_flight_only(tmp_path: Path, launch: Launch, workers: int) -> None:
    process = launch(workers, HELD)
    in_flight(tmp_path, workers)
    process.kill()
    process.wait()
    wait_until(lambda: all(gone(pid) for _, pid in begun(tmp_path / "diary")))
    kept = store(tmp_path / "run").records()
    assert sorted(record.config["number"] for record in kept) == [0, 1, 2]
    finish_and_compare(tmp_path, HELD)
    assert store(tmp_path / "run").records(known=kept) == store(tmp_path / "run").records(), (
        "what was kept is as it was"
    )
    assert len(begun(tmp_path / "diary")) == TRIALS + workers


@looks_at_processes
def test_ctrl_c_stops_the_workers_and_says_how_to_go_on(tmp_path: Path, launch: Launch) -> None:
    process = launch(2, HELD)
    in_flight(tmp_path, 2)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to everybody
    _, text = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGINT
    assert re.search(
        rf"^Stopped: 3 of {TRIALS} trials are done and kept in .*/run; the same command goes on from there\.$",
        text,
        re.M,
    )
    assert text.count("Traceback") == 1, "the one of KeyboardInterrupt, none of the workers"
    wait_until(lambda: all(gone(pid) for _, pid in begun(tmp_path / "diary")))
    finish_and_compare(tmp_path, HELD)


def test_two_processes_share_one_folder(tmp_path: Path, launch: Launch) -> None:
    behaviours = ["meet"] * TRIALS
    both = [launch(1, behaviours), launch(1, behaviours)]
    for process in both:
        _, text = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, text
        assert f"{TRIALS} of {TRIALS} trials are done" in text
    assert Counter(number for number, _ in begun(tmp_path / "diary")) == dict.fromkeys(range(TRIALS), 1)
    assert len({pid for _, pid in begun(tmp_path / "diary")}) == 2
    finish_and_compare(tmp_path, behaviours)
