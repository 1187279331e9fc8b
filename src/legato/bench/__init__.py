"""What a room costs against its peers: one file a room, each with `run(seconds) -> list[Row]`."""

from legato import errors
from legato.bench import losses
from legato.bench.row import Row, as_json

__all__ = ["ROOMS", "Row", "as_json", "run"]
ROOMS = {"losses": losses.run}


def run(room: str, seconds: float) -> list[Row]:
    """Measure a room for about this many seconds.

    Raises: LegatoValueError for a room without a benchmark.
    """
    if room not in ROOMS:
        raise errors.choice("room", room, ROOMS)
    return ROOMS[room](seconds)
