"""The preference losses: limits, fixed points, the released code's numbers, and the gate that is too narrow."""

import math
import warnings

import pytest
import torch
from known import generator

from legato.diffusion import (
    ConditionPreference,
    condition_preference_loss,
    diffusion_dpo_loss,
    gate_margin,
    share_beyond,
)
from legato.errors import LegatoValueError, LegatoWarning

TYPES = ["sigmoid", "cdpo", "hinge", "ipo"]


def four(rows=9, seed=0):
    """errors_w, errors_l, ref_w, ref_l of the size of real ones."""
    g = generator(seed)
    return [0.05 + 0.1 * torch.rand(rows, dtype=torch.float64, generator=g) for _ in range(4)]


def released(w, loser, rw, rl, beta, m, weights=(0.9, 0.1)):
    """reward_CPO.py as it stands, and its DINO script with weights (1, 0)."""
    gap, reference = w - loser, rw - rl
    inside = -0.5 * beta * (gap - reference)
    s = 1 / (1 + torch.exp(inside)).detach()
    zero = torch.zeros_like(gap)
    return weights[0] * s * torch.maximum(zero, gap + m) + weights[1] * (1 - s) * torch.maximum(zero, -gap + m)


@pytest.mark.parametrize(("reverse", "weights"), [(0.1, (0.9, 0.1)), (0.0, (1.0, 0.0))])
def test_hinge_is_the_released_codes_loss_and_gradient(reverse, weights):
    parts = four()
    for part in parts[:2]:
        part.requires_grad_()
    ours = condition_preference_loss(*parts, 50.0, "hinge", margin=0.02, reverse=reverse, reduction="none")
    theirs = released(*parts, 50.0, 0.02, weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(loss.sum(), parts[:2]) for loss in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_hinge_on_numbers_worked_out_by_hand():
    """D = D_ref = -0.049 under the released constants: only the reverse term lives, and it weakens the preference."""
    w = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    loser = torch.tensor([0.149], dtype=torch.float64)
    loss = condition_preference_loss(w, loser, w.detach(), loser, 5000.0, "hinge", margin=0.01)
    assert float(loss.detach()) == pytest.approx(0.00295)
    assert float(torch.autograd.grad(loss, w)[0]) == pytest.approx(-0.05)


@pytest.mark.parametrize("loss_type", ["sigmoid", "cdpo"])
def test_at_the_reference_it_is_log_2(loss_type):
    w, loser, *_ = four()
    loss = condition_preference_loss(w, loser, w, loser, 5000.0, loss_type, reduction="none")
    torch.testing.assert_close(loss, torch.full_like(w, math.log(2)), rtol=1e-12, atol=0)


def test_at_the_reference_the_hinge_is_its_two_halves_and_without_a_gap_half_the_margin():
    w, loser, *_ = four()
    gap, m = w - loser, 0.03
    loss = condition_preference_loss(w, loser, w, loser, 5000.0, "hinge", margin=m, reduction="none")
    want = 0.45 * (gap + m).clamp(min=0) + 0.05 * (m - gap).clamp(min=0)
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
    same = condition_preference_loss(w, w, loser, loser, 5000.0, "hinge", margin=m, reduction="none")
    torch.testing.assert_close(same, torch.full_like(w, m / 2), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss_type", TYPES)
def test_only_the_gap_counts(loss_type):
    """The same added to both errors changes nothing, so the gradients of winner and loser cancel."""
    parts = four()
    for part in parts[:2]:
        part.requires_grad_()
    loss = condition_preference_loss(*parts, 40.0, loss_type, margin=0.02, reduction="none")
    moved = [part + 0.7 for part in parts[:2]]
    again = condition_preference_loss(*moved, *parts[2:], 40.0, loss_type, margin=0.02, reduction="none")
    torch.testing.assert_close(loss, again, rtol=1e-9, atol=0)
    a, b = torch.autograd.grad(loss.sum(), parts[:2])
    torch.testing.assert_close(a + b, torch.zeros_like(a), rtol=0, atol=1e-15)
    assert a.abs().min() > 0


@pytest.mark.parametrize("loss_type", ["sigmoid", "cdpo", "ipo"])
def test_the_gradient_is_that_of_finite_differences(loss_type):
    w, loser, rw, rl = four()
    w.requires_grad_()
    loser.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: condition_preference_loss(a, b, rw, rl, 20.0, loss_type, reduction="none"), (w, loser)
    )


def test_swapping_turns_u_over():
    """loss(u) - loss(-u) = -u for the logistic loss; cdpo with e is that of the swapped pairs with 1 - e."""
    w, loser, rw, rl = four()
    here = condition_preference_loss(w, loser, rw, rl, 30.0, reduction="none")
    there = condition_preference_loss(loser, w, rl, rw, 30.0, reduction="none")
    u = -15 * ((w - loser) - (rw - rl))
    torch.testing.assert_close(here - there, -u, rtol=1e-9, atol=1e-12)
    mixed = condition_preference_loss(w, loser, rw, rl, 30.0, "cdpo", label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(mixed, 0.8 * here + 0.2 * there, rtol=1e-12, atol=0)


def test_inside_the_gate_the_hinge_is_conservative_dpo_with_another_step():
    parts = four()
    for part in parts[:2]:
        part.requires_grad_()
    beta = 60.0
    hinge = condition_preference_loss(*parts, beta, "hinge", margin=1.0, reduction="sum")
    cdpo = condition_preference_loss(*parts, beta, "cdpo", label_smoothing=0.1, reduction="sum")
    ours, theirs = (torch.autograd.grad(loss, parts[0])[0] for loss in (hinge, cdpo))
    torch.testing.assert_close(ours, 2 / beta * theirs, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize(
    ("loss_type", "rest"),
    [("cdpo", 2 * math.log(0.1 / 0.9) / 5000), ("hinge", -8.7889e-4), ("ipo", -1 / 5000)],
)
def test_it_rests_where_it_should(loss_type, rest):
    w = torch.full((1,), 0.1 + rest, dtype=torch.float64, requires_grad=True)
    one = torch.full((1,), 0.1, dtype=torch.float64)

    def slope(at):
        loss = condition_preference_loss(at, one, one, one, 5000.0, loss_type, margin=0.3)
        return float(torch.autograd.grad(loss, at)[0])

    apart = [slope((w + shift).detach().requires_grad_()) for shift in (-1e-5, 1e-5)]
    assert apart[0] < 0 < apart[1]
    assert abs(slope(w)) < 1e-3 * apart[1]


def test_beyond_the_gate_the_hinge_crawls_back_by_the_logarithm():
    """Plain descent on the errors themselves from D_ref = -0.03: up to -0.02789 with the released margin, down with a wide one."""

    def end(margin):
        gap = torch.tensor([-0.03], dtype=torch.float64, requires_grad=True)
        zero, start = torch.zeros(1, dtype=torch.float64), torch.tensor([-0.03], dtype=torch.float64)
        for _ in range(4000):
            loss = condition_preference_loss(gap, zero, start, zero, 5000.0, "hinge", margin=margin)
            (slope,) = torch.autograd.grad(loss, gap)
            with torch.no_grad():
                gap -= 1e-4 * 2 * slope  # both errors move, by opposite slopes
        return float(gap.detach())

    assert end(0.01) == pytest.approx(-0.0278891, abs=1e-6)
    assert end(0.3) == pytest.approx(-0.0308789, abs=1e-6)


@pytest.mark.parametrize("loss_type", TYPES)
def test_huge_gaps_stay_finite(loss_type):
    w = torch.tensor([0.0, 1e6], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    loss = condition_preference_loss(w, w.detach().flip(0), zero, zero, 5000.0, loss_type, margin=0.01)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, w)[0].isfinite().all()


def test_dpo_of_images_is_the_logistic_loss_of_its_released_code():
    w, loser, rw, rl = four()
    theirs = -torch.nn.functional.logsigmoid(-0.5 * 5000 * ((w - loser) - (rw - rl)))
    torch.testing.assert_close(diffusion_dpo_loss(w, loser, rw, rl), theirs.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        diffusion_dpo_loss(w, loser, rw, rl, 20.0, reduction="sum"),
        condition_preference_loss(w, loser, rw, rl, 20.0, reduction="sum"), rtol=0, atol=0,
    )  # fmt: skip


def test_masks_and_reductions():
    parts = four(6)
    each = condition_preference_loss(*parts, 30.0, reduction="none")
    mask = torch.tensor([True, False, True, True, False, False])
    assert torch.equal(condition_preference_loss(*parts, 30.0, mask=mask), each[mask].sum() / 3)
    assert torch.equal(condition_preference_loss(*parts, 30.0, mask=mask, reduction="none"), torch.where(mask, each, 0))
    assert torch.equal(condition_preference_loss(*parts, 30.0, reduction="sum"), each.sum())
    parts[0].requires_grad_()
    none = condition_preference_loss(*parts, 30.0, mask=torch.zeros(6, dtype=torch.bool))
    assert float(none.detach()) == 0
    assert not torch.autograd.grad(none, parts[0])[0].any()


def test_accumulated_batches_are_one_batch():
    parts = four(8)
    whole = condition_preference_loss(*parts, 30.0)
    halves = [condition_preference_loss(*(part[at] for part in parts), 30.0) for at in (slice(4), slice(4, 8))]
    torch.testing.assert_close(whole, sum(halves) / 2, rtol=1e-12, atol=0)


def test_a_margin_from_the_quantiles():
    gaps = torch.linspace(-1, 1, 201, dtype=torch.float64)
    assert gate_margin(gaps, 0.5, 2.0) == pytest.approx(2 * float(gaps.abs().median()))
    assert gate_margin(gaps) == pytest.approx(3 * 0.95, rel=0.01)
    assert share_beyond(gaps, 0.5) == pytest.approx(50 / 201)
    for arguments, word in (((gaps, 0.0), "quantile"), ((gaps, 0.9, 0.0), "times"), ((gaps * 0,), "fresh|zero conv"),
                            ((gaps[:0],), "0 gaps"), ((gaps * math.nan,), "margin nan")):  # fmt: skip
        with pytest.raises(LegatoValueError, match=word):
            gate_margin(*arguments)


@pytest.mark.parametrize("loss_type", TYPES)
def test_the_object_is_the_function_to_the_last_bit(loss_type):
    parts = four(80)
    preference = ConditionPreference(30.0, loss_type, margin=0.2, label_smoothing=0.2, reverse=0.3)
    mask = torch.arange(80) % 3 > 0
    want = condition_preference_loss(*parts, 30.0, loss_type, margin=0.2, label_smoothing=0.2, reverse=0.3, mask=mask)
    assert torch.equal(preference(*parts, mask), want)


def test_the_object_sets_its_margin_and_keeps_it():
    parts = four(80)
    preference = ConditionPreference(30.0, "hinge")
    preference(*parts)
    assert preference.margin == gate_margin(parts[2] - parts[3])
    other = ConditionPreference(30.0, "hinge")
    other.load_state_dict(preference.state_dict())
    assert torch.equal(other(*four(80, seed=1)), preference(*four(80, seed=1)))
    assert preference.margin == gate_margin(parts[2] - parts[3])
    assert other.calibrate(*four(80, seed=2)[2:]) == other.margin != preference.margin


def test_it_warns_once_of_a_gate_that_most_pairs_have_left():
    w, loser = torch.full((40,), 0.1), torch.full((40,), 0.2)
    preference = ConditionPreference(30.0, "hinge", margin=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preference(w, loser, w, loser)  # 40 pairs are few
    with pytest.warns(LegatoWarning, match=r"0\.01 is smaller than the present gap of 80 of 80.*weaken control"):
        preference(w, loser, w, loser)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preference(w, loser, w, loser)
        for quiet in (
            ConditionPreference(30.0, "hinge"),
            ConditionPreference(30.0, "hinge", margin=0.2),
            ConditionPreference(30.0),
        ):
            for _ in range(3):
                quiet(w, loser, w, loser)


def test_the_counts_of_the_last_batch():
    preference = ConditionPreference(10.0)
    assert preference.stats == {}
    w, loser, rw, rl = (torch.tensor(x) for x in ([0.1, 0.4], [0.3, 0.2], [0.2, 0.3], [0.3, 0.3]))
    preference(w, loser, rw, rl)
    assert preference.stats == pytest.approx(
        {"winner_error": 0.25, "loser_error": 0.25, "winner_drift": 0.0, "gap": 0.0, "reference_gap": -0.05, "accuracy": 0.5,
         "learned": 0.5, "margin": -0.25}, abs=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "word"),
    [({"beta": 0.0}, "beta"), ({"beta": math.inf}, "beta"), ({"loss_type": "hing"}, "hinge"), ({"margin": 0.0}, "margin"),
     ({"margin": -1.0}, "margin"), ({"label_smoothing": 0.5}, "label_smoothing"), ({"label_smoothing": -0.1}, "label_smoothing"),
     ({"reverse": 0.5}, "reverse")],
)  # fmt: skip
def test_numbers_out_of_range(options, word):
    options = {"beta": 10.0, **options}
    with pytest.raises(LegatoValueError, match=word):
        condition_preference_loss(*four(), **options)
    with pytest.raises(LegatoValueError, match=word):
        ConditionPreference(**options)


def test_bad_errors_reductions_and_masks():
    w, loser, rw, rl = four()
    for arguments, options, word in (
        ((w, loser[:3], rw, rl), {}, r"errors_l: .*\[9\]; got .*\[3\]"),
        ((w[None], loser, rw, rl), {}, "errors_w"),
        ((w, loser, rw, rl.long()), {}, "ref_l: .*int64"),
        ((w, loser, rw.clone().requires_grad_(), rl), {}, "frozen reference"),
        ((w, loser, rw, rl), {"loss_type": "hinge"}, "margin: .*gate_margin"),
        ((w, loser, rw, rl), {"reduction": "average"}, "reduction"),
        ((w, loser, rw, rl), {"mask": torch.ones(9)}, "mask: .*bool"),
    ):
        with pytest.raises(LegatoValueError, match=word):
            condition_preference_loss(*arguments, 10.0, **options)
