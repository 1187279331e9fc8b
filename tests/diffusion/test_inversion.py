"""DDIM against its gains on a Gaussian, null-text inversion against plain inversion, likeness against definitions."""

import math

import pytest
import torch
from known import Mixture, flow_schedule, generator, ideal, randn, schedule_for

from legato.diffusion import (
    Denoiser,
    ddim_invert,
    ddim_levels,
    ddim_sample,
    guided,
    likeness,
    null_text_inversion,
    reconstruct,
    round_trip,
    scaled_linear,
    switched,
)
from legato.errors import LegatoValueError


def gaussian(schedule, variance):
    return ideal(schedule, lambda x, alpha, sigma: alpha * variance / (alpha**2 * variance + sigma**2) * x)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("variance", "steps", "up", "down", "trip"),
    [
        (0.25, 50, 2.012220581840, 0.478573423317, 0.962995292321),
        (0.25, 10, None, None, 0.802662073712),
        (1.0, 50, None, None, 0.999191922489),
        (1.0, 10, None, None, 0.980550410630),
    ],
)
def test_each_step_on_a_gaussian_is_a_known_factor(prediction, variance, steps, up, down, trip):
    told = gaussian(schedule_for(prediction), variance)
    levels = ddim_levels(told.schedule, steps)
    x0 = randn(2, 3)
    way = ddim_invert(told, x0, levels)
    back = ddim_sample(told, way[-1], levels)
    torch.testing.assert_close(back / x0, torch.full_like(x0, trip), rtol=1e-10, atol=0)
    if up is not None:
        torch.testing.assert_close(way[-1] / x0, torch.full_like(x0, up), rtol=1e-10, atol=0)
        torch.testing.assert_close(back / way[-1], torch.full_like(x0, down), rtol=1e-10, atol=0)
    assert torch.equal(way[0], x0)
    assert way.shape == (steps + 1, 2, 3)


def test_a_network_that_always_says_the_same_is_inverted_exactly():
    fixed = randn(2, 3, seed=8)
    told = Denoiser(lambda x, t: fixed, scaled_linear())
    levels = ddim_levels(told.schedule, 20)
    x0 = randn(2, 3)
    torch.testing.assert_close(ddim_sample(told, ddim_invert(told, x0, levels)[-1], levels), x0, rtol=1e-10, atol=1e-12)


def test_flow_matching_takes_straight_steps():
    """Data in one point: from any noise the way to it is a line, in a single step as in many."""
    point = randn(1, 3, seed=4)
    told = ideal(flow_schedule(), lambda x, alpha, sigma: point.expand_as(x))
    noise = randn(2, 3)
    for steps in (1, 7):
        levels = ddim_levels(told.schedule, steps, "trailing")
        torch.testing.assert_close(ddim_sample(told, noise, levels), point.expand(2, 3), rtol=1e-10, atol=1e-12)


def test_many_steps_reach_the_distribution_of_the_data():
    """The flow of DDIM carries N(0, 1) to N(0, s^2): a map by s, apart from what is left of the data at the last level."""
    told = gaussian(scaled_linear(), 0.25)
    levels = ddim_levels(told.schedule, 999)
    gain = float((ddim_sample(told, torch.ones(1, 1, dtype=torch.float64), levels))[0, 0])
    end = float(told.schedule.alpha[-1] ** 2 * 0.25 + told.schedule.sigma[-1] ** 2)
    start = float(told.schedule.alpha[0] ** 2 * 0.25 + told.schedule.sigma[0] ** 2)
    assert gain == pytest.approx(math.sqrt(start / end), rel=4e-3)


def test_levels_are_those_of_stable_diffusion_or_end_in_noise():
    schedule = scaled_linear()
    assert ddim_levels(schedule, 50)[:3] == (0, 1, 21)
    assert ddim_levels(schedule, 50)[-1] == 981
    trailing = ddim_levels(schedule, 4, "trailing")
    assert trailing == (-1, 249, 499, 749, 999)
    for wrong, words in (((0,), "steps"), ((1000,), "steps"), ((5, "leadin"), "Did you mean 'leading'")):
        with pytest.raises(LegatoValueError, match=words):
            ddim_levels(schedule, *wrong)


class Pulled(torch.nn.Module):
    """The exact denoiser of a Gaussian around its condition, with some bend in it."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x, t, text):
        alpha, sigma = self.schedule.at(t, x)
        mean = torch.tanh(text)
        return sigma * (x - alpha * mean) / (alpha**2 * 0.25 + sigma**2)


def pulled():
    schedule = scaled_linear()
    return Denoiser(Pulled(schedule), schedule)


def test_guidance_goes_beyond_the_condition_and_its_ends_are_bit_for_bit():
    told, x, text, nothing = pulled(), randn(3, 4), randn(3, 4, seed=2), torch.zeros(1, 4, dtype=torch.float64)
    given, without = (told.output(x, 300, {"text": c}) for c in (text, nothing.expand(3, 4)))
    assert torch.equal(guided(told, 1.0, {"text": nothing}).output(x, 300, {"text": text}), given)
    assert torch.equal(guided(told, 0.0, {"text": nothing}).output(x, 300, {"text": text}), without)
    torch.testing.assert_close(
        guided(told, 3.0, {"text": nothing}).output(x, 300, {"text": text}),
        without + 3 * (given - without),
        rtol=1e-12,
        atol=0,
    )
    with pytest.raises(LegatoValueError, match=r"keywords \['text'\]; got \['txt'\]"):
        guided(told, 3.0, {"text": nothing}).output(x, 300, {"txt": text})
    with pytest.raises(LegatoValueError, match="nothing"):
        guided(told, 3.0, {})


@pytest.mark.parametrize("shared", [False, True])
def test_null_text_inversion_brings_guided_pictures_back(shared):
    told, text = pulled(), 0.5 * randn(2, 4, seed=2)
    x0 = torch.tanh(text) + 0.2 * randn(2, 4, seed=3)
    nothing = {"text": torch.zeros(1 if shared else 2, 4, dtype=torch.float64)}
    levels = ddim_levels(told.schedule, 12)
    plain = round_trip(told, x0, levels, {"text": text}, scale=5.0, nothing=nothing)
    found = null_text_inversion(told, x0, levels, {"text": text}, nothing, scale=5.0, rate=0.1, inner=30)
    again = reconstruct(told, found, levels, {"text": text}, scale=5.0)
    before, after = ((back - x0).square().mean() for back in (plain, again))
    assert after < (0.6 if shared else 0.05) * before
    assert len(found.nothing) == 12
    assert found.nothing[0]["text"].shape == nothing["text"].shape
    assert 0 < found.inner_steps <= 360
    assert not any(p.grad is not None for p in told.model.parameters())


def test_null_text_inversion_refuses_what_cannot_be_bent():
    told, x0 = pulled(), randn(2, 4)
    levels = ddim_levels(told.schedule, 5)
    for nothing, scale, words in (
        ({"y": torch.zeros(1, dtype=torch.int64)}, 3.0, "floating-point"),
        ({}, 3.0, "floating-point"),
        ({"text": x0}, 1.0, "scale"),
    ):
        with pytest.raises(LegatoValueError, match=words):
            null_text_inversion(told, x0, levels, {"text": x0}, nothing, scale=scale)


def test_an_edit_moves_to_the_target_and_keeps_the_source_at_ratio_zero():
    told, noise, levels = pulled(), randn(2, 4), ddim_levels(scaled_linear(), 20)
    source, target = {"text": torch.full((2, 4), -1.0).double()}, {"text": torch.full((2, 4), 1.0).double()}
    ends = [ddim_sample(told, noise, levels, c) for c in (source, target)]
    edits = [ddim_sample(told, noise, levels, switched(source, target, r, 20)) for r in (0.0, 0.3, 0.7, 1.0)]
    assert torch.equal(edits[0], ends[0])
    assert torch.equal(edits[3], ends[1])
    means = [float(edit.mean()) for edit in edits]
    assert means == sorted(means)
    assert [c is target for c in switched(source, target, 0.25, 8)] == [False] * 6 + [True] * 2
    with pytest.raises(LegatoValueError, match="ratio"):
        switched(source, target, 1.2, 20)
    with pytest.raises(LegatoValueError, match="condition: expected one, or one for each of 20 steps; got 19"):
        ddim_sample(told, noise, levels, [source] * 19)


def test_likeness_is_its_definition():
    x, y = randn(2, 3, 9, 8), randn(2, 3, 9, 8, seed=1)
    same = likeness(x, x)
    assert torch.equal(same.mse, torch.zeros(2).double())
    assert bool(same.psnr.isinf().all())
    torch.testing.assert_close(same.ssim, torch.ones(2).double())
    found = likeness(x, y)
    torch.testing.assert_close(found.psnr, 10 * torch.log10(4 / found.mse))
    values = []
    for c in range(3):
        for i in range(3):
            for j in range(2):
                a, b = (p[0, c, i : i + 7, j : j + 7].flatten() for p in (x, y))
                cov = torch.cov(torch.stack([a, b]))
                top = (2 * a.mean() * b.mean() + 0.02**2) * (2 * cov[0, 1] + 0.06**2)
                values.append(top / ((a.mean() ** 2 + b.mean() ** 2 + 0.02**2) * (cov[0, 0] + cov[1, 1] + 0.06**2)))
    torch.testing.assert_close(found.ssim[0], torch.stack(values).mean(), rtol=1e-10, atol=0)
    assert str(likeness(torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.2))).startswith("MSE 0.04, PSNR 20.00 dB")
    with pytest.raises(LegatoValueError, match="window"):
        likeness(x, y, window=9)
    with pytest.raises(LegatoValueError, match="pictures"):
        likeness(x, y[:1])


def test_mixtures_survive_the_way_there_and_back():
    narrow = Mixture(torch.tensor([[-1.0, 0], [1, 0]]).double(), 0.05 * torch.eye(2).double().expand(2, 2, 2))
    told = ideal(scaled_linear(), narrow)
    x0 = narrow.means[torch.tensor([0, 1, 1])] + 0.1 * torch.randn(3, 2, dtype=torch.float64, generator=generator(2))
    errors = [
        float((round_trip(told, x0, ddim_levels(told.schedule, n), {}) - x0).square().mean()) for n in (10, 40, 160)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
