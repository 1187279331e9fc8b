"""`legato bench`: what a room costs against its peers, on this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from legato.bench import Row


def bench(room: str, *, seconds: float = 120.0, out: Path | None = None) -> None:
    """Measure, print a table, and write it as JSON if `out` is given.

    Args:
        room: the room to measure, "losses".
        seconds: about how long to time; the rows share it.
        out: a JSON file with every number and the machine's CPU model and versions.
    Raises: LegatoValueError for a room without a benchmark.
    """
    from rich.console import Console

    from legato import bench as rooms

    rows = rooms.run(room, seconds)
    report = rooms.as_json(rows)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    console = Console()
    console.print(_table(rows))
    facts = report["machine"]
    console.print(
        f"{facts['cpu']}, torch {facts['torch']}, {facts['threads']} thread. Medians with 95% bootstrap intervals over "
        "interleaved blocks; A/A is the peer against itself. A bar is met when the interval begins at or below it."
    )


def _table(rows: "list[Row]") -> Any:
    from rich.table import Table

    table = Table(
        "peer", "shape", "ms", "peer ms", "ratio", "A/A", "pairs", "MiB", "peer MiB", "bar", title=rows[0].part
    )
    for row in rows:
        time = row.timing
        table.add_row(
            row.peer, " x ".join(map(str, row.shape)),
            f"{time.milliseconds:.1f}", f"{time.peer_milliseconds:.1f}",
            *(f"{x.median:.3f} [{x.low:.3f}, {x.high:.3f}]".replace("[", r"\[") for x in (time.ratio, time.same)),
            str(time.pairs), f"{row.peak_mib:.1f}", f"{row.peer_peak_mib:.1f}",
            "" if row.bar is None else f"<= {row.bar:g}: {'met' if row.met else 'missed'}",
        )  # fmt: skip
    return table
