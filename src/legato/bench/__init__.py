"""What a room costs against its peers: one file a room, each with `cases(official) -> list[Case]`."""

from pathlib import Path

from legato import errors
from legato.bench import flatness, losses, online, smooth, stability
from legato.bench.case import Case
from legato.bench.row import Row, as_json

__all__ = ["ROOMS", "Case", "Row", "as_json", "cases"]
ROOMS = {
    "losses": losses.cases,
    "flatness": flatness.cases,
    "online": online.cases,
    "stability": stability.cases,
    "smooth": smooth.cases,
}


def cases(room: str, official: Path | None = None) -> list[Case]:
    """The comparisons of a room, also against the authors' own code where a copy of it is named.

    Raises: LegatoValueError for a room without a benchmark.
    """
    if room not in ROOMS:
        raise errors.choice("room", room, ROOMS)
    return ROOMS[room](official)
