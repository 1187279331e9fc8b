"""`legato bench`: what a room costs against its peers, on this machine."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from legato.bench import Bar, ProductRow, Row


def bench(room: str, *, seconds: float = 120.0, official: Path | None = None, out: Path | None = None) -> None:
    """Measure, print a table for each part, and write the figures as JSON if `out` is given.

    Args:
        room: what to measure: `losses`, `flatness`, `online`, `stability`, `smooth`, `distillation` or `cpo`; `all` for every case that has a bar, in one table.
        seconds: for timing, shared equally; a slow case takes longer, since it needs its least number of pairs.
        official: the authors' `losses.py` of EnsLoss, to be timed too.
        out: a JSON file, written anew after each case, so that a run that is stopped keeps what it measured.

    Raises: LegatoValueError for a room without a benchmark.
    """
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "99"
    )  # the profiler that counts memory reports its own start-up otherwise
    from rich.console import Console
    from rich.progress import track

    from legato import bench as rooms

    asked = [(name, case) for name in (rooms.ROOMS if room == rooms.ALL else [room]) for case in rooms.cases(name, official)
             if room != rooms.ALL or rooms.asks(case)]  # fmt: skip
    rows, report = [], rooms.as_json([])
    for name, case in track(asked, description=f"timing {room}", console=Console(stderr=True)):
        rows.append(case.measure(seconds / len(asked)))
        (plain,) = rooms.as_json(rows[-1:])["rows"]
        report["rows"].append({"room": name, **plain})
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(report, indent=1) + "\n")
    if room == rooms.ALL:
        _bars([bar for row in report["rows"] for bar in rooms.bars(row["room"], [row])])
    else:
        _parts(rows)
    facts = report["machine"]
    Console().print(
        f"{facts['cpu']}, torch {facts['torch']}, {facts['threads']} thread. Process time; medians with 95% bootstrap intervals over "
        "interleaved blocks; A/A is the peer against itself. A bar is met when the interval begins at or below it."
    )


def _parts(rows: "Sequence[Row | ProductRow]") -> None:
    """A table for each part at each shape."""
    from rich.console import Console

    from legato.bench import ProductRow, Row

    for part, shape in dict.fromkeys((row.part, row.shape) for row in rows):
        same = [row for row in rows if (row.part, row.shape) == (part, shape)]
        counted, timed = [r for r in same if isinstance(r, ProductRow)], [r for r in same if isinstance(r, Row)]
        title = f"{part}, {' x '.join(map(str, shape))}"
        Console().print(_counted(f"{title} weights", counted) if counted else _table(title, timed))


def _bars(found: "Sequence[Bar]") -> None:
    """One table of every bar."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    numbers = (Column(name, justify="right", no_wrap=True) for name in ("ours", "peer", "ratio"))
    table = Table(
        Column("part", min_width=16, overflow="fold"), *numbers, Column("bar", min_width=11, overflow="fold"),
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for bar in found:
        part = f"{bar.room}: {bar.part}, {bar.shape}, {bar.what} against {bar.against}"
        table.add_row(*(escape(cell) for cell in (part, bar.ours, bar.peer, bar.ratio, f"{bar.bar} {bar.met}")))
    Console().print(table)


def _table(title: str, rows: "Sequence[Row]") -> Any:
    from rich import box
    from rich.table import Column, Table

    columns = (Column(name, justify="right", no_wrap=True) for name in ("ms", "ratio", "A/A", "MiB"))
    table = Table(
        Column("against", min_width=20), *columns, Column("bar", min_width=10),
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for row in rows:
        time = row.timing
        ratio = f"{time.ratio.median:.2f} \\[{time.ratio.low:.2f}, {time.ratio.high:.2f}]"
        memory = f"{row.peak_mib:.0f} of {row.peer_peak_mib:.0f}"
        table.add_row(row.peer, f"{time.milliseconds:.1f}", ratio, f"{time.same.median:.2f}", memory, _bar(row))
    return table


def _counted(title: str, rows: "Sequence[ProductRow]") -> Any:
    from rich import box
    from rich.table import Column, Table

    columns = (Column(name, justify="right", no_wrap=True) for name in ("ours", "peer's"))
    table = Table(
        Column("products against", min_width=20), *columns, Column("bar", min_width=10), "note",
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for row in rows:
        bar = "" if row.met is None else f"{row.bar:g} {'met' if row.met else 'missed'}"
        theirs = "" if not row.installed else "never" if row.peer_products is None else f"{row.peer_products:g}"
        table.add_row(row.peer, f"{row.products:g}", theirs, bar, row.note)
    return table


def _bar(row: "Row") -> str:
    bars = ((row.bar, ""), (row.memory_bar, " MiB"), (row.rate_bar, "/s"))
    asked = [f"{bar:g}{unit}" for bar, unit in bars if bar is not None]
    done = f", {row.per_second:,.0f}/s" if row.rate_bar else ""
    return f"{', '.join(asked)} {'met' if row.met else 'missed'}{done}" if asked else ""
