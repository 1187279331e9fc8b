"""`legato distill` in small: the comparison, its page, and the command."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from legato import data, nets
from legato.cli.distill import Distill
from legato.distillation import DistilledSet, Graded, Preprocessing, Recipe, Schooling, Settings
from legato.errors import LegatoValueError
from legato.lab import page
from legato.studies import distil, distil_page
from legato.studies.distil import ARMS, SELECTIONS, TINY, Asked, Made

SMALL = Asked(
    ipc=1, minutes=None, steps=2, width=2, settings=Settings(student_steps=2, expert_epochs=1, max_start=1), recipe=Recipe(epochs=1),
    schooling=Schooling(steps=4), experts=1, students=2, cross=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    told = []
    splits = data.load("digits")
    return distil.make(splits, SMALL, tmp_path_factory.mktemp("run"), told.append), told, splits


def test_every_arm_is_graded_on_the_test_rows(made):
    found, told, splits = made
    assert tuple(found.arms) == ARMS
    assert all(len(graded.accuracies) == 2 for graded in found.arms.values())
    assert all(
        a * len(splits.test) == pytest.approx(round(a * len(splits.test)), abs=1e-6)
        for g in found.arms.values()
        for a in g.accuracies
    )
    assert tuple(found.others) == distil.OTHERS
    assert all(tuple(arms) == (TINY, *SELECTIONS) for arms in found.others.values())
    assert [t.phase for t in told][-1] == "students"
    assert told[-1].done == 1
    assert found.peak_mib > 50


def test_random_images_are_drawn_anew_for_each_student_and_all_is_all(made):
    found, _, splits = made
    seen = distil.prepared(found.tiny.preprocessing, (splits.train.inputs, splits.train.targets), "cpu")
    sets = distil.arm_sets(found.tiny, seen, 2, 0)
    assert not torch.equal(sets["random"][0][0], sets["random"][1][0])
    assert torch.equal(sets["herding"][0][0], sets["herding"][1][0])
    assert len(sets["all data"][0][1]) == len(splits.train)
    assert all(len(rows[1]) == 10 for arm in (TINY, *SELECTIONS) for rows in sets[arm])


def graded(*accuracies):
    return Graded(0.1, 0.5, accuracies)


def by_hand(**arms):
    plain = Preprocessing(torch.zeros(1), torch.ones(1))
    history = [{"step": k, "loss": 0.5, "alpha": 0.1, "validation": 0.5} for k in (0, 30)]
    provenance = {"history": history, "experts": 1, "expert_errors": [0.1], "settings": {"momentum": 0.0}}
    tiny = DistilledSet(torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), 0.1, plain, 0.5, 30, ("a", "b"), "", provenance)
    return Made(tiny, dict(zip(ARMS, arms["scores"], strict=True)), {}, 1.0, 1.0, 100.0)


def test_the_verdict_says_what_was_measured():
    better = by_hand(
        scores=[
            graded(0.8, 0.82, 0.81),
            graded(0.6, 0.61, 0.62),
            graded(0.9, 0.93, 0.91),
            graded(0.7, 0.7, 0.7),
            graded(0.99, 0.99, 0.99),
        ]
    )
    words = distil_page.verdict(better)
    assert "1 a class reach 81.0% of test rows" in words
    assert "Better than random: shows, 20.0" in words
    assert "better than k-means: does not show, -10.3" in words
    assert distil_page.table({"random": graded(0.9, 1.0)}).rows[0][1].text.endswith(", 100.0]")
    a = ((0.81 - 0.61) - (0.99 - 0.81)) / 2
    assert f"score {(np.exp(a) - np.exp(-1)) / (np.e - np.exp(-1)):.2f}" in words
    unsure = by_hand(scores=[graded(0.8, 0.6, 0.7), *[graded(0.6, 0.8, 0.6)] * 4])
    assert "better than random: undecided" in distil_page.verdict(unsure).lower()


def test_the_page_shows_pictures_curves_and_other_networks(made):
    found, _, _ = made
    shown = distil_page.build(found, SMALL, "digits", "legato distill digits")
    assert [panel.title for panel in shown.panels] == ["The distilled images", "How it went", "Other networks"]
    assert len(shown.panels[0].pictures) == 10
    assert len(shown.panels[2].tables) == len(distil.OTHERS)
    assert "legato distill digits" in page.render(shown)


def test_the_command_makes_a_set_that_loads_and_says_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Distill, "_asked", lambda self: SMALL)
    out = tmp_path / "out"
    Distill("digits", out=out).run()
    printed = capsys.readouterr().out
    assert "1151 rows to learn from, 287 to choose, 359 to report" in printed
    assert re.search(r"distilled +[\d.]+ \[", printed)
    tiny = DistilledSet.load(out / "tiny.safetensors")
    assert tiny.images.shape == (10, 1, 8, 8)
    assert {path.name for path in out.iterdir()} >= {"index.html", "tiny.png", "tiny.json"}


def test_options_reach_the_settings():
    asked = Distill("digits", ipc=3, steps=5, parts="ast", init="noise", seed=7, augment=False)._asked()
    assert (asked.steps, asked.minutes, asked.ipc) == (5, None, 3)
    assert (asked.settings.perturb, asked.settings.init, asked.settings.seed, asked.settings.augment) == (
        1.0,
        "noise",
        7,
        False,
    )
    assert asked.recipe.gradient_penalty == "channel"
    plain = Distill("digits", minutes=2.0, augment=True)._asked()
    assert (plain.minutes, plain.settings.init, plain.settings.perturb) == (2.0, "random", 0.0)
    assert plain.settings.augment and plain.recipe.augment and plain.schooling.augment


@pytest.mark.parametrize(
    ("shape", "depth"),
    [((1, 8, 8), 2), ((3, 9, 11), 2), ((1, 28, 28), 3), ((3, 32, 32), 3), ((3, 64, 64), 4), ((1, 4, 4), 1)],
)
def test_the_convnet_of_the_papers(shape, depth):
    model = nets.build("blocks", shape, 7)
    assert model(torch.randn(2, *shape)).shape == (2, 7)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in model) == depth
    assert not list(model.buffers())


def test_the_command_to_run_again_has_what_differs_and_no_path():
    asked = Distill("/home/somebody/digits.npz", ipc=3, zca=True, image_size=8, out=Path("/tmp/x"), device="cpu")
    assert asked._command() == "legato distill digits.npz --ipc 3 --image-size 8 --zca"


def test_its_size_is_the_papers_and_bad_sizes_are_refused():
    assert sum(p.numel() for p in nets.blocks((3, 32, 32), 10, width=128).parameters()) == 320_010
    for options in ({"width": 0}, {"depth": 0}):
        with pytest.raises(LegatoValueError, match="width, depth: expected whole numbers >= 1"):
            nets.blocks((1, 8, 8), 2, **options)
    with pytest.raises(LegatoValueError, match="pictures of shape"):
        nets.blocks((8,), 2)
