"""Errors of pairs that differ in one thing alone, what pairs must be, and the gap by timestep."""

import math
import warnings

import pytest
import torch
from known import generator, randn, schedule_for
from torch import nn

from legato.diffusion import (
    Denoiser,
    check_pairs,
    condition_errors,
    denoising_errors,
    gap_by_timestep,
    image_errors,
    mean_squared_errors,
)
from legato.errors import LegatoValueError, LegatoWarning

PREDICTIONS = ["epsilon", "v_prediction", "sample", "flow"]


def controlled(prediction="epsilon"):
    """A network of [B, 2, 3] samples that hears a control."""
    torch.manual_seed(0)
    layer = nn.Linear(12, 6).double()
    return Denoiser(
        lambda x, t, control: layer(torch.cat([x, control], 1).flatten(1)).view_as(x), schedule_for(prediction)
    )


def sample(rows=4):
    return randn(rows, 2, 3), randn(rows, 2, 3, seed=1), torch.randint(1000, (rows,), generator=generator(2))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_error_is_the_mean_to_the_target(prediction):
    told, (x0, noise, t) = controlled(prediction), sample()
    control = randn(4, 2, 3, seed=3)
    found = denoising_errors(told, x0, noise, t, {"control": control}).detach()
    for row in range(4):
        alpha, sigma = told.schedule.alpha[t[row]], told.schedule.sigma[t[row]]
        x = alpha * x0[row] + sigma * noise[row]
        target = {"epsilon": noise[row], "sample": x0[row], "flow": noise[row] - x0[row],
                  "v_prediction": alpha * noise[row] - sigma * x0[row]}[prediction]  # fmt: skip
        said = told.model(x[None], t[row : row + 1], control=control[row : row + 1])[0].detach()
        assert float(found[row]) == pytest.approx(float((said - target).pow(2).sum() / 6), rel=1e-12)


def test_a_network_that_is_right_has_no_error_in_any_parametrisation():
    x0, noise, t = sample()
    for prediction in PREDICTIONS:
        schedule = schedule_for(prediction)
        told = Denoiser(lambda x, t, right: right, schedule)
        assert not denoising_errors(told, x0, noise, t, {"right": schedule.target(x0, noise, t)}).any()


def test_one_pass_of_all_conditions_is_a_pass_for_each():
    told, (x0, noise, t) = controlled(), sample()
    conditions = [{"control": randn(4, 2, 3, seed=k)} for k in (3, 4, 5)]
    together = condition_errors(told, x0, noise, t, conditions)
    apart = torch.stack([denoising_errors(told, x0, noise, t, condition) for condition in conditions])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=0)
    assert len({float(e) for e in together[:, 0].detach()}) == 3
    torch.testing.assert_close(condition_errors(told, x0, noise, 7, conditions[:1])[0],
                               denoising_errors(told, x0, noise, 7, conditions[0]), rtol=1e-12, atol=0)  # fmt: skip


def test_images_share_noise_and_condition():
    told, (x0, noise, t) = controlled(), sample()
    condition, other = {"control": randn(4, 2, 3, seed=3)}, randn(4, 2, 3, seed=9)
    together = image_errors(told, (x0, other), noise, t, condition)
    torch.testing.assert_close(together[1], denoising_errors(told, other, noise, t, condition), rtol=1e-12, atol=0)
    torch.testing.assert_close(together[0], denoising_errors(told, x0, noise, t, condition), rtol=1e-12, atol=0)


def test_equal_conditions_have_no_gap_to_the_last_bit_and_no_gradient():
    torch.manual_seed(0)
    layer = nn.Linear(12, 6).double()
    told = Denoiser(lambda x, t, control: layer(torch.cat([x, control], 1).flatten(1)).view_as(x), schedule_for("flow"))
    x0, noise, t = sample()
    control = {"control": randn(4, 2, 3, seed=3)}
    w, loser = condition_errors(told, x0, noise, t, (control, control))
    assert torch.equal(w, loser)
    slopes = torch.autograd.grad((w - loser).sum(), tuple(layer.parameters()))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-14


def test_the_gap_is_a_scalar_product_with_its_bound():
    """D = <f_w - f_l, e_w + e_l> / d, and so |D| <= |f_w - f_l| (|e_w| + |e_l|) / d."""
    told, (x0, noise, t) = controlled(), sample(50)
    conditions = [{"control": randn(50, 2, 3, seed=k)} for k in (3, 4)]
    x, target = told.schedule.noisy(x0, noise, t), told.schedule.target(x0, noise, t)
    fw, fl = (told.output(x, t, condition).flatten(1) for condition in conditions)
    ew, el = fw - target.flatten(1), fl - target.flatten(1)
    w, loser = condition_errors(told, x0, noise, t, conditions)
    torch.testing.assert_close(w - loser, ((fw - fl) * (ew + el)).sum(1) / 6, rtol=1e-9, atol=1e-12)
    bound = (fw - fl).norm(dim=1) * (ew.norm(dim=1) + el.norm(dim=1)) / 6
    assert bool(((w - loser).abs() <= bound).all())


def test_half_precision_outputs_are_compared_in_the_targets_type():
    output, target = torch.ones(2, 3, 4, dtype=torch.bfloat16), torch.full((3, 4), 1e-3)
    found = mean_squared_errors(output, target)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found, torch.full((2, 3), (1 - 1e-3) ** 2))


def test_conditions_that_do_not_fit():
    told, (x0, noise, t) = controlled(), sample()
    with pytest.raises(LegatoValueError, match="at least one"):
        condition_errors(told, x0, noise, t, ())
    with pytest.raises(LegatoValueError, match=r"conditions: .*control.*text"):
        condition_errors(told, x0, noise, t, ({"control": x0}, {"text": x0}))


def maps(rows=20, seed=0):
    return torch.rand(rows, 1, 4, 4, generator=generator(seed))


def test_pairs_that_are_none():
    x0, winner, loser = torch.zeros(20, 1, 4, 4), maps(), maps(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_pairs(x0, winner, loser)
    for arguments, word in (
        ((x0, winner[:5], loser), r"winner: .*20 images; got 5 controls"),
        ((x0, winner, loser[:, :, :2]), r"loser: .*\[20, 1, 4, 4\]; got .*\[20, 1, 2, 4\]"),
        ((x0, winner, loser.double()), "loser: .*float32.*float64"),
        ((x0, winner * 255, loser * 255), r"winner: .*\[0, 1\].*/ 255"),
        ((x0, winner, loser - 1), r"loser: .*\[0, 1\]"),
        ((x0, winner, loser * math.nan), "loser: .*nan"),
        ((x0, (winner * 255).byte(), (loser * 255).byte()), "winner: .*uint8"),
        ((x0, winner, winner), "winner and loser conditions are the same column"),
    ):
        with pytest.raises(LegatoValueError, match=word):
            check_pairs(*arguments)


def test_it_counts_equal_pairs():
    x0, winner, loser = torch.zeros(20, 1, 4, 4), maps(), maps(seed=1)
    with pytest.warns(LegatoWarning, match="2 of 20 pairs have equal controls"):
        check_pairs(x0, winner, torch.cat([winner[:2], loser[2:]]))


def test_the_gap_by_timestep_is_the_statistics_of_each_range():
    t = torch.randint(1000, (300,), generator=generator())
    w, loser, rw, rl = (torch.rand(300, dtype=torch.float64, generator=generator(k)) for k in range(1, 5))
    found = gap_by_timestep(w, loser, rw, rl, t, 1000, bins=3)
    assert [(b.first, b.last) for b in found] == [(0, 333), (334, 666), (667, 999)]
    assert sum(b.pairs for b in found) == 300
    for b in found:
        here = (t >= b.first) & (t <= b.last)
        gap, reference = (w - loser)[here], (rw - rl)[here]
        assert b.pairs == int(here.sum())
        assert b.accuracy == pytest.approx(int((gap < 0).sum()) / len(gap))
        assert b.learned == pytest.approx(int((gap < reference).sum()) / len(gap))
        assert (b.gap, b.shift) == pytest.approx((float(gap.mean()), float((gap - reference).mean())))
        assert b.variance == pytest.approx(float(((gap - gap.mean()) ** 2).sum() / (len(gap) - 1)))
    scaled = gap_by_timestep(7 * w, 7 * loser, rw, rl, t, 1000, bins=3)
    for b, s in zip(found, scaled, strict=True):
        assert (s.variance, s.spread) == pytest.approx((49 * b.variance, b.spread))


def test_empty_ranges_and_bad_ones():
    one = torch.ones(1)
    low, high = gap_by_timestep(one, 2 * one, one, one, torch.tensor([3]), 10, bins=2)
    assert (low.pairs, low.gap, high.pairs) == (1, -1.0, 0)
    assert math.isnan(low.variance)
    assert math.isnan(high.gap)
    for arguments, word in (
        ((one, one, one, torch.ones(2), torch.tensor([3]), 10), "shapes"),
        ((one, one, one, one, torch.tensor([10]), 10), "0 .. 9"),
        ((one, one, one, one, torch.tensor([3]), 10, 11), "bins"),
    ):
        with pytest.raises(LegatoValueError, match=word):
            gap_by_timestep(*arguments)
