"""What may happen to a run: killed, shared, damaged, a full disk, a failing trial. Nothing finished is ever lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from legato.errors import LegatoWarning, StoreError, TrialError
from legato.lab import files
from legato.lab.runner import Study, run
from legato.lab.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from sample_study import Config, trial

CONFIGS = tuple(Config(n) for n in range(6))


def study(configs=CONFIGS):
    return Study(trial, lambda records: configs)


def finish(folder, configs=CONFIGS, **options):
    return run(study(configs), Store(folder, "sample", 1), progress=False, **options)


def starts(folder):
    return [int(line.split()[0]) for line in (folder / "log.txt").read_text().splitlines()]


def test_each_trial_is_done_once_and_kept(tmp_path):
    first = finish(tmp_path)
    assert sorted(r.metrics["square"] for r in first) == [0, 1, 4, 9, 16, 25]
    assert finish(tmp_path) == first
    assert sorted(starts(tmp_path)) == list(range(6))
    store = Store(tmp_path, "sample", 1)
    assert store.arrays(store.key(Config(3)))["numbers"].tolist() == [0, 1, 2]
    assert not list((tmp_path / "scratch").iterdir())


def test_later_trials_may_stand_on_earlier_ones(tmp_path):
    waves = Study(
        trial,
        lambda records: (
            [Config(1)] if not records else [Config(1), Config(min(r.metrics["square"] for r in records) + 6)]
        ),
    )
    assert sorted(r.config["number"] for r in run(waves, Store(tmp_path, "s", 1), progress=False)) == [1, 7]


def test_workers_give_the_same_records(tmp_path):
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_faults as t; from pathlib import Path; t.finish(Path(sys.argv[2]), workers=2)"
    subprocess.run([sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path / "two")], check=True)
    two, one = Store(tmp_path / "two", "sample", 1).records(), finish(tmp_path / "one")
    assert [(r.key, r.metrics) for r in two] == [(r.key, r.metrics) for r in one]


PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_faults as t
t.finish(Path(sys.argv[2]), [t.Config(n, 0.15) for n in range(8)])
"""


def start(folder):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(folder)], env=os.environ)


def test_two_processes_share_the_work(tmp_path):
    processes = [start(tmp_path), start(tmp_path)]
    assert [p.wait(60) for p in processes] == [0, 0]
    assert sorted(starts(tmp_path)) == list(range(8))


def test_kill_nine_loses_the_trial_in_flight_only(tmp_path):
    process = start(tmp_path)
    while not (tmp_path / "trials").exists() or len(list((tmp_path / "trials").glob("*.json"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {r.key: r for r in Store(tmp_path, "sample", 1).records()}
    assert 3 <= len(kept) < 8
    assert start(tmp_path).wait(60) == 0
    after = {r.key: r for r in Store(tmp_path, "sample", 1).records()}
    assert len(after) == 8
    assert all(after[key] == record for key, record in kept.items())
    assert len(starts(tmp_path)) <= 9


@pytest.mark.parametrize("damage", ["truncated", "edited", "arrays missing", "renamed"])
def test_a_damaged_file_is_named_and_its_trial_done_again(tmp_path, damage):
    before = finish(tmp_path)
    store = Store(tmp_path, "sample", 1)
    path = tmp_path / "trials" / f"{store.key(Config(4))}.json"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "edited":
        path.write_text(path.read_text().replace('"square": 16', '"square": 17'))
    elif damage == "renamed":
        path.write_bytes((tmp_path / "trials" / f"{store.key(Config(5))}.json").read_bytes())
    else:
        path.with_suffix(".safetensors").unlink()
    with pytest.warns(LegatoWarning, match=path.name):
        after = finish(tmp_path)
    assert [(r.key, r.metrics) for r in after] == [(r.key, r.metrics) for r in before]
    assert starts(tmp_path).count(4) == 2
    assert len(starts(tmp_path)) == 7


def test_a_full_disk_is_said_and_loses_nothing(tmp_path, monkeypatch):
    finish(tmp_path, CONFIGS[:3])

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(StoreError, match="disk is full"):
            finish(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(finish(tmp_path)) == 6


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another folder with --out"):
        finish(tmp_path / "file" / "run")


def test_a_failing_trial_ends_nothing_but_itself(tmp_path):
    configs = [Config(1, fails=True), *CONFIGS]
    with pytest.raises(TrialError, match=r"1 of 7 trials failed.*the model of the user broke"):
        finish(tmp_path, configs)
    assert len(Store(tmp_path, "sample", 1).records()) == 6
    (tmp_path / "mended").touch()
    assert len(finish(tmp_path, configs)) == 7


def test_trials_of_another_version_are_refused(tmp_path, monkeypatch):
    finish(tmp_path)
    monkeypatch.setattr("legato.lab.store.__version__", "9.9.9")
    with pytest.raises(StoreError, match=r"holds trials of legato .*another folder"):
        finish(tmp_path)


def test_the_folder_names_no_host_user_or_path(tmp_path):
    finish(tmp_path)
    text = "".join(p.read_text() for p in tmp_path.rglob("*.json"))
    assert str(tmp_path) not in text
    assert os.uname().nodename not in json.loads((tmp_path / "environment.json").read_text()).values()
