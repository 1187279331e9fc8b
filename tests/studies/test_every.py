"""All studies in turn: what one lacks or breaks stops none of the others, and the verdicts come in one table."""

from dataclasses import dataclass

import pytest

from legato import errors
from legato.cli import main
from legato.lab.claims import Claim
from legato.lab.trial import Outcome
from legato.studies import every, study, verdicts
from legato.studies.experiment import Experiment


@dataclass(frozen=True)
class Config:
    seed: int
    breaks: bool = False


def trial(config, folder):
    if config.breaks:
        raise ValueError("a fault of this study")
    return Outcome({"gain": 1 + config.seed / 1000})


def nowhere(form, values, records):
    raise errors.DataNotFoundError("prices: found in none of these places. Fix: fetch them.")


def experiment(paper, **changes):
    parts = {
        "trials": lambda form, values, records: [Config(seed) for seed in (100, 101, 102)],
        "measures": lambda records: {"gains": [r.metrics["gain"] for r in records]},
        "panels": lambda records: [],
    }
    return Experiment(paper, "tiny", trial, **{**parts, **changes})


CLAIMS = {"1": (Claim("gains", "1", "it gains something", "good"), Claim("theory", "1", "a theorem", reason="no run"))}


@pytest.fixture
def tiny(monkeypatch):
    broken = experiment("2", trials=lambda form, values, records: [Config(0, breaks=True)])
    table = {
        "broken": broken,
        "absent": experiment("2", trials=nowhere),
        "untuned": experiment("2", tune=lambda records: {"rate": 0.1}),
        "good": experiment("1"),
    }
    monkeypatch.setattr(study, "STUDIES", table)
    monkeypatch.setattr(verdicts, "claims_of", lambda paper: CLAIMS[paper])
    return table


def test_what_a_study_lacks_or_breaks_stops_none_of_the_others(tiny, tmp_path):
    done = {one.name: one for one in every.run("confirm", workers=1, out=tmp_path, packed=True)}
    assert list(done) == list(tiny)
    assert "a fault of this study" in done["broken"].problem
    assert done["absent"].absent.endswith("Fix: fetch them.")
    assert "legato study untuned" in done["untuned"].absent
    assert done["good"].path == tmp_path / "good" / "index.html"
    assert [j.verdict for j in done["good"].judged] == ["shows", "not tested here"]
    assert (tmp_path / "good.jsonl.xz").is_file()
    assert [name for name, one in done.items() if one.path is not None] == ["good"]


def test_forms_that_commit_nothing_need_nothing_committed(tiny, tmp_path):
    del tiny["broken"], tiny["absent"]
    for form in ("smoke", "full"):
        done = {one.name: one for one in every.run(form, workers=1, out=tmp_path / form)}
        assert all(one.path.is_file() and not one.judged for one in done.values())
    assert done["untuned"].path.name == "tuned.json"


def test_the_command_ends_with_one_table_and_names_what_stopped(tiny, tmp_path, capsys):
    words = ["study", "all", "--confirm", "--workers", "1", "--out", str(tmp_path)]
    assert main(words) == 1
    told = capsys.readouterr()
    assert "untuned: left out" in told.out
    assert f"page: {tmp_path / 'good' / 'index.html'}" in told.out
    assert told.out.count("verdict") == 1
    assert "it gains something" in told.out
    assert (
        told.err.rstrip().splitlines()[-1].startswith("legato: study all: expected every study to finish; got broken")
    )
    del tiny["broken"]  # what is absent is no fault
    assert main(words) == 0
