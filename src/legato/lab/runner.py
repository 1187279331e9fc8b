"""Hands the trials of a study to joblib, in waves, until the study names no new one.

Processes share a folder: whoever holds a trial's lock does it. Any of them may be killed; the same command finishes the rest.
"""

import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from pickle import PicklingError
from typing import Any, Literal, TypeAlias

from legato import errors
from legato.lab.files import DISK_FULL, refused, write
from legato.lab.progress import Monitor
from legato.lab.store import Store
from legato.lab.trial import Outcome, Record
from legato.lab.workers import Pool, one_thread, open_pool

POLL_SECONDS = 0.2
"""How often to look again for trials that only other processes are doing."""

Trial: TypeAlias = Callable[[Any, Path], Outcome]


@dataclass(frozen=True)
class Study:
    """A measurement.

    `trial(config, folder)` does one trial. The folder is its scratch: it is still there when the same trial starts again after a
    kill, and gone when the trial is over. `trials(records)` names all configs that the records so far allow; it is asked again
    until everything it names is done. With more than one worker, `trial` and the configs must be picklable.
    """

    trial: Trial
    trials: Callable[[Sequence[Record]], Sequence[Any]]


@dataclass(frozen=True)
class Attempt:
    """What became of one trial; `problem` is the last line of the traceback of one that failed."""

    state: Literal["done", "busy", "failed"]
    problem: str = ""


def run(study: Study, store: Store, *, workers: int = 1, backend: str = "loky", progress: bool = True) -> list[Record]:
    """Finish a study and return the records of all trials that it asked for, by key.

    Args:
        workers: processes side by side; 1 stays in this process. A trial has one thread, since their number changes results.
        backend: "loky" for this machine; "ray" for the cluster that RAY_ADDRESS names, or a local one. All of its machines must
            see the folder of the store under the same path.
        progress: say on stderr how many trials are done, at which rate, and how long it is going to take.
    Raises:
        LegatoError: at once, when a trial found fault with the user's input, or when the disk is full (StoreError).
        TrialError: at the end, when trials failed for another reason; at once, when a worker process died.
        KeyboardInterrupt: after the workers were stopped.
        In all cases finished trials are kept, and the same call does the rest.
    """
    if workers < 1:
        raise errors.argument("workers", expected="a whole number >= 1", got=workers)
    shared = Store(store.folder.absolute(), store.study, store.schema)  # a worker may live in another folder
    shared.create()
    with Monitor(store, shown=progress) as monitor:
        try:
            with open_pool(workers, backend) as pool:
                records, failed = _waves(study, shared, monitor, pool)
        except KeyboardInterrupt:
            monitor.say(
                f"Stopped: {monitor.count()} are done and kept in {store.folder}; the same command goes on from there."
            )
            raise
        except BrokenProcessPool as problem:
            raise errors.TrialError(
                f"a worker process ended without an answer, as when memory runs out. {monitor.count()} are done and kept in "
                f"{store.folder}. Fix: give the same command again; if it happens again, with fewer --workers."
            ) from problem
        except PicklingError as problem:
            expected, got = (
                "a function and configs that other processes can be sent",
                _last_line(problem.__cause__ or problem),
            )
            raise errors.argument_type("trial", expected=expected, got=got, fix="--workers 1") from problem
        if failed:
            raise errors.TrialError(
                f"{len(failed)} of {len(failed) + len(records)} trials failed, the first with {failed[0].problem}. Tracebacks are in "
                f"{store.folder / 'failed'}; finished trials are kept. Fix: mend the cause and give the same command again."
            )
    return records


def attempt(trial: Trial, store: Store, config: Any) -> Attempt:
    """Do one trial, unless it is done or somebody else is doing it. Raises what must stop the study."""
    key = store.key(config)
    with store.lock(key) as ours:
        if not ours:
            return Attempt("busy")
        if store.get(config) is not None:
            return Attempt("done")
        scratch, failure = store.folder / "scratch" / key, store.folder / "failed" / f"{key}.txt"
        try:
            _measure(trial, store, config, scratch)
        except (Exception, SystemExit) as problem:  # a trial that leaves takes nobody with it
            shutil.rmtree(scratch, ignore_errors=True)
            if isinstance(problem, errors.LegatoError):
                raise
            if isinstance(problem, OSError) and problem.errno in DISK_FULL:
                raise refused(scratch, problem) from problem
            failure.parent.mkdir(exist_ok=True)
            write(failure, f"{config}\n\n{traceback.format_exc()}".encode())
            return Attempt("failed", traceback.format_exception_only(problem)[-1].strip())
        shutil.rmtree(scratch, ignore_errors=True)
        failure.unlink(missing_ok=True)
        return Attempt("done")


def _measure(trial: Trial, store: Store, config: Any, scratch: Path) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with one_thread():
        outcome = trial(config, scratch)
    store.put(config, outcome, time.perf_counter() - start)


def _waves(study: Study, store: Store, monitor: Monitor, pool: Pool) -> tuple[list[Record], list[Attempt]]:
    """Ask the study and do what it names, until all of it is there or has failed."""
    asked: dict[str, Any] = {}
    failed: dict[str, Attempt] = {}
    records: list[Record] = []
    noted = False
    while True:
        records = store.records(known=records)
        there = {record.key for record in records}
        asked |= {store.key(config): config for config in study.trials(records)}
        monitor.expect(asked.keys())
        missing = [key for key in asked if key not in there and key not in failed]
        if not missing:
            still_failed = [failed[key] for key in failed if key not in there]  # another process may have had more luck
            return [record for record in records if record.key in asked], still_failed
        if not noted:
            store.note_environment()
            noted = True
        attempts = pool(attempt, [(study.trial, store, asked[key]) for key in missing])
        failed |= {key: result for key, result in zip(missing, attempts, strict=True) if result.state == "failed"}
        if all(result.state == "busy" for result in attempts):
            time.sleep(POLL_SECONDS)


def _last_line(problem: BaseException) -> str:
    """What a long message of loky ends with: the error itself, below its traceback."""
    return [line for line in str(problem).splitlines() if line.strip(' "')][-1]
