"""The report on sharpness: readings against the instruments, the page, and the command on a model that was saved."""

import json
import math
import re

import numpy as np
import pytest
import torch
import tyro
from torch import nn
from torch.nn import functional as F

from legato import nets, training
from legato.cli.sharpness import Sharpness
from legato.errors import CheckpointError, DataError, DeviceError, LegatoTypeError, LegatoValueError
from legato.flatness.sharpness import m_sharpness, sam_sharpness
from legato.flatness.surface import Surface
from legato.studies.prepared import Source
from legato.studies.sharpness import MEASURES, Settings, error_share, report
from legato.studies.sharpness_page import to_json
from legato.studies.sharpness_saved import Question, measure, open_model, rows_of

X, Y = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
BATCHES = [(X[:20], Y[:20]), (X[20:], Y[20:])]
QUICK = {"radii": (0.1,), "steps": 3, "group_rows": 5, "products": 12, "points": 5, "tol": 0.1}


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


@pytest.fixture(scope="module")
def whole():
    return report(network(), F.cross_entropy, BATCHES, metric=error_share, between=network(1), **QUICK)


def test_each_reading_is_the_instrument_s_and_says_what_it_has_to_be_read_with(whole):
    surface = Surface(network(), F.cross_entropy, BATCHES)
    by = {}
    for r in whole.readings:
        by.setdefault(r.measure, []).append(r)
        assert (r.mode, r.rows, r.loss) == ("eval", 30, surface.value())
        assert r.gradient_norm == pytest.approx(float(surface.gradient().norm()))
        assert math.isfinite(r.value) and r.seconds >= 0
    assert list(by) == [*MEASURES, "between"]
    assert by["sam"][0].value == sam_sharpness(surface, 0.1).sharpness
    assert by["pgd"][0].value == sam_sharpness(surface, 0.1, 3).sharpness >= by["sam"][0].value
    assert by["asam"][0].value == sam_sharpness(surface, 0.5, 3, adaptive=True).sharpness
    groups = [*zip(X[:20].split(5), Y[:20].split(5), strict=True), *zip(X[20:].split(5), Y[20:].split(5), strict=True)]
    by_hand = m_sharpness(network(), F.cross_entropy, groups, 0.1)
    assert (by["m-sharpness"][0].value, by["m-sharpness"][0].error) == (by_hand.sharpness, by_hand.standard_error)
    hessian = torch.stack([surface.product(row) for row in torch.eye(surface.size)]).double()
    exact = torch.linalg.eigvalsh(hessian).flip(0)
    top = by["lambda"]
    assert [r.what for r in top] == ["largest eigenvalue", "eigenvalue 2", "eigenvalue 3", "smallest eigenvalue"]
    for r in top:  # the bound holds
        assert float((exact - r.value).abs().min()) <= r.error
    assert (
        top[0].value == pytest.approx(float(exact[0]), rel=0.02) and 4 <= top[0].products <= 12 and top[1].products == 0
    )
    assert abs(by["trace"][0].value - float(exact.sum())) < 4 * by["trace"][0].error
    assert [r.what for r in by["layers"]] == ["largest, layer 0", "largest, layer 2"]
    block = torch.linalg.eigvalsh(hessian[24:, 24:])[-1]
    assert by["layers"][1].value == pytest.approx(float(block), rel=0.02)
    d = float(whole.density.nodes.abs().max())
    assert (
        by["density"][0].value == pytest.approx(whole.density.share(-0.01 * d, 0.01 * d), abs=1e-9)
        and by["density"][0].products == 12
    )
    assert by["landscape"][0].value == pytest.approx(whole.line.loss[[0, -1]].mean() - surface.value())
    assert by["between"][0].value == whole.path.barrier
    assert whole.plane.loss.shape == (5, 5) and whole.plane.loss[2, 2] == surface.value()


def test_a_measure_does_not_depend_on_which_others_were_asked_for(whole):
    alone = report(network(), F.cross_entropy, BATCHES, **QUICK, measures=("trace",))
    assert [r.measure for r in alone.readings] == ["trace"]
    assert alone.readings[0].value == next(r.value for r in whole.readings if r.measure == "trace")
    other = report(network(), F.cross_entropy, BATCHES, **QUICK, measures=("trace",), seed=1)
    assert other.readings[0].value != alone.readings[0].value


def test_the_page_needs_nothing_else_and_the_json_has_every_number(whole, tmp_path):
    html = whole.write(tmp_path).read_text()
    for words in (
        "<svg",
        "How to read it",
        "A cut through the weights",
        "From one model to the other",
        "All eigenvalues",
        "Loss ",
    ):
        assert words in html
    assert not re.search(r"(src|href)=.?https?:", html)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"plane", "line", "path", "density"}
    kept = json.loads((tmp_path / "sharpness.json").read_text())
    assert [r["value"] for r in kept["readings"]] == [r.value for r in whole.readings]
    assert {"radius", "mode", "rows", "loss", "gradient_norm", "error", "products", "seconds"} <= set(
        kept["readings"][0]
    )
    np.testing.assert_array_equal(kept["curves"]["plane"]["loss"], whole.plane.loss)
    assert kept["settings"]["radii"] == [0.1] and kept["environment"]["torch"]
    assert to_json(whole)["curves"]["path"]["barrier"] == whole.path.barrier


def test_the_verdict_says_the_first_numbers_and_no_more(whole):
    pgd = next(r for r in whole.readings if r.measure == "pgd")
    assert f"within 0.1 of the weights it can rise by {pgd.value:.3g} or more" in whole.verdict
    assert (
        "Measured on 30 rows in eval mode" in whole.verdict and "none of these numbers says how well" in whole.verdict
    )


def test_what_makes_numbers_incomparable_is_said():
    """Near a loss of 0, behind normalised layers, and away from a minimum."""
    normed = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    notes = report(normed, F.cross_entropy, BATCHES, measures=("sam",), radii=(0.01,)).notes
    assert [note[:11] for note in notes] == ["Some layers", "Within 0.01"]
    sure = nn.Linear(5, 2)
    with torch.no_grad():
        sure.weight.zero_()
        sure.bias[:] = torch.tensor([30.0, -30.0])
    notes = report(sure, F.cross_entropy, [(X, torch.zeros(30, dtype=torch.long))], measures=("pgd",)).notes
    assert len(notes) == 1 and notes[0].startswith("The loss is 0. Near 0 the curvature")


def test_what_is_not_finite_is_null_in_the_json(tmp_path):
    found = report(network(), F.cross_entropy, BATCHES[:1], measures=("m-sharpness",), group_rows=50)
    assert found.readings[0].error is None and found.readings[0].error_of == ""
    json.dumps(to_json(found), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"measures": ("sma",)}, "Did you mean 'sam'"),
        ({"measures": ()}, "measures: expected one or more"),
        ({"radius": (0.1,)}, "option: .*Did you mean 'radii'"),
        ({"radii": (-0.1,)}, "radius: expected a finite number > 0"),
        ({"steps": 1}, "steps: expected a whole number >= 2"),
        ({"points": 4}, "points: expected an odd whole number >= 3"),
        ({"mode": "test"}, "mode"),
    ],
)
def test_options_that_cannot_be_measured(options, words):
    with pytest.raises(LegatoValueError, match=words):
        report(network(), F.cross_entropy, BATCHES, **options)


def test_data_that_cannot_be_measured():
    with pytest.raises(LegatoValueError, match="rows: expected at least 2; got 1"):
        report(network(), F.cross_entropy, [(X[:1], Y[:1])])
    with pytest.raises(LegatoTypeError, match="batches"):
        report(network(), F.cross_entropy, iter(BATCHES))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An MLP on two columns of a small table, saved as `legato compare --save-model` does."""
    folder = tmp_path_factory.mktemp("sharpness")
    dice = np.random.default_rng(0)
    x = dice.normal(3, 2, size=(60, 2))
    rows = [f"{a:.4f},{b:.4f},{'yes' if a > b else 'no'}" for a, b in x]
    (folder / "table.csv").write_text("a,b,y\n" + "\n".join(rows) + "\n")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        training.save_model(
            folder / name, nets.build("mlp", (2,), 2), "mlp", (2,), 2, objective="ce", learning_rate=0.1, label_noise=0.2,
            class_names=["no", "yes"], standardisation={"mean": [3.0, 2.0], "deviation": [2.0, 0.0]},
        )  # fmt: skip
    return folder


def question(saved, **changes):
    given = {
        "checkpoint": saved / "one",
        "source": Source(str(saved / "table.csv"), target="y"),
        "options": {"measures": ("sam",)},
    }
    return Question(**(given | changes))


def test_the_rows_are_scaled_as_in_training(saved):
    """(x - mean) / deviation with what the model says of itself; a deviation of 0 makes its column 0."""
    splits = question(saved).source.load(0)
    inputs, targets = rows_of(open_model(saved / "one"), splits, "train", 1000, 0)
    assert len(inputs) == len(splits.train)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inputs[:, 0], (splits.train.inputs[order, 0] - 3) / 2)
    assert not inputs[:, 1].any() and torch.equal(targets, splits.train.targets[order])
    few, _ = rows_of(open_model(saved / "one"), splits, "test", 5, 0)
    assert len(few) == 5


def test_the_command_prints_a_table_and_writes_json_and_page(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = [str(saved / "one"), "--data", str(saved / "table.csv"), "--target", "y", "--between", str(saved / "two"), "--rows", "20",
             "--measures", "sam", "lambda", "landscape", "--radius", "0.1", "--points", "3", "--products", "9", "--out", str(tmp_path / "page")]  # fmt: skip
    tyro.cli(Sharpness, args=words).run()
    said = capsys.readouterr()
    for text in (
        "rise after one step",
        "largest eigenvalue",
        "barrier to the other model",
        "20 rows, eval mode",
        "page: ",
    ):
        assert text in said.out
    assert "landscape: " in said.err and "(3 of 4)" in said.err
    kept = json.loads((tmp_path / "page" / "sharpness.json").read_text())
    assert kept["rows"] == 20 and kept["method"]["labels"].startswith("as they are; training saw 20 % wrong")
    html = (tmp_path / "page" / "index.html").read_text()
    assert "one: mlp, trained with ce at rate 0.1" in html and str(saved) not in html


def test_mistakes_name_their_remedy(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"is no model of legato.*--save-model"):
        measure(question(saved, checkpoint=tmp_path))
    with pytest.raises(CheckpointError, match="choose one of one, two in it"):
        measure(question(saved, checkpoint=saved))
    with pytest.raises(LegatoValueError, match="rows: expected a whole number >= 2; got 1"):
        measure(question(saved, rows=1))
    with pytest.raises(DataError, match=r"inputs of shape \(2,\), as one has; got \(1, 8, 8\)"):
        measure(question(saved, source=Source("digits")))
    with pytest.raises(DataError, match="the classes"):
        (saved / "other.csv").write_text((saved / "table.csv").read_text().replace("yes", "ja"))
        measure(question(saved, source=Source(str(saved / "other.csv"), target="y")))
    with pytest.raises(DeviceError, match="cuda"):
        measure(question(saved, device="cuda:77"))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        measure(question(saved, checkpoint=damaged))
    training.save_model(tmp_path / "own", network(), "collections:OrderedDict", (5,), 3)
    with pytest.raises(
        LegatoValueError, match=r"for it is run; got None\. Fix: --model collections:OrderedDict, if you trust"
    ):
        open_model(tmp_path / "own")


def test_settings_are_those_of_the_command():
    """The command repeats the defaults, so that its help needs no torch."""
    command, settings = Sharpness.__dataclass_fields__, Settings()
    for name, field in {"radius": "radii", "adaptive_radius": "adaptive_radii"}.items():
        assert command[name].default == getattr(settings, field)
    for name in ("measures", "steps", "group_rows", "products", "points", "mode", "seed"):
        assert command[name].default == getattr(settings, name)
