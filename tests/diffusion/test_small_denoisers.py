"""From pictures to a denoiser in a folder, tuned, measured, morphed: the commands, small."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from legato import data
from legato.cli import main
from legato.diffusion import DenoisingObjective, SmoothnessRegularizer, class_condition, scaled_linear, slerp
from legato.errors import CheckpointError, DataError, LegatoValueError
from legato.lab.trial import Record, plain_json
from legato.nets import MLPDenoiser
from legato.studies import denoise, denoise_morph, denoise_tuned, smooth_diffusion, verdicts
from legato.training import fit

pytest.importorskip("peft")
RECIPE = denoise.Recipe(width=32, steps=30, batch_size=64)


@pytest.fixture(scope="module")
def splits():
    return denoise.pictures(data.load("digits"))


@pytest.fixture(scope="module")
def known(splits):
    return denoise.train(splits, RECIPE)[0]


def test_pictures_are_in_minus_one_to_one(splits):
    for part in (splits.train, splits.test):
        assert (float(part.inputs.min()), float(part.inputs.max())) == (-1, 1)
    with pytest.raises(DataError, match="pictures; got vectors in breast_cancer"):
        denoise.pictures(data.load("breast_cancer"))


def test_training_lowers_the_loss_and_keeps_the_average(splits, known):
    part = splits.validation
    torch.manual_seed(0)
    fresh = known.with_model(MLPDenoiser(known.shape, 10, width=32))
    before, after = (
        denoise.noise_loss(k.denoiser, part.inputs, k.about(part.targets), passes=1) for k in (fresh, known)
    )
    assert after < before - 0.02
    assert all(p.requires_grad for p in known.model.parameters())


@pytest.mark.parametrize("net", ["mlp", "unet"])
def test_a_saved_denoiser_is_the_same_again(net, splits, known, tmp_path):
    if net == "unet":
        pytest.importorskip("diffusers")
        torch.manual_seed(0)
        known = known.with_model(denoise.build("unet", (1, 8, 8), 10, 16).eval())
    denoise.save(known, replace(RECIPE, net=net, width=16 if net == "unet" else 32), tmp_path / "m", note=1)
    again = denoise.load(tmp_path / "m")
    noise, about = torch.randn(3, 1, 8, 8), known.about(torch.tensor([1, 5, 10]))
    made = [denoise.sampled(k, noise, about, steps=4) for k in (known, again)]
    torch.testing.assert_close(*made, rtol=1e-5, atol=1e-6)  # the scheduler of a file has its levels in float32
    assert again.class_names == splits.class_names
    assert json.loads((tmp_path / "m" / "legato.json").read_text())["note"] == 1


def test_folders_that_hold_no_denoiser_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="legato train-diffusion"):
        denoise.load(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(LegatoValueError, match=r"StableDiffusionPipeline.*legato\.diffusion in Python"):
        denoise.load(tmp_path)
    with pytest.raises(LegatoValueError, match="Did you mean 'unet'"):
        denoise.build("unett", (1, 8, 8), 3, 16)


def test_the_twin_and_the_smooth_one_begin_at_the_model_and_differ_by_the_penalty(splits, known):
    weights = {name: value.clone() for name, value in known.model.state_dict().items()}
    tuning = denoise_tuned.Tuning(steps=18, lam=0.0)
    twin, again, smooth = (denoise_tuned.tune(known, splits, t)[0] for t in (tuning, tuning, replace(tuning, lam=3.0)))
    assert all(torch.equal(value, weights[name]) for name, value in known.model.state_dict().items())
    states = [k.model.state_dict() for k in (twin, again, smooth)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert sum(p.numel() for p in twin.model.parameters() if p.requires_grad) == 6 * 2 * 32 * 8
    moved = [name for name in states[0] if not torch.equal(states[0][name], states[2][name])]
    assert moved
    assert all(".lora_" in name for name in moved)


def test_a_run_that_breaks_off_goes_on_bit_for_bit(splits, tmp_path):
    def run(folder, stop=None):
        torch.manual_seed(0)
        model = MLPDenoiser((1, 8, 8), 10, width=16)
        term = SmoothnessRegularizer(1.0, every=2)
        made, taken = DenoisingObjective(scaled_linear(100), class_condition(10), term, seed=1), []
        plain = made.after_step

        def after(model):
            taken.append(1)
            if stop == len(taken):
                raise InterruptedError
            plain(model)

        made.after_step = after
        part = splits.train
        batches = data.Batches(part.inputs[:96], part.targets[:96], part.index[:96], 16, seed=0)
        fit(
            model,
            made,
            batches,
            epochs=2,
            optimizer=lambda p: torch.optim.Adam(p, lr=1e-3),
            folder=folder,
            checkpoint_seconds=0,
        )
        return model.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "broken", stop=9)
    again = run(tmp_path / "broken")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_walks_have_the_same_noises_for_every_network_and_a_retimed_one_is_more_even(known):
    way = denoise_tuned.interpolations(known, 4, points=5, steps=3, seed=7)
    assert way.shape == (5, 4, 1, 8, 8)
    generator = torch.Generator().manual_seed(7)
    a, b = (torch.randn(4, 1, 8, 8, generator=generator) for _ in range(2))
    middle = denoise.sampled(known, slerp(a, b, 0.5), known.about(torch.arange(4)), steps=3)
    torch.testing.assert_close(way[2], middle, rtol=1e-4, atol=1e-5)
    plain, even = (denoise_tuned.evenness_of(known, 4, steps=3, retime=retime) for retime in (False, True))
    assert even.cv < plain.cv / 3


def pictures_of(splits, folder):
    paths = []
    for place in (0, 1):
        paths.append(folder / f"{place}.png")
        Image.fromarray(denoise.as_bytes(splits.test.inputs[place, 0]).numpy()).save(paths[-1])
    return paths


def test_a_film_begins_and_ends_at_its_pictures(splits, known, tmp_path):
    a, b = pictures_of(splits, tmp_path)
    film = denoise_morph.morph(known, a, b, 6, steps=50)
    assert film.frames.shape == (6, 1, 8, 8)
    assert float(film.ends.mse.max()) < 0.02
    denoise_morph.write_gif(film.frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as made:
        assert made.n_frames == 10  # there and back
        assert made.size == (256, 256)
    sheet = denoise.sheet(film.frames.split(3), tmp_path / "sheet.png")
    with Image.open(sheet) as made:
        assert made.size == (3 * 9 * 8, 2 * 9 * 8)
    for options, words in (
        ({"frames": 2}, "frames"),
        ({"scale": 3.0}, "scale"),
        ({"label": "11"}, "label"),
        ({"label": "zero"}, "label"),
    ):
        with pytest.raises(LegatoValueError, match=words):
            denoise_morph.morph(known, a, b, **options)
    with pytest.raises(LegatoValueError, match="another picture"):
        denoise_morph.morph(known, a, a)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png"):
        denoise_morph.morph(known, a, tmp_path / "text.png")


def test_the_commands_from_training_to_film(splits, tmp_path, capsys):
    model, out = str(tmp_path / "m"), str(tmp_path / "s")
    assert main(["train-diffusion", "digits", "--width", "32", "--steps", "18", "--out", model]) == 0
    assert (tmp_path / "m" / "samples.png").exists()
    assert (
        main(
            [
                "smooth",
                "--model",
                model,
                "--lambda",
                "2",
                "--steps",
                "9",
                "--pairs",
                "4",
                "--estimator",
                "fd",
                "--out",
                out,
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert all(words in told for words in ("model as it is", "twin, lambda 0", "smooth, lambda 2", "spread of v"))
    assert (
        main(
            [
                "istd",
                "--model",
                model,
                "--lora",
                f"{out}/smooth",
                "--pairs",
                "3",
                "--steps",
                "4",
                "--out",
                f"{out}/i.json",
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "s" / "i.json").read_text())["re-timed"]["pairs"] == 3
    a, b = pictures_of(splits, tmp_path)
    assert (
        main(["morph", str(a), str(b), "--model", model, "--frames", "4", "--steps", "5", "--out", f"{out}/f.gif"]) == 0
    )
    assert (tmp_path / "s" / "f.gif").exists()
    assert (tmp_path / "s" / "f.png").exists()
    assert main(["smooth", "--model", model, "--data", "fashion-mini", "--steps", "9"]) == 2
    assert "as digits; got [1, 8, 8] of 10 in fashion-mini" in capsys.readouterr().err


def record(seed, arms, **base):
    metrics = {"base": base | {"retimed": {"istd": 0.1, "cv": 0.01, "mean_step": 1.0}}, "arms": arms}
    return Record(str(seed), {"seed": seed}, metrics, 1.0, "0")


def arm(lam, rate=1e-3, diverged=None, **metrics):
    return {"lam": lam, "rate": rate, "diverged": diverged, "noise_loss": 0.1, "cv": 0.2} | metrics


def test_rates_are_chosen_by_the_rule():
    """The twin by its loss; the others the most even within a tenth of it, where a rate is too costly however even."""
    losses = {3e-4: 0.10, 1e-3: 0.11, 3e-3: 0.13}
    evenness = {3e-4: 0.2, 1e-3: 0.15, 3e-3: 0.01}
    rows = [arm(lam, rate, noise_loss=loss, cv=evenness[rate]) for lam in (0.0, 1.0) for rate, loss in losses.items()]
    rows += [arm(10.0, rate, noise_loss=2 * loss, cv=evenness[rate]) for rate, loss in losses.items()]
    found = smooth_diffusion.tune([record(0, rows), record(1, rows)])
    assert found == {"rates": {"0": 3e-4, "1": 1e-3, "10": 3e-4}}
    confirm = smooth_diffusion.trials("confirm", found, [])
    assert [trial.seed for trial in confirm] == list(range(100, 110))
    assert confirm[0].arms == ((0.0, 3e-4), (1.0, 1e-3), (10.0, 3e-4))
    assert all(trial.reads_test for trial in confirm)
    full = smooth_diffusion.trials("full", {}, [])
    assert [trial.seed for trial in full] == list(range(5))
    assert len(full[0].arms) == 9
    assert not any(trial.reads_test for trial in full)


def test_every_claim_has_its_measure_as_a_share_of_the_twin():
    def whole(lam, **changed):
        numbers = {
            "istd": 1.0,
            "cv": 0.2,
            "spread": 0.4,
            "frechet": 2.0,
            "round_trip": {"3": 0.1, "7.5": 1.0},
            "retimed": {"cv": 0.02},
        }
        return arm(lam, **(numbers | changed))

    smooth = whole(1.0, istd=0.8, cv=0.1, spread=0.3, frechet=2.5, round_trip={"3": 0.11, "7.5": 0.5})
    found = smooth_diffusion.measures([record(0, [whole(0.0), smooth, whole(10.0, istd=0.5)])])
    want = {
        "smooth-istd": 0.2, "smooth-istd-ten": 0.5, "smooth-cv": 0.5, "smooth-constant": 0.25, "smooth-inversion": 0.5,
        "smooth-inversion-mild": -0.1, "smooth-quality": -0.25, "smooth-retimed": -0.4,
    }  # fmt: skip
    assert {name: float(values[0]) for name, values in found.items()} == pytest.approx(want)
    tested = {claim.id for claim in verdicts.claims_of("2312.04410") if claim.study}
    assert tested == want.keys()


def test_an_arm_that_diverged_counts_as_wholly_lost():
    rows = [arm(0.0, istd=1.0), arm(1.0, diverged="the loss is not finite"), arm(10.0, istd=0.5)]
    del rows[1]["cv"]
    found = smooth_diffusion.measures(
        [
            record(
                0,
                [
                    rows[0] | {"spread": 1.0, "frechet": 1.0, "round_trip": {"3": 1, "7.5": 1}, "retimed": {"cv": 0.1}},
                    rows[1],
                    rows[2],
                ],
            )
        ]
    )
    assert float(found["smooth-istd"][0]) == -1
    assert np.isfinite([values[0] for values in found.values()]).all()


def test_the_smoke_form_runs_and_draws(tmp_path):
    config = replace(
        smooth_diffusion.trials("smoke", {}, [])[0], base_steps=18, steps=9, pairs=3, samples=20, sampler_steps=3
    )
    outcome = smooth_diffusion.trial(config, tmp_path)
    found = Record("k", {}, plain_json(outcome.metrics, "metrics"), 1.0, "0")
    titles = [panel.title for panel in smooth_diffusion.panels([found])]
    assert titles == ["Arms", "The variation by timestep", "Walks"]
    table = smooth_diffusion.panels([found])[0].tables[0]
    assert [row[0].text for row in table.rows] == [
        "base, not tuned",
        "base, re-timed",
        "lambda 0, the twin",
        "lambda 1",
    ]
    assert table.columns[-1] == "MSE at 7.5"
