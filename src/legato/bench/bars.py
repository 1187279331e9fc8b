"""What we asked of ourselves beforehand, and whether it is met: one line for each bar of a stored row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from legato.bench.case import Case
from legato.bench.flatness_spectrum import ProductCase

KINDS = ("bar", "memory_bar", "rate_bar")


@dataclass(frozen=True)
class Bar:
    """One bar, in words for a table. A ratio is ours divided by the peer's."""

    room: str
    part: str
    against: str
    shape: str
    what: str
    """time, memory, rate (a second), or products with the Hessian."""
    ours: str
    peer: str
    ratio: str
    """With its 95% interval where it was timed; what is counted has none."""
    bar: str
    met: str
    """met, missed, or not installed where there was no peer to compare with."""


def asks(case: Case | ProductCase) -> bool:
    """Whether a case has a bar at all."""
    return any(getattr(case, kind, None) is not None for kind in KINDS)


def bars(room: str, rows: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Every bar of the rows that `as_json` wrote, in their order; rows without one are left out."""
    return [bar for row in rows for bar in (_counted(room, row) if "products" in row else _timed(room, row))]


def _timed(room: str, row: Mapping[str, Any]) -> list[Bar]:
    time, found = row["timing"], []
    if row.get("bar") is not None:
        r = time["ratio"]
        told = _ms(time["milliseconds"]), _ms(time["peer_milliseconds"]), _interval(r["median"], r["low"], r["high"])
        found.append(_bar(room, row, "time", told, f"<= {row['bar']:g}", r["low"] <= row["bar"]))
    if row.get("memory_bar") is not None:
        ours, peer = row["peak_mib"], row["peer_peak_mib"]
        told = f"{ours:.0f} MiB", f"{peer:.0f} MiB", f"{ours / peer:.2f}" if peer else ""
        found.append(_bar(room, row, "memory", told, f"<= {row['memory_bar']:g}", ours <= row["memory_bar"] * peer))
    if row.get("rate_bar") is not None:
        ours, peer = (1000 * row["work"] / time[key] for key in ("milliseconds", "peer_milliseconds"))
        r = time["ratio"]
        told = f"{ours:,.0f}", f"{peer:,.0f}", _interval(1 / r["median"], 1 / r["high"], 1 / r["low"])
        found.append(_bar(room, row, "rate", told, f">= {row['rate_bar']:,g}/s", ours >= row["rate_bar"]))
    return found


def _counted(room: str, row: Mapping[str, Any]) -> list[Bar]:
    if row["bar"] is None:
        return []
    ours, peer = row["products"], row["peer_products"]
    told = f"{ours:g}", "never" if peer is None else f"{peer:g}", "" if peer is None else f"{ours / peer:.2f}"
    if not row["installed"]:
        told = f"{ours:g}", "", ""
    return [_bar(room, row, "products", told, f"<= {row['bar']:g}", row["met"])]


def _bar(room: str, row: Mapping[str, Any], what: str, told: tuple[str, str, str], asked: str, met: bool | None) -> Bar:
    word = "not installed" if met is None else "met" if met else "missed"
    return Bar(room, row["part"], row["peer"], " x ".join(map(str, row["shape"])), what, *told, asked, word)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def _interval(middle: float, low: float, high: float) -> str:
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"
