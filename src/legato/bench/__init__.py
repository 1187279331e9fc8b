"""What a room costs against its peers: one file a room, each with `cases(official)`; what can be counted is counted, the rest is timed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from legato import errors
from legato.bench import cpo, distillation, flatness, flatness_spectrum, losses, online, smooth, stability
from legato.bench.bars import Bar, asks, bars
from legato.bench.case import Case
from legato.bench.flatness_spectrum import ProductCase, ProductRow
from legato.bench.row import Row, as_json

__all__ = ["ALL", "ROOMS", "Bar", "Case", "ProductRow", "Row", "as_json", "asks", "bars", "cases"]
ALL = "all"
"""The name that stands for every case that has a bar, of every room."""
ROOMS: Mapping[str, Callable[[Path | None], Sequence[Case | ProductCase]]] = {
    "losses": losses.cases,
    "flatness": lambda official: [*flatness.cases(official), *flatness_spectrum.cases()],
    "online": online.cases,
    "stability": stability.cases,
    "smooth": smooth.cases,
    "distillation": distillation.cases,
    "cpo": cpo.cases,
}


def cases(room: str, official: Path | None = None) -> Sequence[Case | ProductCase]:
    """The comparisons of a room, also against the authors' own code where a copy of it is named.

    Raises: LegatoValueError for a room without a benchmark.
    """
    if room not in ROOMS:
        raise errors.choice("room", room, ROOMS)
    return ROOMS[room](official)
