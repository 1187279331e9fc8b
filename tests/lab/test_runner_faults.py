"""Killing a study at any moment loses at most the trials in flight, and several processes share one folder."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import pytest
from squares import Config, contents, run, store, study

TRIALS, SECONDS = 10, 0.1
PATIENCE = 30.0
Launch: TypeAlias = Callable[[int], "subprocess.Popen[str]"]
"""workers -> the sample study as a program of its own, in a process group of its own."""


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    group: list[subprocess.Popen[str]] = []

    def start(workers: int) -> subprocess.Popen[str]:
        arguments = [str(tmp_path / "run"), str(TRIALS), str(SECONDS), str(workers)]
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import squares; squares.main()"
        command = [sys.executable, "-c", code, str(Path(__file__).parent), *arguments]
        group.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True))
        return group[-1]

    yield start
    for process in group:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(finished: int, folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while len(store(folder).finished()) < finished:
        assert time.monotonic() < until, "the study does not get on"
        time.sleep(0.01)


def begun(tmp_path: Path) -> list[tuple[int, int]]:
    """(number, process) of every trial that was begun."""
    return [tuple(map(int, line.split())) for line in (tmp_path / "diary").read_text().splitlines()]  # type: ignore[misc]


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pids: set[int]) -> None:
    until = time.monotonic() + PATIENCE
    while not all(map(gone, pids)):
        assert time.monotonic() < until, "workers outlive their parent"
        time.sleep(0.05)


def finish_and_compare(tmp_path: Path) -> None:
    """The same study again, to its end: the store must be as if nothing had happened."""
    configs = [Config(n, seconds=SECONDS) for n in range(TRIALS)]
    run(study(configs, tmp_path / "diary"), store(tmp_path / "run"))
    quick = store(tmp_path / "undisturbed")
    quick.create()
    for config in configs:  # the same trials without their sleep
        quick.put(config, study([], tmp_path / "other").trial(Config(config.number), tmp_path), 0.0)
    assert contents(store(tmp_path / "run")) == contents(quick)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not list((tmp_path / "run" / "scratch").iterdir())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes by /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_of_the_parent_loses_at_most_the_trials_in_flight(tmp_path: Path, launch: Launch, workers: int) -> None:
    process = launch(workers)
    wait_for(3, tmp_path / "run")
    process.kill()
    process.wait()
    wait_until_gone({pid for _, pid in begun(tmp_path)})
    kept, before = len(store(tmp_path / "run").finished()), len(begun(tmp_path))
    assert 3 <= kept < TRIALS
    assert before - kept <= workers
    finish_and_compare(tmp_path)
    assert len(begun(tmp_path)) - before == TRIALS - kept


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes by /proc")
def test_ctrl_c_stops_the_workers_and_says_how_to_go_on(tmp_path: Path, launch: Launch) -> None:
    process = launch(2)
    wait_for(2, tmp_path / "run")
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to everybody
    _, text = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGINT
    assert re.search(
        rf"^Stopped: \d+ of {TRIALS} trials are done and kept in .*/run; the same command goes on from there\.$",
        text,
        re.M,
    )
    assert text.count("Traceback") == 1, "the one of KeyboardInterrupt, none of the workers"
    wait_until_gone({pid for _, pid in begun(tmp_path)})
    assert 2 <= len(store(tmp_path / "run").finished()) < TRIALS
    finish_and_compare(tmp_path)


def test_two_processes_share_one_folder(tmp_path: Path, launch: Launch) -> None:
    both = [launch(1), launch(1)]
    for process in both:
        _, text = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, text
        assert f"{TRIALS} of {TRIALS} trials are done" in text
    assert Counter(number for number, _ in begun(tmp_path)) == dict.fromkeys(range(TRIALS), 1)
    assert len({pid for _, pid in begun(tmp_path)}) == 2
    finish_and_compare(tmp_path)
