"""How far a measurement is, on stderr: a bar for each measure on a terminal, a line for each elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import Any, final


@final
class Progress:
    """A context manager over the measures that were asked for, in order."""

    def __init__(self, measures: Sequence[str], *, shown: bool) -> None:
        self._measures, self._shown = measures, shown
        self._live = shown and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._now, self._start = "", 0.0

    def __enter__(self) -> "Progress":
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description:>12}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._end()
        if self._bar is not None:
            self._bar.stop()

    def begin(self, measure: str, passes: int | None) -> None:
        """The next measure; its length in passes over the data where that is known."""
        self._end()
        self._now, self._start = measure, time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task(measure, total=passes)

    def tick(self) -> None:
        """A pass is done."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def _end(self) -> None:
        if not self._now:
            return
        if self._bar is not None:
            self._bar.update(self._task, total=1, completed=1)
        elif self._shown:
            place = f"{self._measures.index(self._now) + 1} of {len(self._measures)}"
            print(f"{self._now}: {time.monotonic() - self._start:.1f} s ({place})", file=sys.stderr, flush=True)
        self._now = ""
