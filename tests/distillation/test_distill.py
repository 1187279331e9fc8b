"""The whole way: limits, resuming, the best by validation, files, and every bad input."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from legato.distillation import (
    DistilledSet,
    Expert,
    FlatModel,
    Preprocessing,
    Recipe,
    Schooling,
    Settings,
    distill,
    graded,
    label_robust_score,
    preset,
    student_accuracy,
    train_student,
)
from legato.distillation import anytime as module
from legato.distillation.outer_loop import NotFiniteError, OuterLoop
from legato.distillation.rows import accuracy, check_rows
from legato.errors import CheckpointError, LegatoValueError, LegatoWarning

QUICK = {
    "recipe": Recipe(epochs=3, batch_size=16, learning_rate=0.1), "settings": Settings(student_steps=3, expert_epochs=1, max_start=2, alpha=0.1),
    "schooling": Schooling(steps=10), "experts": 2, "evaluate_every": 2, "minutes": None,
}  # fmt: skip


def rows(n=60, classes=3, seed=0):
    """Bytes, with another bright corner for each class."""
    numbers = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randint(0, 120, (n, 1, 4, 4), generator=numbers)
    x[torch.arange(n), 0, y] += 60
    return x.to(torch.uint8), y


def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def run(**options):
    return distill(rows(), **{"val": rows(seed=1), "net": net, "steps": 4, **QUICK, **options})


def settings(**options):
    return dataclasses.replace(QUICK["settings"], **options)


def test_it_gives_ipc_images_of_each_class_that_differ_from_the_real_ones():
    tiny = run(ipc=2)
    assert tiny.images.shape == (6, 1, 4, 4)
    assert tiny.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert tiny.ipc == 2
    assert tiny.alpha > 0
    assert [entry["step"] for entry in tiny.provenance["history"]] == [0, 2, 4]


def test_the_best_by_validation_is_kept_and_the_real_images_compete(monkeypatch):
    scores = iter([0.5, 0.9, 0.7])
    seen = []

    def scripted(net, found, held, *rest, **options):
        seen.append(found[0].clone())
        return next(scores)

    monkeypatch.setattr(module, "student_accuracy", scripted)
    tiny = run()
    assert (tiny.validation, tiny.steps) == (0.9, 2)
    assert torch.equal(tiny.images, seen[1])
    assert not torch.equal(seen[1], seen[2])
    prepared = Preprocessing.fit(rows()[0]).apply(rows()[0])
    assert all(bool((prepared == image).flatten(1).all(1).any()) for image in seen[0])


def test_images_and_step_size_move_as_the_formula_says():
    """One step by hand: capped SGD on the images, Adam on the logarithm of the step size."""
    from legato.distillation import Match, unrolled_grad

    x, y = torch.randn(3, 1, 4, 4), torch.arange(3)
    flat = FlatModel(net())
    numbers = torch.Generator().manual_seed(2)
    weights = torch.stack([flat.weights() + 0.1 * k * torch.randn(flat.size, generator=numbers) for k in range(3)])
    expert = Expert(weights, weights[-1], (), (), {})
    for lr_pixels, cap in ((1.0, 1e6), (1e6, 0.01)):
        asked = settings(max_start=1, expert_epochs=2, lr_pixels=lr_pixels, cap=cap)
        loop = OuterLoop(flat, [expert], (x, y), asked)
        loss = loop.step()
        match = Match(weights[2], weights[0])
        found = unrolled_grad(flat.cross_entropy(), weights[0], x, y, [torch.arange(3)] * 3, {3: match}, alpha=0.1)
        assert loss == pytest.approx(float(found.loss), rel=1e-5)
        move = lr_pixels * found.images_grad
        move = move * min(1.0, cap * float(x.norm()) / float(move.norm()))
        torch.testing.assert_close(loop.images, x - move, rtol=1e-4, atol=1e-6)
        assert loop.alpha == pytest.approx(0.1 * np.exp(-0.02 * np.sign(float(found.alpha_grad))), rel=1e-4)


def test_descent_brings_the_students_nearer_to_the_experts():
    tiny = run(steps=60, evaluate_every=10, settings=settings(student_steps=5))
    losses = [entry["loss"] for entry in tiny.provenance["history"][1:]]
    assert losses[-1] < 0.8 * losses[0]


def test_equal_seeds_give_equal_sets_and_other_seeds_other_ones(tmp_path):
    files = [run(settings=settings(seed=seed)).save(tmp_path / f"{i}.safetensors") for i, seed in enumerate((3, 3, 4))]
    assert files[0].read_bytes() == files[1].read_bytes()
    first, other = (DistilledSet.load(file) for file in files[::2])
    assert not torch.equal(first.images, other.images)


PARTS = {
    "augment": {"augment": True}, "batch": {"batch": 2}, "balance": {"balance": True}, "perturb": {"perturb": 1.0}, "momentum": {"momentum": 0.9},
    "mid points": {"mid_points": "equal", "expert_epochs": 2, "student_steps": 6}, "noise": {"init": "noise"},
    "kmeans": {"init": "kmeans-pixel"}, "logits": {"init": "kmeans-logit"},
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_every_part_changes_the_result(part):
    asked = settings(expert_epochs=2, student_steps=6) if part == "mid points" else settings()
    plain, changed = (run(settings=s, steps=2) for s in (asked, settings(**PARTS[part])))
    assert not torch.equal(plain.images, changed.images)
    assert torch.isfinite(changed.images).all()


def test_micro_batches_change_nothing_but_the_memory():
    plain, cut = (run(ipc=2, settings=settings(micro_batch=m, augment=True)) for m in (None, 4))
    torch.testing.assert_close(plain.images, cut.images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"batch": 2, "augment": True, "perturb": 1.0}])
def test_a_stopped_run_ends_where_an_unbroken_one_does(tmp_path, monkeypatch, options):
    whole = run(steps=6, settings=settings(**options))
    step, calls = OuterLoop.step, itertools.count()

    def broken(loop):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return step(loop)

    monkeypatch.setattr(module.Checkpoints, "due", lambda self: True)
    with monkeypatch.context() as patch:
        patch.setattr(OuterLoop, "step", broken)
        with pytest.raises(KeyboardInterrupt):
            run(steps=6, folder=tmp_path, settings=settings(**options))
    resumed = run(steps=6, folder=tmp_path, settings=settings(**options))
    assert torch.equal(resumed.images, whole.images)
    assert resumed.provenance["history"] == whole.provenance["history"]
    wide = lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3))  # noqa: E731
    for word, changed in {"ipc": {"ipc": 2}, "preprocessing": {"zca": True}, "network": {"net": wide}}.items():
        with pytest.raises(CheckpointError, match=f"holds another run: its {word} differ"):
            run(**{"steps": 6, "folder": tmp_path, "settings": settings(**options), **changed})


def test_minutes_end_a_run_and_everybody_is_told(monkeypatch):
    clock = itertools.count(step=0.7)
    monkeypatch.setattr(module.Clock, "seconds", lambda self: next(clock))
    told = []
    tiny = run(minutes=0.2, steps=None, log=told.append)
    assert 0 < tiny.provenance["history"][-1]["step"] < 20
    assert [t.phase for t in told].index("images") > 0
    assert told[-1].done > 0.9
    assert all(t.words for t in told)


def test_experts_stop_at_a_third_of_the_minutes_but_there_is_one(monkeypatch):
    clock = itertools.count(30.0)
    monkeypatch.setattr(module.Clock, "seconds", lambda self: next(clock))
    assert run(minutes=1.0, steps=1, experts=2).provenance["experts"] == 1


def test_numbers_that_are_not_finite_end_the_run_at_the_last_good_set(monkeypatch):
    step = OuterLoop.step

    def fails(loop):
        if loop.taken == 3:
            with torch.no_grad():
                loop.log_alpha += 80.0
        return step(loop)

    monkeypatch.setattr(OuterLoop, "step", fails)
    with pytest.warns(
        LegatoWarning, match="outer step 3: the loss or its gradient is not finite. Fix: a lower lr_pixels"
    ):
        tiny = run(steps=8)
    assert "outer step 3" in tiny.stopped
    assert torch.isfinite(tiny.images).all()
    assert tiny.steps in (0, 2)


def test_a_step_that_fails_moves_nothing():
    flat = FlatModel(net())
    weights = torch.stack([flat.weights() + 0.1 * k for k in range(3)])
    loop = OuterLoop(
        flat,
        [Expert(weights, weights[-1], (), (), {})],
        (torch.randn(3, 1, 4, 4), torch.arange(3)),
        settings(alpha=1e30),
    )
    before = loop.images.clone()
    with pytest.raises(NotFiniteError):
        loop.step()
    assert torch.equal(loop.images, before)


def test_students_that_move_away_are_reported(monkeypatch):
    monkeypatch.setattr(OuterLoop, "step", lambda loop: setattr(loop, "taken", loop.taken + 1) or 1.5)
    with pytest.warns(LegatoWarning, match="above 1 for 60 steps"):
        run(steps=61, evaluate_every=100)


def test_a_file_holds_everything(tmp_path):
    tiny = run(zca=True, class_names=("a", "b", "c"))
    again = DistilledSet.load(tiny.save(tmp_path / "tiny.safetensors"))
    for name in ("images", "labels"):
        assert torch.equal(getattr(again, name), getattr(tiny, name))
    raw = rows(seed=5)[0]
    assert torch.equal(again.preprocessing.apply(raw), tiny.preprocessing.apply(raw))
    torch.testing.assert_close(
        again.preprocessing.invert(again.preprocessing.apply(raw)), raw / 255, rtol=1e-4, atol=1e-4
    )
    assert again.provenance == tiny.provenance
    assert (again.alpha, again.validation, again.steps, again.class_names) == (
        tiny.alpha,
        tiny.validation,
        tiny.steps,
        ("a", "b", "c"),
    )
    assert (tmp_path / "tiny.json").exists()
    from safetensors.torch import save_file

    save_file({"images": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is no distilled set"):
        DistilledSet.load(tmp_path / "other.safetensors")


def test_the_grid_is_the_pictures(tmp_path):
    raw = torch.zeros(6, 1, 32, 32)  # two a class
    raw[0, 0, 0, 0], raw[2], raw[1] = 1.0, 0.25, 0.5
    plain = Preprocessing(torch.zeros(1), torch.ones(1))
    tiny = DistilledSet(raw, torch.arange(3).repeat_interleave(2), 0.1, plain, 0.5, 0)
    with Image.open(tiny.grid(tmp_path / "grid.png")) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2 * 68, 3 * 68)
    assert pixels[2, 2] == pixels[0, 0] == 255
    assert (pixels[10, 10], pixels[10, 68 + 10], pixels[68 + 10, 10]) == (0, 64, 128)
    colour = dataclasses.replace(
        tiny, images=torch.rand(6, 3, 5, 5), preprocessing=Preprocessing(torch.zeros(3), torch.ones(3))
    )
    with Image.open(colour.grid(tmp_path / "colour.png")) as image:
        assert image.mode == "RGB"


def test_a_set_trains_students_and_loaders():
    tiny = run(ipc=2)
    model = net()
    before = accuracy(model, tiny.rows)
    assert tiny.train_student(model, schooling=Schooling(steps=30)) is model
    assert accuracy(model, tiny.rows) > before
    assert not model.training
    assert len(tiny.as_dataset()) == 6


def test_vectors_work_and_have_no_pictures():
    numbers = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 100 * (torch.randn(60, 5, generator=numbers) + 2 * torch.eye(5)[y])
    tiny = distill((x, y), val=(x, y), net=lambda: nn.Linear(5, 3), steps=3, **QUICK)
    assert tiny.images.shape == (3, 5)
    with pytest.raises(LegatoValueError, match="pictures: expected a set of images"):
        tiny.pictures()


def test_students_are_judged_at_the_end_with_the_rate_that_validation_chose():
    x, y = Preprocessing.fit(rows()[0]).apply(rows()[0]), rows()[1]
    train, val, test = (x[:20], y[:20]), (x[20:40], y[20:40]), (x[40:], y[40:])
    schooling = Schooling(steps=20)
    found = graded(net, [train, train], val, test, rates=(1e-6, 0.1), schooling=schooling, seed=4)
    assert found.learning_rate == 0.1
    assert found.accuracies == tuple(student_accuracy(net, train, test, 0.1, schooling, seed=4 + k) for k in range(2))
    on_val = [student_accuracy(net, train, val, 0.1, schooling, seed=4 + k) for k in range(2)]
    assert found.validation == pytest.approx(sum(on_val) / 2)
    assert graded(net, [train], val, None, rates=(0.1,), schooling=schooling, seed=4).accuracies == (on_val[0],)


def test_the_score_is_zero_at_the_worst_and_one_at_the_best():
    assert label_robust_score(1.0, 0.0, 1.0) == pytest.approx(0.0)
    assert label_robust_score(0.0, 1.0, 0.0) == pytest.approx(1.0)
    assert label_robust_score(0.9, 0.7, 0.5) == pytest.approx((1 - np.exp(-1)) / (np.e - np.exp(-1)))


def test_a_students_rate_falls_at_half_time():
    """With one batch a step: the second half of a run of two steps moves a tenth as far as the first by its own gradient."""
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    twin = nn.Linear(4, 3)
    twin.load_state_dict(model.state_dict())
    train_student(model, (x, y), 0.1, Schooling(steps=2, momentum=0.0, weight_decay=0.0))
    for rate in (0.1, 0.01):
        twin.zero_grad()
        nn.functional.cross_entropy(twin(x), y).backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter -= rate * parameter.grad
    torch.testing.assert_close(model.weight, twin.weight)


def test_the_presets_are_what_the_codes_have():
    recipe, found = preset("ast")
    assert (recipe.learning_rate, recipe.momentum, recipe.gradient_penalty, recipe.penalty_weight) == (
        0.003,
        0.9,
        "channel",
        2.0,
    )
    assert (found.momentum, found.perturb, found.mid_points, found.balance, found.alpha) == (
        0.9,
        1.0,
        "equal",
        True,
        0.01,
    )
    found.check(recipe)
    assert preset("mtt") == (Recipe(), Settings())
    with pytest.raises(LegatoValueError, match="parts: expected one of ast, mtt"):
        preset("msst")


BAD_ROWS = {
    r"inputs: expected images \[N, C, H, W\]": (torch.zeros(4, 2, 2), torch.arange(4) % 2),
    "inputs: expected images": (torch.zeros(4, 1, 2, 2, dtype=torch.int64), torch.arange(4) % 2),
    "targets: expected int64 class indices": (torch.zeros(4, 1, 2, 2), torch.zeros(4)),
    r"targets: expected int64 class indices of shape \[4\]": (torch.zeros(4, 1, 2, 2), torch.arange(3)),
    "floats in 0 .. 1, or uint8; got floats in 0 .. 255": (255 * torch.eye(4).view(4, 1, 2, 2), torch.arange(4) % 2),
    "NaN or infinity in 1 rows, the first is row 2": (torch.tensor([0, 0, torch.nan, 0]).view(4, 1, 1, 1), torch.arange(4) % 2),
    "at least two classes": (torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)),
    r"rows of every class 0 .. 3; got none of \[1, 2\]": (torch.zeros(2, 1, 2, 2), torch.tensor([0, 3])),
    r"classes 0 .. C-1; got -1 .. 1": (torch.zeros(2, 1, 2, 2), torch.tensor([-1, 1])),
}  # fmt: skip


@pytest.mark.parametrize("text", BAD_ROWS)
def test_rows_that_cannot_be_learned_from_say_why(text):
    with pytest.raises(LegatoValueError, match=text):
        check_rows("train", BAD_ROWS[text])


def test_arguments_that_cannot_work_say_why():
    with pytest.raises(LegatoValueError, match=r"val: targets: expected classes 0 .. 2; got 0 .. 3"):
        run(val=rows(classes=4))
    with pytest.raises(LegatoValueError, match=r"ipc: expected 1 .. 20, the rows of class 0, the smallest; got 21"):
        run(ipc=21)
    with pytest.raises(LegatoValueError, match=r"max_start: expected at most 3 = epochs \+ 1 - expert_epochs"):
        run(settings=settings(max_start=4))
    with pytest.raises(LegatoValueError, match="running statistics"):
        run(net=lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)))
    for name, options in {
        "ipc": {"ipc": 0}, "experts": {"experts": 0}, "evaluate_every": {"evaluate_every": 0}, "steps": {"steps": 0},
        "minutes: expected a number > 0": {"minutes": 0.0}, "minutes, steps: expected at least one limit": {"steps": None},
    }.items():  # fmt: skip
        with pytest.raises(LegatoValueError, match=name):
            run(**options)
    for name, options in {
        "expert_epochs": {"expert_epochs": 4}, "Did you mean 'kmeans-logit'": {"init": "kmeans-logits"}, "max_start": {"max_start": 0},
        "batch": {"batch": 0}, "lr_pixels": {"lr_pixels": 0.0}, "alpha": {"alpha": -0.1},
    }.items():  # fmt: skip
        with pytest.raises(LegatoValueError, match=name):
            settings(**options)
    with pytest.raises(LegatoValueError, match="steps, batch_size"):
        Schooling(steps=0)


def test_an_expert_that_did_not_move_is_named():
    flat = FlatModel(net())
    moved = torch.stack([flat.weights() + 0.1 * k for k in range(4)])
    still = torch.stack([moved[0], moved[1], moved[1], moved[2]])
    experts = [Expert(weights, weights[-1], (), (), {}) for weights in (moved, still)]
    with pytest.raises(LegatoValueError, match="expert 1 did not from epoch 1 to 2"):
        OuterLoop(flat, experts, (torch.randn(3, 1, 4, 4), torch.arange(3)), settings())
