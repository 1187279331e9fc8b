"""What a room costs against its peers: one file a room, each with `run(seconds) -> list[Row]`."""

from pathlib import Path

from legato import errors
from legato.bench import losses
from legato.bench.row import Row, as_json

__all__ = ["ROOMS", "Row", "as_json", "run"]
ROOMS = {"losses": losses.run}


def run(room: str, seconds: float, official: Path | None = None) -> list[Row]:
    """Measure a room for about this many seconds, also against the authors' own code where a copy of it is named.

    Raises: LegatoValueError for a room without a benchmark.
    """
    if room not in ROOMS:
        raise errors.choice("room", room, ROOMS)
    return ROOMS[room](seconds, official=official)
