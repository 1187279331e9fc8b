"""One line on stderr: how far a run is, how fast it goes and how long it takes."""

import time
from typing import Any, final

REDRAW_SECONDS = 0.1


@final
class ProgressBar:
    """A rich progress bar over optimizer steps, drawn at most ten times a second; a context manager.

    Args:
        total: steps of the whole run.
        done: steps that an earlier process did; they do not count in the rate.
        where: words shown at the end, such as the folder of the results.
    """

    def __init__(self, total: int, done: int, where: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        rate, words = TextColumn("{task.fields[rate]:.1f} steps/s"), TextColumn("{task.fields[words]}")
        columns = (BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), words)
        self._bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
        self._task = self._bar.add_task("", total=total, completed=done, rate=0.0, words=where)
        self._done, self._where, self._words = done, where, ""
        self._start = self._drawn = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._bar.refresh()
        self._bar.stop()

    def show(self, step: int, words: str = "") -> None:
        """Redraw at `step`, unless the last drawing is very fresh; `words` are always drawn, and stay."""
        now = time.monotonic()
        if now - self._drawn < REDRAW_SECONDS and not words:
            return
        self._drawn = now
        rate = (step - self._done) / max(now - self._start, 1e-9)
        self._words = words or self._words
        self._bar.update(self._task, completed=step, rate=rate, words=f"{self._words}  {self._where}")
        self._bar.refresh()
