"""How far a run is, on stderr: a bar with rate and time left on a terminal, a line a minute elsewhere."""

import sys
import time
from typing import Any, final

REDRAW_SECONDS = 0.1
LINE_SECONDS = 60.0


@final
class ProgressBar:
    """Progress over optimizer steps; a context manager.

    Args:
        total: steps of the whole run.
        done: steps that an earlier process did; they do not count in the rate.
        where: words shown at the end, such as the folder of the results.
    """

    def __init__(self, total: int, done: int, where: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        rate = TextColumn("{task.fields[rate]:.1f} steps/s")
        columns = (BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), TextColumn(where, markup=False))
        self._bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
        self._task = self._bar.add_task("", total=total, completed=done, rate=0.0)
        self._drawn_live = self._bar.console.is_terminal or self._bar.console.is_jupyter
        self._total, self._done, self._where, self._step = total, done, where, done
        self._start = self._drawn = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        if self._drawn_live:
            self._bar.start()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._draw()
        if self._drawn_live:
            self._bar.stop()

    def show(self, step: int) -> None:
        """Redraw at `step`, unless the last drawing is fresh."""
        self._step = step
        if time.monotonic() - self._drawn >= (REDRAW_SECONDS if self._drawn_live else LINE_SECONDS):
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        rate = (self._step - self._done) / max(self._drawn - self._start, 1e-9)
        if self._drawn_live:
            self._bar.update(self._task, completed=self._step, rate=rate, refresh=True)
            return
        left = f", {(self._total - self._step) / rate:.0f} s left" if rate > 0 and self._step < self._total else ""
        where = f"  {self._where}" if self._where else ""
        print(f"{self._step}/{self._total} steps, {rate:.1f} steps/s{left}{where}", file=sys.stderr, flush=True)
