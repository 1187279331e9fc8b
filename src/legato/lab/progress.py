"""How far a study is, on stderr: a bar on a terminal, a line a minute elsewhere. Read from the store, so it counts other processes too."""

import sys
import threading
import time
from collections.abc import Set
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from legato.lab.store import Store

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

REFRESH_SECONDS = 0.5
LINE_SECONDS = 60.0


class Monitor:
    """Watches the trials that a study has asked for, from its start to its end."""

    def __init__(self, store: Store, *, shown: bool) -> None:
        self._store, self._shown = store, shown
        self._asked: Set[str] = frozenset()
        self._at_start, self._start = 0, time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def expect(self, keys: Set[str]) -> None:
        """Name all trials that are known to be needed; the first time, say where the results are going to be."""
        self._asked = frozenset(keys)
        if self._thread is None and self._shown:
            self._at_start = self.done()
            there = f", {self._at_start} of them there already" if self._at_start else ""
            self.say(f"{len(keys)} trials{there}; results in {self._store.folder}")
            self._thread = threading.Thread(target=self._watch, name="legato progress", daemon=True)
            self._thread.start()

    def done(self) -> int:
        """How many of the trials that are needed are finished."""
        return len(self._asked & self._store.finished())

    def count(self) -> str:
        """Such as `240 of 300 trials`."""
        return f"{self.done()} of {len(self._asked)} trials"

    def say(self, text: str) -> None:
        """One line on stderr."""
        if self._shown:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if kind is None:
            self.say(f"{self.count()} are done; results in {self._store.folder}")

    def _watch(self) -> None:
        with suppress(OSError):  # a folder that has gone is reported by whoever writes to it
            if sys.stderr.isatty():
                self._draw()
            else:
                self._report()

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
        with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
            task = bar.add_task("trials", pace="")
            while not self._over.wait(REFRESH_SECONDS):
                self._update(bar, task)

    def _update(self, bar: "Progress", task: "TaskID") -> None:
        done, total = self.done(), len(self._asked)
        bar.update(task, completed=done, total=total, pace=self._pace(done, total), refresh=True)

    def _report(self) -> None:
        while not self._over.wait(LINE_SECONDS):
            done, total = self.done(), len(self._asked)
            self.say(", ".join(filter(None, (f"{done} of {total} trials", self._pace(done, total)))))

    def _pace(self, done: int, total: int) -> str:
        return pace(done - self._at_start, total - done, time.monotonic() - self._start)


def pace(done: int, left: int, seconds: float) -> str:
    """Rate and time left, such as `12.0 a minute, 5 min left`; empty before the first trial is done."""
    if done <= 0 or seconds <= 0:
        return ""
    rest = left * seconds / done
    if rest < 90:
        time_left = f"{rest:.0f} s"
    elif rest < 5400:
        time_left = f"{rest / 60:.0f} min"
    else:
        time_left = f"{rest / 3600:.1f} h"
    return f"{60 * done / seconds:.3g} a minute, {time_left} left"
