"""The runner does every trial once, in waves, and says what went wrong without losing what is done."""

import errno
import io
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from squares import Config, begun, contents, store, study, wait_until
from squares import trial as sample_trial

from legato import errors
from legato.lab import environment, progress, runner
from legato.lab.runner import Study, run
from legato.lab.store import Store
from legato.lab.trial import Outcome, Record

SQUARES = [Config(n) for n in range(6)]


def started(diary: Path) -> Counter[int]:
    """How often each trial was begun."""
    return Counter(number for number, _ in begun(diary))


def squares(records: Sequence[Record]) -> list[int]:
    return sorted(record.metrics["square"] for record in records)


def test_every_trial_is_done_once_and_returned_by_key(tmp_path: Path) -> None:
    asked = study(SQUARES[::-1], tmp_path / "diary")
    records = run(asked, store(tmp_path / "run"))
    assert squares(records) == [0, 1, 4, 9, 16, 25]
    assert [record.key for record in records] == sorted(record.key for record in records)
    assert run(asked, store(tmp_path / "run")) == records
    assert set(started(tmp_path / "diary").values()) == {1}
    assert not list((tmp_path / "run" / "scratch").iterdir())


def test_a_study_is_asked_again_until_it_names_nothing_new(tmp_path: Path) -> None:
    seen = []

    def trials(records: Sequence[Record]) -> list[Config]:
        seen.append(sorted(record.config["number"] for record in records))
        best = max((record.metrics["square"] for record in records), default=0)
        return [Config(2), Config(3)] if not records else [Config(best)] if best < 80 else []

    records = run(Study(study([], tmp_path / "diary").trial, trials), store(tmp_path / "run"))
    assert seen == [[], [2, 3], [2, 3, 9]]
    assert squares(records) == [4, 9, 81]


def test_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    run(study(SQUARES, tmp_path / "alone"), store(tmp_path / "one"))
    run(study([Config(n, "meet") for n in range(6)], tmp_path / "diary"), store(tmp_path / "met"), workers=2)
    run(study(SQUARES, tmp_path / "diary"), store(tmp_path / "two"), workers=2)
    assert contents(store(tmp_path / "one")) == contents(store(tmp_path / "two"))
    pids = {pid for _, pid in begun(tmp_path / "diary")}
    assert len(pids) == 2, "two processes, kept warm for the second study"
    assert os.getpid() not in pids


def test_a_trial_has_one_thread_and_the_caller_gets_his_back(tmp_path: Path) -> None:
    def trial(config: Config, folder: Path) -> Outcome:
        return Outcome({"threads": torch.get_num_threads()})

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        here = run(Study(trial, lambda records: SQUARES[:1]), store(tmp_path / "here"))
        assert torch.get_num_threads() == 2
        there = run(Study(trial, lambda records: SQUARES[:2]), store(tmp_path / "there"), workers=2)
    finally:
        torch.set_num_threads(before)
    assert [record.metrics["threads"] for record in (*here, *there)] == [1, 1, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_trial_does_not_stop_the_others(tmp_path: Path, workers: int) -> None:
    configs = [Config(0), Config(1, "fail"), Config(2), Config(3, "leave"), Config(4)]
    made = store(tmp_path / "run")
    with pytest.raises(errors.TrialError) as caught:
        run(study(configs, tmp_path / "diary"), made, workers=workers)
    text = str(caught.value)
    assert text.startswith("2 of 5 trials failed, the first with RuntimeError: number 1")
    assert str(tmp_path / "run" / "failed") in text
    assert len(made.records()) == 3
    assert "SystemExit: a usage text" in (tmp_path / "run" / "failed" / f"{made.key(configs[3])}.txt").read_text()
    notes = (tmp_path / "run" / "failed" / f"{made.key(configs[1])}.txt").read_text()
    assert "is unlucky" in notes
    assert "in trial" in notes
    assert "Config(number=1, behaviour='fail'" in notes


def test_a_failed_trial_is_tried_again_and_its_note_goes(tmp_path: Path) -> None:
    luck = iter([False, True])

    def trial(config: Config, folder: Path) -> Outcome:
        (folder / "checkpoint").write_text("of a run that went wrong") if not any(folder.iterdir()) else pytest.fail(
            "stale scratch"
        )
        if not next(luck):
            raise RuntimeError("flaky")
        return Outcome({})

    flaky = Study(trial, lambda records: SQUARES[:1])
    with pytest.raises(errors.TrialError, match="1 of 1 trials failed, the first with RuntimeError: flaky"):
        run(flaky, store(tmp_path))
    assert len(list((tmp_path / "failed").iterdir())) == 1
    assert len(run(flaky, store(tmp_path))) == 1
    assert not list((tmp_path / "failed").iterdir())


def test_a_trial_that_failed_here_and_was_done_elsewhere_is_done(tmp_path: Path) -> None:
    bad, made, waves = Config(1, "fail"), store(tmp_path / "run"), iter(range(9))

    def trials(records: Sequence[Record]) -> list[Config]:
        wave = next(waves)
        if wave == 1:  # it has failed in this process by now
            made.put(bad, Outcome({"square": 1}), 0.0)
        return [bad, *(Config(0), Config(2))[:wave]]

    records = run(Study(study([], tmp_path / "diary").trial, trials), made)
    assert squares(records) == [0, 1, 4]


COMPLAINT = (errors.LegatoValueError, "number: expected a lucky number; got 1")
FULL = (errors.StoreError, "the disk is full.*Finished trials are kept")


def check_it_stops_at_once(folder: Path, workers: int, behaviour: str, kind: type[Exception], message: str) -> None:
    """The trials after the second would hold for ever."""
    configs = [Config(0), Config(1, behaviour), *(Config(n, "hold") for n in range(2, 40))]
    run(study(configs[:1], folder / "diary"), store(folder / "run"))
    with pytest.raises(kind, match=message):
        run(study(configs, folder / "diary"), store(folder / "run"), workers=workers)
    assert store(folder / "run").get(Config(0)) is not None, "finished trials are kept"
    assert sum(started(folder / "diary").values()) <= 1 + workers + 1


@pytest.mark.parametrize(("behaviour", "error"), [("complain", COMPLAINT), ("fill", FULL)])
def test_what_the_user_must_mend_stops_the_study_at_once(
    tmp_path: Path, behaviour: str, error: tuple[type[Exception], str]
) -> None:
    check_it_stops_at_once(tmp_path, 1, behaviour, *error)


@pytest.mark.usefixtures("light_workers")
def test_what_the_user_must_mend_stops_all_workers_at_once(tmp_path: Path) -> None:
    check_it_stops_at_once(tmp_path, 2, "complain", *COMPLAINT)


@pytest.mark.usefixtures("light_workers")
def test_a_worker_that_dies_is_reported_and_the_rest_goes_on_next_time(tmp_path: Path) -> None:
    deadly = study([Config(0), Config(1), Config(2, "die"), Config(3)], tmp_path / "diary")
    with pytest.raises(
        errors.TrialError, match=r"a worker process ended without an answer.* of 4 trials are done and kept.*Fix"
    ):
        run(deadly, store(tmp_path / "run"), workers=2)
    kept = len(store(tmp_path / "run").records())
    run(study(SQUARES, tmp_path / "again"), store(tmp_path / "run"))
    assert len(started(tmp_path / "again")) == 6 - kept


def test_a_disk_that_fills_up_at_the_end_of_a_trial_loses_nothing_that_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, made = study(SQUARES, tmp_path / "diary"), store(tmp_path / "run")
    run(study(SQUARES[:3], tmp_path / "diary"), made)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(errors.StoreError, match="disk is full"):
            run(asked, made)
    assert len(made.records()) == 3
    assert not list(made.folder.rglob("*.tmp"))
    assert len(run(asked, made)) == 6
    assert sum(started(tmp_path / "diary").values()) == 7


def test_the_scratch_of_an_interrupted_trial_is_there_when_it_starts_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trial(config: Config, folder: Path) -> Outcome:
        if (folder / "checkpoint").exists():
            return Outcome({"resumed": (folder / "checkpoint").read_text()})
        (folder / "checkpoint").write_text("half way")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Study(trial, lambda records: SQUARES[:1]), store(tmp_path))
    assert "Stopped: 0 of 1 trials are done and kept in" in capsys.readouterr().err
    (record,) = run(Study(trial, lambda records: SQUARES[:1]), store(tmp_path))
    assert record.metrics == {"resumed": "half way"}
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("result", [-1, None], ids=["done", "given up"])
def test_a_trial_that_somebody_else_is_doing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: int | None
) -> None:
    """The other's result stands; a trial that others gave up is taken over."""
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    mine, theirs = store(tmp_path / "run"), store(tmp_path / "run")
    mine.create()
    taken = threading.Event()

    def other_process() -> None:
        with theirs.lock(theirs.key(SQUARES[3])) as ours:
            assert ours
            taken.set()
            wait_until(lambda: len(mine.finished()) == 5)
            threading.Event().wait(0.05)  # the others are done, and this one is asked for again and again
            if result is not None:
                theirs.put(SQUARES[3], Outcome({"square": result}), 0.0)

    thread = threading.Thread(target=other_process)
    thread.start()
    taken.wait()
    records = run(study(SQUARES, tmp_path / "diary"), mine)
    thread.join()
    assert squares(records) == sorted([0, 1, 4, 9 if result is None else result, 16, 25])
    assert started(tmp_path / "diary")[3] == (result is None)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def lose_the_arrays(path: Path) -> None:
    path.with_suffix(".safetensors").unlink()


@pytest.mark.parametrize("damage", [cut, lose_the_arrays])
def test_a_trial_damaged_on_the_disk_is_done_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    asked, made = study(SQUARES, tmp_path / "diary"), store(tmp_path / "run")
    run(asked, made)
    before = contents(made)
    path = tmp_path / "run" / "trials" / f"{made.key(SQUARES[4])}.json"
    damage(path)
    with pytest.warns(errors.LegatoWarning, match=path.name):
        run(asked, made)
    assert contents(made) == before
    assert started(tmp_path / "diary") == Counter({0: 1, 1: 1, 2: 1, 3: 1, 4: 2, 5: 1})


def test_a_trial_is_read_once_at_the_start_and_once_by_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, made = study(SQUARES, tmp_path / "diary"), store(tmp_path / "run")
    run(asked, made)
    reads: list[str] = []
    load = Store._load
    monkeypatch.setattr(Store, "_load", lambda self, path: (reads.append(path.stem), load(self, path))[1])
    assert len(run(asked, made)) == 6
    assert set(Counter(reads).values()) == {2}
    reads.clear()
    more = Study(asked.trial, lambda records: [Config(n) for n in range(min(9, len(records) + 1))])
    assert len(run(more, made)) == 9
    old = {made.key(config) for config in SQUARES}
    assert Counter(key for key in reads if key in old) == dict.fromkeys(old, 2), "later waves read what is new"


def test_an_environment_is_noted_when_it_adds_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(tmp_path / "run")
    run(study(SQUARES[:2], tmp_path / "diary"), made)
    first = made.read_environment()
    other = {**first, "torch": "1.0"}
    monkeypatch.setattr(environment, "describe", lambda: other)
    run(study(SQUARES[:2], tmp_path / "diary"), made)
    assert made.read_environment() == first, "nothing was measured with the other one"
    with pytest.warns(errors.LegatoWarning, match=r"torch was .* and is 1\.0"):
        run(study(SQUARES[:3], tmp_path / "diary"), made)
    assert made.read_environment() == {**first, "also": [other]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"workers": 0}, "workers: expected a whole number >= 1; got 0"), ({"backend": "rye"}, "Did you mean 'ray'")],
)
def test_arguments_are_checked(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.LegatoValueError, match=message):
        run(study(SQUARES, tmp_path / "diary"), store(tmp_path / "run"), **arguments)


@pytest.mark.usefixtures("light_workers")
def test_a_trial_that_cannot_be_sent_to_workers_is_named(tmp_path: Path) -> None:
    lock = threading.Lock()
    stuck = Study(lambda config, folder: Outcome({"lock": str(lock)}), lambda records: SQUARES)
    with pytest.raises(
        errors.LegatoTypeError, match=r"trial: expected .* other processes .*; got TypeError: .*lock.*--workers 1"
    ):
        run(stuck, store(tmp_path), workers=2)


def test_progress_says_where_and_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(study(SQUARES[:2], tmp_path / "diary"), store(tmp_path / "run"))
    run(study(SQUARES, tmp_path / "diary"), store(tmp_path / "run"))
    folder = tmp_path / "run"
    assert capsys.readouterr().err.splitlines() == [
        f"2 trials; results in {folder}",
        f"2 of 2 trials are done; results in {folder}",
        f"6 trials, 2 of them there already; results in {folder}",
        f"6 of 6 trials are done; results in {folder}",
    ]
    run(study(SQUARES, tmp_path / "diary"), store(tmp_path / "run"), progress=False)
    assert capsys.readouterr().err == ""


def test_without_a_terminal_progress_is_a_line_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    run(study([Config(n, seconds=0.1) for n in range(3)], tmp_path / "diary"), store(tmp_path / "run"))
    lines = capsys.readouterr().err.splitlines()
    assert "0 of 3 trials" in lines
    assert any(
        line.startswith("2 of 3 trials, ") and line.endswith(" s left") and " a minute, " in line for line in lines
    )


def test_on_a_terminal_progress_is_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.05)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    run(study([Config(n, seconds=0.1) for n in range(3)], tmp_path / "diary"), store(tmp_path / "run"))
    assert "2/3" in terminal.getvalue()
    assert " a minute, " in terminal.getvalue()


@pytest.mark.parametrize(
    ("done", "left", "seconds", "text"),
    [
        (0, 10, 5.0, ""),
        (10, 10, 60.0, "10 a minute, 60 s left"),
        (10, 100, 60.0, "10 a minute, 10 min left"),
        (1, 100, 180.0, "0.333 a minute, 5.0 h left"),
    ],
)
def test_pace(done: int, left: int, seconds: float, text: str) -> None:
    assert progress.pace(done, left, seconds) == text


def test_a_folder_that_vanishes_is_reported_as_such(tmp_path: Path) -> None:
    def trial(config: Config, folder: Path) -> Outcome:
        shutil.rmtree(tmp_path / "run")
        return sample_trial(config, folder, tmp_path / "diary")

    with pytest.raises(errors.StoreError, match=r"run/trials/.* cannot be written"):
        run(Study(trial, lambda records: SQUARES), store(tmp_path / "run"))
