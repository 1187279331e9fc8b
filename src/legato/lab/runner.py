"""Hands the trials of a study to joblib, in waves, until the study names no new one.

Processes share a folder: whoever holds a trial's lock does it. Any of them may be killed; the same command finishes the rest.
"""

import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legato import errors
from legato.lab.files import write
from legato.lab.store import Store
from legato.lab.trial import Outcome, Record

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Study:
    """A measurement: `trial` does one config in a scratch folder; `trials` names all configs that the records so far allow."""

    trial: Callable[[Any, Path], Outcome]
    trials: Callable[[Sequence[Record]], Sequence[Any]]


def run(study: Study, store: Store, *, workers: int = 1, backend: str = "loky", progress: bool = True) -> list[Record]:
    """Finish a study and return its records.

    Args:
        workers: processes side by side; each computes with one thread, since the number of threads changes results.
        backend: "loky" for this machine, "ray" for a Ray cluster.
        progress: show trials done, rate and time left on the terminal.
    Raises:
        LegatoError: what a trial found wrong with the user's input, a full disk, or TrialError when trials failed for another
            reason. Whatever was finished is kept.
    """
    store.create()
    while True:
        configs = study.trials(store.records())
        todo = [config for config in configs if not store.has(config)]
        if not todo:
            return store.records()
        with _progress(store, configs) if progress else nullcontext():
            done = _wave(study, store, todo, workers, backend)
        _raise_failures(store, todo)
        if not any(done):
            time.sleep(POLL_SECONDS)  # another process holds all that is left


def _wave(study: Study, store: Store, configs: Sequence[Any], workers: int, backend: str) -> list[bool]:
    """Do what nobody else is doing; True for each trial that was done here."""
    _clear_failures(store, configs)
    if workers == 1 and backend == "loky":
        return [do(study.trial, store, config) for config in configs]
    from joblib import Parallel, delayed, parallel_config

    if backend == "ray":
        errors.require("ray", extra="scale")
        from ray.util.joblib import register_ray

        register_ray()
    threads = {"inner_max_num_threads": 1} if backend == "loky" else {}
    with parallel_config(backend=backend, **threads):
        return list(Parallel(n_jobs=workers)(delayed(do)(study.trial, store, config) for config in configs))


def do(trial: Callable[[Any, Path], Outcome], store: Store, config: Any) -> bool:
    """Do one trial if it is not done and nobody else is doing it. A failure of the trial is filed, a mistake of the user is raised."""
    key = store.key(config)
    with store.lock(key) as ours:
        if not ours or store.has(config):
            return False
        scratch = store.folder / "scratch" / key
        scratch.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        try:
            with _one_thread():
                outcome = trial(config, scratch)
        except errors.LegatoError:
            raise
        except Exception:  # noqa: BLE001 - whatever a user's model raises must not end the other trials
            write(_failure(store, key), traceback.format_exc().encode())
            return False
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        store.put(config, outcome, time.perf_counter() - start)
        return True


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread while a trial runs, in a worker as in this process: another number gives other roundings."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _failure(store: Store, key: str) -> Path:
    folder = store.folder / "failed"
    folder.mkdir(exist_ok=True)
    return folder / f"{key}.txt"


def _clear_failures(store: Store, configs: Sequence[Any]) -> None:
    """Forget old failures of trials that are about to be tried again."""
    for config in configs:
        _failure(store, store.key(config)).unlink(missing_ok=True)


def _raise_failures(store: Store, configs: Sequence[Any]) -> None:
    failures = [path for path in (_failure(store, store.key(config)) for config in configs) if path.exists()]
    if failures:
        last_line = failures[0].read_text(encoding="utf-8").strip().splitlines()[-1]
        raise errors.TrialError(
            f"{len(failures)} of {len(configs)} trials failed, the first with: {last_line}. Tracebacks are in {failures[0].parent}. "
            "Finished trials are kept. Fix: mend the cause and run the same command again."
        )


@contextmanager
def _progress(store: Store, configs: Sequence[Any]) -> Iterator[None]:
    """A bar on stderr, read from the store, so that it also counts what other processes finish."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    paths = [store.folder / "trials" / f"{store.key(config)}.json" for config in configs]
    console, stop = Console(stderr=True), threading.Event()
    there = sum(path.exists() for path in paths)
    console.print(f"{len(paths)} trials, {there} of them there already; results in {store.folder}", highlight=False)
    columns = (
        TextColumn("trials"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )

    def watch(bar: Progress) -> None:
        task = bar.add_task("trials", total=len(paths), completed=there)
        while not stop.wait(POLL_SECONDS * 2):
            bar.update(task, completed=sum(path.exists() for path in paths))
        bar.update(task, completed=sum(path.exists() for path in paths))

    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        thread = threading.Thread(target=watch, args=(bar,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
