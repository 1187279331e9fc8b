"""Ways between noises and what is said of them."""

import math

import pytest
import torch
from known import generator, randn

from legato.diffusion import evenness, local_variation, retimed, slerp, step_lengths, walk
from legato.errors import LegatoValueError


def test_slerp_keeps_ends_norm_and_plane_and_equal_shares_make_equal_angles():
    a, b = randn(3, 2, 5, seed=1), randn(3, 2, 5, seed=2)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))[:, None, None]
    torch.testing.assert_close(slerp(a, b, 0.0), a, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slerp(a, b, 1.0), b, rtol=1e-12, atol=1e-14)
    way = walk(a, b, torch.linspace(0, 1, 11, dtype=torch.float64))
    norms = way.flatten(2).norm(dim=2)
    torch.testing.assert_close(norms, norms[:1].expand(11, 3), rtol=1e-12, atol=0)
    chords = step_lengths(way)
    torch.testing.assert_close(chords, chords[:, :1].expand(3, 10), rtol=1e-10, atol=0)
    swapped = walk(b, a, torch.linspace(1, 0, 11, dtype=torch.float64))
    torch.testing.assert_close(way, swapped, rtol=1e-12, atol=1e-14)


def test_slerp_of_orthogonal_units_is_cosine_and_sine_and_of_parallels_a_line():
    a, b = torch.eye(4, dtype=torch.float64)[None, 0], torch.eye(4, dtype=torch.float64)[None, 1]
    want = math.cos(0.3 * math.pi / 2) * a + math.sin(0.3 * math.pi / 2) * b
    torch.testing.assert_close(slerp(a, b, 0.3), want, rtol=1e-14, atol=1e-16)
    torch.testing.assert_close(slerp(a, 3 * a, 0.25), 1.5 * a, rtol=1e-14, atol=0)
    near = a + 1e-3 * b
    assert torch.equal(slerp(a, near, 0.5), (0.5 * a + 0.5 * near))


def test_a_share_for_each_row_is_that_row_alone():
    a, b = randn(3, 4, seed=1), randn(3, 4, seed=2)
    shares = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    each = slerp(a, b, shares)
    for i, share in enumerate(shares):
        torch.testing.assert_close(each[i : i + 1], slerp(a[i : i + 1], b[i : i + 1], float(share)))


def test_degenerate_ends_are_refused():
    a = randn(2, 4)
    for other, share, words in (
        (-a, 0.5, "opposite rows"),
        (torch.zeros_like(a), 0.5, "has no direction"),
        (a * math.nan, 0.5, "has no direction"),
        (a[:, :3], 0.5, "equal shapes"),
        (randn(2, 4, seed=2), 1.1, "share"),
        (randn(2, 4, seed=2), math.nan, "share"),
    ):
        with pytest.raises(LegatoValueError, match=words):
            slerp(a, other, share)


def test_evenness_is_its_definition():
    steps = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    found = evenness(steps)
    assert found.istd == pytest.approx(math.sqrt(2 / 3) / 2)
    assert found.mean_step == pytest.approx(2.0)
    assert found.cv == pytest.approx(math.sqrt(2 / 3) / 4)
    assert found.largest == pytest.approx((1.5 + 1) / 2)
    assert evenness(steps, ddof=1).istd == pytest.approx(0.5)
    ten = randn(6, 10, seed=4).abs()
    assert evenness(ten, ddof=1).istd / evenness(ten).istd == pytest.approx(math.sqrt(10 / 9))
    assert "ddof 0, pictures in [-1, 1], 2 pairs, 3 steps" in str(found)


def test_istd_scales_with_contrast_and_cv_does_not():
    pictures = randn(6, 5, 3, 4, seed=3)
    one, half = (evenness(step_lengths(k * pictures)) for k in (1.0, 0.5))
    assert half.istd == pytest.approx(one.istd / 2)
    assert half.cv == pytest.approx(one.cv)
    assert evenness(step_lengths(pictures.flip(0))).istd == pytest.approx(one.istd)
    still = evenness(step_lengths(torch.ones(6, 5, 3)))
    assert (still.istd, still.cv, still.largest) == (0, 0, 1)


def test_features_come_before_distances():
    pictures = randn(4, 3, 5)
    torch.testing.assert_close(step_lengths(pictures, lambda x: 2 * x[:, :2]), 2 * step_lengths(pictures[:, :, :2]))


def test_the_interval_covers_the_mean_and_narrows_with_pairs():
    """Means of 40 and 640 pairs: four times narrower, against the normal theory."""
    widths = []
    for pairs in (40, 640):
        steps = randn(pairs, 10, seed=pairs).abs()
        found = evenness(steps)
        low, high = found.istd_interval
        assert low < found.istd < high
        widths.append(high - low)
        theory = 2 * 1.96 * float(steps.std(1, correction=0).std()) / math.sqrt(pairs)
        assert widths[-1] == pytest.approx(theory, rel=0.12)
    assert widths[1] < widths[0] / 3


def test_a_retimed_walk_has_equal_lengths():
    """On x(s) = s^3 the right shares are cube roots."""
    shares = torch.linspace(0, 1, 401, dtype=torch.float64)
    steps = (shares**3).diff()[None]
    new = retimed(shares, steps, 5)
    want = torch.linspace(0, 1, 5, dtype=torch.float64) ** (1 / 3)
    torch.testing.assert_close(new[:, 0], want, rtol=0, atol=2e-3)
    assert float((new[:, 0] ** 3).diff().std()) < 1e-4
    even = retimed(shares, torch.ones(2, 400, dtype=torch.float64), 5)
    torch.testing.assert_close(even, torch.linspace(0, 1, 5, dtype=torch.float64)[:, None].expand(5, 2))


def test_local_variation_of_a_linear_map_is_its_stretch():
    z = randn(4, 3, 2, seed=5)
    rates = local_variation(lambda x: 3 * x, z, (0.01, 0.1), generator())
    torch.testing.assert_close(rates, torch.full((2, 4), 3.0, dtype=torch.float64), rtol=1e-9, atol=0)
    seen = []
    local_variation(lambda x: seen.append(x) or x, z, (0.1,), generator())
    torch.testing.assert_close(seen[1].flatten(1).norm(dim=1), z.flatten(1).norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(seen[1].flatten(1), z.flatten(1))
    torch.testing.assert_close(cosine, torch.full((4,), math.cos(0.1), dtype=torch.float64))


def test_wrong_arguments_say_what_is_wrong():
    for wrong in (torch.zeros(2, 3, 4), torch.zeros(5, 0, 4), torch.zeros(5, 3)):
        with pytest.raises(LegatoValueError, match="pictures"):
            step_lengths(wrong)
    with pytest.raises(LegatoValueError, match="finite values; got 1 that"):
        step_lengths(torch.tensor([0.0, 1, 2, math.nan]).reshape(4, 1, 1))
    for wrong in (torch.zeros(0, 5), torch.zeros(5, 1), torch.zeros(5)):
        with pytest.raises(LegatoValueError, match="steps"):
            evenness(wrong)
    with pytest.raises(LegatoValueError, match="ddof"):
        evenness(torch.ones(2, 3), ddof=2)
    shares = torch.linspace(0, 1, 4)
    for steps, count, words in (
        (torch.ones(2, 4), 3, "steps"),
        (torch.ones(2, 3), 1, "count"),
        (torch.zeros(2, 3), 3, "moves"),
    ):
        with pytest.raises(LegatoValueError, match=words):
            retimed(shares, steps, count)
    with pytest.raises(LegatoValueError, match="angles"):
        local_variation(lambda x: x, randn(2, 3), (0.0,), generator())
