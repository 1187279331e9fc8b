"""The runner does every trial once, in waves, and says what went wrong without losing what is done."""

import io
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from squares import Config, contents, store, study
from squares import trial as sample_trial

from legato import errors
from legato.lab import progress
from legato.lab.runner import Study, run
from legato.lab.trial import Outcome, Record

SQUARES = [Config(n) for n in range(6)]


def started(diary: Path) -> Counter[int]:
    """How often each trial was begun."""
    return Counter(int(line.split()[0]) for line in diary.read_text().splitlines())


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
    run(study([Config(n, seconds=0.05) for n in range(6)], tmp_path / "diary"), store(tmp_path / "slow"), workers=2)
    run(study(SQUARES, tmp_path / "diary"), store(tmp_path / "two"), workers=2)
    assert contents(store(tmp_path / "one")) == contents(store(tmp_path / "two"))
    pids = {line.split()[1] for line in (tmp_path / "diary").read_text().splitlines()}
    assert len(pids) == 2, "two processes, kept warm for the second study"


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
    configs = [Config(0), Config(1, "fail"), Config(2), Config(3, "fail"), Config(4)]
    made = store(tmp_path / "run")
    with pytest.raises(errors.TrialError) as caught:
        run(study(configs, tmp_path / "diary"), made, workers=workers)
    text = str(caught.value)
    assert text.startswith("2 of 5 trials failed, the first with RuntimeError: number 1")
    assert str(tmp_path / "run" / "failed") in text
    assert len(made.records()) == 3
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


@pytest.mark.parametrize(
    ("workers", "behaviour", "kind", "message"),
    [
        (1, "complain", errors.LegatoValueError, "number: expected a lucky number; got 1"),
        (2, "complain", errors.LegatoValueError, "number: expected a lucky number; got 1"),
        (1, "fill", errors.StoreError, "the disk is full.*Finished trials are kept"),
    ],
)
def test_what_the_user_must_mend_stops_the_study_at_once(
    tmp_path: Path, workers: int, behaviour: str, kind: type[Exception], message: str
) -> None:
    configs = [Config(0), Config(1, behaviour), *(Config(n, seconds=0.1) for n in range(2, 40))]
    run(study(configs[:1], tmp_path / "diary"), store(tmp_path / "run"))
    start = time.monotonic()
    with pytest.raises(kind, match=message):
        run(study(configs, tmp_path / "diary"), store(tmp_path / "run"), workers=workers)
    assert time.monotonic() - start < 3.5, "38 trials of 0.1 s were not waited for"
    assert store(tmp_path / "run").get(Config(0)) is not None, "finished trials are kept"
    assert len(started(tmp_path / "diary")) < 20


def test_a_worker_that_dies_is_reported_and_the_rest_goes_on_next_time(tmp_path: Path) -> None:
    deadly = study([Config(0), Config(1), Config(2, "die"), Config(3)], tmp_path / "diary")
    with pytest.raises(
        errors.TrialError, match=r"a worker process ended without an answer.* of 4 trials are done and kept.*Fix"
    ):
        run(deadly, store(tmp_path / "run"), workers=2)
    kept = len(store(tmp_path / "run").records())
    run(study(SQUARES, tmp_path / "again"), store(tmp_path / "run"))
    assert len(started(tmp_path / "again")) == 6 - kept


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


def test_a_trial_that_somebody_else_is_doing_is_waited_for(tmp_path: Path) -> None:
    mine, theirs = store(tmp_path / "run"), store(tmp_path / "run")
    mine.create()
    taken = threading.Event()

    def other_process() -> None:
        with theirs.lock(theirs.key(SQUARES[3])):
            taken.set()
            time.sleep(0.5)
            theirs.put(SQUARES[3], Outcome({"square": -1}), 0.0)

    thread = threading.Thread(target=other_process)
    thread.start()
    taken.wait()
    records = run(study(SQUARES, tmp_path / "diary"), mine)
    thread.join()
    assert squares(records) == [-1, 0, 1, 4, 16, 25], "the other's result stands"
    assert 3 not in started(tmp_path / "diary")


def test_a_trial_that_others_gave_up_is_taken_over(tmp_path: Path) -> None:
    mine, theirs = store(tmp_path / "run"), store(tmp_path / "run")
    mine.create()
    held = theirs.lock(theirs.key(SQUARES[3]))
    assert held.__enter__()
    threading.Timer(0.4, held.__exit__, (None, None, None)).start()
    assert len(run(study(SQUARES, tmp_path / "diary"), mine)) == 6
    assert started(tmp_path / "diary")[3] == 1


def test_a_trial_damaged_on_the_disk_is_done_again(tmp_path: Path) -> None:
    asked, made = study(SQUARES, tmp_path / "diary"), store(tmp_path / "run")
    run(asked, made)
    before = contents(made)
    path = tmp_path / "run" / "trials" / f"{made.key(SQUARES[4])}.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(errors.LegatoWarning, match=path.name):
        run(asked, made)
    assert contents(made) == before
    assert started(tmp_path / "diary") == Counter({0: 1, 1: 1, 2: 1, 3: 1, 4: 2, 5: 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"workers": 0}, "workers: expected a whole number >= 1; got 0"), ({"backend": "rye"}, "Did you mean 'ray'")],
)
def test_arguments_are_checked(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.LegatoValueError, match=message):
        run(study(SQUARES, tmp_path / "diary"), store(tmp_path / "run"), **arguments)


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
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
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
