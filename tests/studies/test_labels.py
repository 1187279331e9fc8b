"""`legato labels`: planted flips are found, rows keep their place, and the list and the page say what was found."""

import csv
import io
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from legato import data, training
from legato.cli.labels import Labels
from legato.errors import LegatoValueError
from legato.flatness.dynamics import MEASURES, Dynamics
from legato.lab.page import render
from legato.studies import labels, labels_page
from legato.studies.labels import Question, Score
from legato.studies.prepared import Source

QUESTION = Question(Source("breast_cancer"), epochs=4, batch_size=32, seeds=2)


@cache
def found(**changes):
    return labels.find(replace(QUESTION, **changes))


@pytest.mark.parametrize("kind", ["symmetric", "instance"])
def test_planted_flips_are_found(kind):
    test = found(label_noise=0.15, noise_kind=kind)
    assert abs(test.flipped.mean() - 0.15) < 0.05
    for score in test.scores():
        low = 0.75 if score.measure == "forgetting" else 0.93
        assert (score.auc > low, score.precision > 3 * test.flipped.mean()) == (True, True), score
    assert (test.suggested == test.true).mean() > 0.9 > (test.given == test.true).mean()


def test_every_row_of_the_file_stands_in_its_place():
    """569 rows: those that a comparison would hold out are looked at as well, in the order of the file."""
    from sklearn.datasets import load_breast_cancer

    own = found()
    assert own.row.tolist() == list(range(569))
    assert np.array_equal(own.given, load_breast_cancer().target)
    assert not own.flipped.any()
    digits = data.load("digits", seed=3)
    inputs, targets, index = labels.joined(digits)
    assert torch.equal(index, torch.arange(1797))
    for part in (digits.train, digits.validation, digits.test):
        assert torch.equal(inputs[part.index], part.inputs)
        assert torch.equal(targets[part.index], part.targets)


def test_rows_of_other_files_stay_out():
    x, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3
    splits = data.from_arrays(x[:45], y[:45], test=(x[45:], y[45:]))
    inputs, targets, index = labels.joined(splits)
    assert index.tolist() == list(range(45))
    np.testing.assert_allclose(inputs.numpy(), x[:45].astype(np.float32))
    assert targets.tolist() == y[:45].tolist()
    alone = replace(splits, validation=splits.test)  # files for validation and test, and a training file with gaps
    rows = splits.train.index.sort().values
    assert torch.equal(labels.joined(alone)[2], rows)


def test_seeds_are_averaged_and_a_run_can_be_repeated():
    own = found()
    np.testing.assert_array_equal(own.suspicion, own.suspicions["margin"].mean(0))
    np.testing.assert_allclose(own.suspicion, -own.columns["margin"])
    again = labels.find(QUESTION)
    np.testing.assert_array_equal(again.suspicion, own.suspicion)
    assert not np.array_equal(*own.suspicions["loss"])
    for measure in ("loss", "forgetting"):
        other = replace(own, question=replace(QUESTION, measure=measure))
        np.testing.assert_array_equal(other.suspicion, own.suspicions[measure].mean(0))
        assert (np.diff(other.suspicion[other.order]) <= 0).all()


def test_ties_are_ranked_by_the_loss():
    own = found()
    ties = replace(
        own,
        suspicions={m: np.array([[0.0, 1, 1, 0]]) for m in MEASURES},
        columns={**own.columns, "loss": np.array([3.0, 1, 2, 4])},
    )
    assert ties.order.tolist() == [2, 1, 3, 0]


def test_scores_by_hand():
    """Flips at ranks 1 and 3 of 4: average precision (1/1 + 2/3) / 2, and 3 of the 4 pairs are in order."""
    flipped = np.array([True, False, True, False])
    score = Score.of("loss", np.array([[4.0, 3, 2, 1]]), flipped)
    assert (score.precision, score.auc) == (pytest.approx(5 / 6), pytest.approx(0.75))
    two = Score.of("loss", np.array([[4.0, 3, 2, 1], [0, 0, 4, 0]]), flipped)  # the mean is 2, 1.5, 3, 0.5
    assert (two.precision, two.auc) == (1, 1)
    assert two.precision_of_one.mean == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert two.auc_of_one.count == 2


def test_precision_against_recall_by_hand():
    recall, precision, *_ = labels_page._precision(np.array([4.0, 3, 2, 1]), np.array([True, False, True, False]))
    assert recall == list(range(101))
    assert precision.round(4).tolist() == [100] * 51 + [66.6667] * 50


def test_a_test_that_flips_nothing_is_told():
    with pytest.raises(LegatoValueError, match="label_noise: expected a share that flips some labels"):
        Score.of("loss", np.ones((1, 3)), np.zeros(3, dtype=bool))


def test_the_list_of_suspects():
    own = found(label_noise=0.15)
    rows = list(csv.DictReader(io.StringIO(labels_page.table(own, 7))))
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    first = own.order[0]
    want = {
        "row": str(own.row[first]),
        "given": own.class_names[own.given[first]],
        "flipped": str(int(own.flipped[first])),
    }
    assert rows[0].items() >= want.items()
    assert float(rows[0]["suspicion"]) == pytest.approx(own.suspicion.max(), rel=1e-5)
    assert float(rows[0]["confidence"]) == pytest.approx(own.columns["confidence"][first], rel=1e-5)
    assert len(labels_page.table(own, 0).splitlines()) == 570
    header = labels_page.table(found(), 1).splitlines()[0]
    assert header == "rank,row,given,suggested,suspicion,loss,confidence,margin,forgetting,variability,correctness"
    odd = replace(own, class_names=('a, "b"', "<c>"))
    assert {row["given"] for row in csv.DictReader(io.StringIO(labels_page.table(odd, 0)))} == {'a, "b"', "<c>"}


def test_the_verdict_says_what_is_sure():
    own = found()
    assert re.match(
        r"For \d+ of the 569 labels of breast_cancer \(\d\.\d%\) the networks say another class", own.verdict
    )
    assert own.verdict.endswith("A suspicion is no proof: look at the rows.")
    test = found(label_noise=0.15)
    flips = int(test.flipped.sum())
    hits = test.flipped[np.argsort(-test.suspicion)[:flips]].mean()
    assert test.verdict.startswith(
        f"Of the {flips} labels of breast_cancer that were flipped, {hits:.0%} stand among the {flips}"
    )


def test_a_folder_of_pictures_names_its_files(tmp_path):
    """Two bright and two dark classes of pictures, and one bright picture in a dark folder."""
    random = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(12):
            value = 190 if (name, i) == ("dark", 7) else level
            pixels = np.clip(random.normal(value, 12, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i:02}.png")
    own = labels.find(replace(QUESTION, source=Source(str(tmp_path / "set")), epochs=8, batch_size=8))
    assert own.names[7] == "dark/07.png"
    rows = list(csv.DictReader(io.StringIO(labels_page.table(own))))
    assert (rows[0]["file"], rows[0]["given"], rows[0]["suggested"]) == ("dark/07.png", "dark", "light")
    page = render(labels_page.labels_page(own))
    assert "1. row dark/07.png: dark, looks like light" in page
    assert page.count('src="data:image/png') == 24


def test_the_command_prints_and_writes_a_page_that_needs_nothing_else(tmp_path, capsys):
    options = [
        "breast_cancer",
        "--epochs",
        "3",
        "--seeds",
        "2",
        "--label-noise",
        "0.2",
        "--top",
        "5",
        "--out",
        str(tmp_path / "run"),
    ]
    tyro.cli(Labels, args=options).run()
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "The most suspicious labels",
        "Flipped labels found",
        "AP of one seed",
        "margin",
        "suspects: ",
        "page: ",
    ):
        assert words in said
    assert len((tmp_path / "run" / "suspects.csv").read_text().splitlines()) == 6
    html = (tmp_path / "run" / "index.html").read_text()
    for words in (
        "<svg",
        "Which classes?",
        "How well does it find wrong labels?",
        "flipped?",
        "breast_cancer",
        "What it cannot see".lower(),
    ):
        assert words in html
    assert not re.search(r"(src|href)=.?https?:", html)
    for name in ("map", "precision"):
        assert (tmp_path / "run" / "plots" / f"{name}.png").exists()


def test_the_code_on_the_page_runs():
    names = {}
    exec(labels_page.labels_page(found()).code, names)
    assert names["suspects"].shape == (569,)


@pytest.mark.parametrize("objective", ["comp-sum:1.7", "ce+sam:0.05", "ce+weight-decay:0.001"])
def test_other_objectives_are_watched(objective):
    dynamics = labels.watch(
        replace(QUESTION, objective=objective, epochs=2), labels.rows_of(QUESTION.source.load(0)), 0
    )
    assert (dynamics.seen == 2).all()
    assert dynamics.loss.isfinite().all()


def test_a_loss_that_attacks_the_model_cannot_be_watched():
    class Attack:
        pass

    with pytest.raises(LegatoValueError, match="objective: expected a loss of outputs and labels; got Attack"):
        labels.watched(Attack(), Dynamics(3, 2))
    kept = labels.watched(training.Criterion(torch.nn.CrossEntropyLoss()), Dynamics(3, 2))
    assert len(kept.terms) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 1}, "epochs: expected a whole number >= 2"),
        ({"seeds": 0}, "seeds: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number > 0"),
        ({"learning_rate": 1e12}, "learning_rate: expected one at which the training stays finite.*--learning-rate 1e"),
        ({"label_noise": 1.0}, "label_noise: expected"),
        ({"measure": "margins"}, "Did you mean 'margin'"),
        ({"noise_kind": "pairs"}, "Did you mean 'pair'"),
        ({"objective": "ce+ema:0.9"}, "objective: .*got ema, which changes only what is evaluated"),
        ({"objective": "cee"}, "objectives"),
    ],
)
def test_what_cannot_be_asked_is_named(changes, words):
    with pytest.raises(LegatoValueError, match=words):
        labels.find(replace(QUESTION, **changes))


def test_a_negative_top_is_named():
    with pytest.raises(LegatoValueError, match="top: expected a whole number >= 0"):
        tyro.cli(Labels, args=["--top", "-1"]).run()
