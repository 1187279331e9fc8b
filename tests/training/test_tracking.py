"""Trackers: what `fit` logs is what their own readers find."""

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from small_run import fit

from legato.errors import LegatoValueError, MissingExtraError
from legato.training import tracker

METRICS = {"epoch": 0, "step": 8, "train_loss": 1.5, "validation_error": None, "nll": float("nan")}


def test_tensorboard_reads_back_what_fit_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'legato[track]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracker("tensorboard", tmp_path, run="first", config={"rate": 0.1, "clip": None}) as log:
        fitted = fit(epochs=3, validate=lambda model: {"validation_error": 0.25}, log=log)
        log(METRICS)
    events = EventAccumulator(str(tmp_path / "first"))
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found.keys() == {"epoch", "train_loss", "learning_rate", "validation_error", "seconds"}
    steps, values = zip(*found["train_loss"], strict=True)
    assert steps == (8, 16, 24, 8)
    assert values == pytest.approx([*(entry["train_loss"] for entry in fitted.history), 1.5])
    assert len(found["validation_error"]) == 3, "what is not finite is left out"
    notes = [path.read_text() for path in (tmp_path / "first").rglob("hparams.yml")]
    assert notes == ["clip: None\nrate: 0.1\n"]


def test_trackio_keeps_a_run_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)
    monkeypatch.delenv("TRACKIO_SERVER_URL", raising=False)
    pytest.importorskip("trackio", reason="trackio is not installed: pip install 'legato[track]'")
    from trackio import utils

    if Path(utils.TRACKIO_DIR) != tmp_path:
        monkeypatch.setattr(utils, "TRACKIO_DIR", tmp_path)
    with tracker("trackio", tmp_path / "unused", run="first", config={"rate": 0.1}) as log:
        log(METRICS)
        log(METRICS | {"step": 16, "train_loss": 0.75})
    with closing(sqlite3.connect(tmp_path / "legato.db")) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(run, step, json.loads(metrics)) for run, step, metrics in rows] == [
        ("first", 8, {"epoch": 0, "train_loss": 1.5}),
        ("first", 16, {"epoch": 0, "train_loss": 0.75}),
    ]
    assert not (tmp_path / "unused").exists()


def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not there
    with pytest.raises(MissingExtraError, match=r"wandb is needed here.*pip install 'legato\[track\]'"):
        tracker("wandb", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_names_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(LegatoValueError, match="Did you mean 'tensorboard'"):
        tracker("tensorbord", tmp_path)
