"""Every bar is told once, and as met or missed as the row itself says; `bench all` measures what has a bar, and nothing else."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from legato import bench
from legato.bench import Case, as_json, bars
from legato.bench.flatness_spectrum import ProductRow
from legato.bench.row import Row
from legato.bench.timing import Interval, Timing
from legato.cli import main

STORED = sorted((Path(__file__).parents[2] / "docs" / "benchmarks").glob("*.json"))
TIMING = Timing(Interval(0.5, 0.4, 0.8), Interval(1.0, 0.9, 1.1), milliseconds=2.0, peer_milliseconds=4.0, pairs=9)
ROW = Row("step", "peer", (3, 4), TIMING, peak_mib=10.0, peer_peak_mib=40.0)
COUNTED = ProductRow("top eigenvalue", "eigsh", (99,), products=20, peer_products=25, asked=30, bar=1.0)


def told(row):
    return bars("room", as_json([row])["rows"])


@pytest.mark.parametrize(
    ("row", "what", "cells"),
    [
        (replace(ROW, bar=0.4), "time", ("2 ms", "4 ms", "0.50 [0.40, 0.80]", "<= 0.4", "met")),
        (replace(ROW, bar=0.39), "time", ("2 ms", "4 ms", "0.50 [0.40, 0.80]", "<= 0.39", "missed")),
        (replace(ROW, memory_bar=0.25), "memory", ("10 MiB", "40 MiB", "0.25", "<= 0.25", "met")),
        (replace(ROW, memory_bar=0.2), "memory", ("10 MiB", "40 MiB", "0.25", "<= 0.2", "missed")),
        (replace(ROW, work=6, rate_bar=3000), "rate", ("3,000", "1,500", "2.00 [1.25, 2.50]", ">= 3,000/s", "met")),
        (replace(ROW, work=6, rate_bar=3001), "rate", ("3,000", "1,500", "2.00 [1.25, 2.50]", ">= 3,001/s", "missed")),
        (COUNTED, "products", ("20", "25", "0.80", "<= 1", "met")),
        (replace(COUNTED, bar=0.5), "products", ("20", "25", "0.80", "<= 0.5", "missed")),
        (replace(COUNTED, peer_products=None), "products", ("20", "never", "", "<= 1", "met")),
        (replace(COUNTED, peer_products=None, installed=False), "products", ("20", "", "", "<= 1", "not installed")),
    ],
)  # fmt: skip
def test_a_bar_in_words(row, what, cells):
    (bar,) = told(row)
    assert (bar.room, bar.part, bar.against, bar.what) == ("room", row.part, row.peer, what)
    assert (bar.ours, bar.peer, bar.ratio, bar.bar, bar.met) == cells


def test_a_row_has_as_many_lines_as_bars():
    assert told(ROW) == told(replace(COUNTED, bar=None)) == []
    assert [bar.what for bar in told(replace(ROW, bar=1.0, memory_bar=1.0, rate_bar=1.0))] == [
        "time",
        "memory",
        "rate",
    ]


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_rows_are_met_where_all_their_bars_are(path):
    for row in json.loads(path.read_text())["rows"]:
        found = bars(path.stem, [row])
        assert bool(found) == any(row.get(key) is not None for key in ("bar", "memory_bar", "rate_bar"))
        if row["met"] is not None:
            assert all(bar.met == "met" for bar in found) == row["met"]


def test_all_measures_what_has_a_bar_and_writes_it(monkeypatch, tmp_path, capsys):
    case = partial(Case, shape=(8,), ours=lambda: lambda: sum(range(50)), other=lambda: lambda: sum(range(500)))
    rooms = {
        "here": lambda official: [case("short", "long", bar=9.0), case("no", "bar")],
        "there": lambda official: [case("held", "long", rate_bar=1e12)],
    }
    monkeypatch.setattr(bench, "ROOMS", rooms)
    assert main(["bench", "all", "--seconds", "0.02", "--out", str(tmp_path / "new" / "bars.json")]) == 0
    out = capsys.readouterr().out
    assert [word for word in out.split() if word in ("met", "missed")][:2] == ["met", "missed"]
    report = json.loads((tmp_path / "new" / "bars.json").read_text())
    assert [(row["room"], row["part"], row["met"]) for row in report["rows"]] == [
        ("here", "short", True),
        ("there", "held", False),
    ]
    assert report["machine"]["cpu"] in out
