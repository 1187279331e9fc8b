"""Detectors against scipy's filters and pictures whose edges are known."""

import math

import numpy as np
import pytest
import torch
from known import generator
from scipy import ndimage

from legato.diffusion import canny_magnitude, line_art, luminance, silhouette, soft_canny, soft_edges, usable
from legato.diffusion.controls import blurred, gradients
from legato.errors import LegatoValueError

DETECTORS = [soft_edges, canny_magnitude, soft_canny, line_art, silhouette]


def pictures(channels=1, rows=2, height=9, width=11):
    return torch.rand(rows, channels, height, width, dtype=torch.float64, generator=generator())


def step(height=0.4, size=12, where=6):
    """Dark on the left, brighter from column `where` on."""
    grey = torch.full((1, 1, size, size), 0.2, dtype=torch.float64)
    grey[..., where:] += height
    return grey


def test_gradients_are_scipys_sobel():
    grey = pictures()
    dx, dy = gradients(grey)
    for row in range(2):
        for ours, axis in ((dx, 1), (dy, 0)):
            want = ndimage.sobel(grey[row, 0].numpy(), axis=axis, mode="nearest") / 8
            np.testing.assert_allclose(ours[row, 0].numpy(), want, atol=1e-14)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_blur_is_scipys_gaussian(sigma):
    grey = pictures()
    want = ndimage.gaussian_filter(grey[0, 0].numpy(), sigma, mode="mirror", radius=round(2 * sigma))
    np.testing.assert_allclose(blurred(grey, sigma)[0, 0].numpy(), want, atol=1e-14)


def test_a_ramp_has_its_slope():
    ramp = torch.arange(12, dtype=torch.float64).expand(1, 1, 12, 12) * 0.03
    inside = canny_magnitude(ramp)[..., 4:-4, 4:-4]
    torch.testing.assert_close(inside, torch.full_like(inside, math.sqrt(0.03**2 + 1e-6)), rtol=1e-9, atol=0)
    edges = soft_edges(ramp, scale=0.03)[..., 4:-4, 4:-4]
    torch.testing.assert_close(edges, torch.full_like(edges, 1 - math.exp(-1)), rtol=1e-9, atol=0)


def test_a_step_has_an_edge_of_two_pixels_and_a_thin_one_of_one():
    soft, thin = soft_edges(step())[0, 0], soft_canny(step())[0, 0]
    assert (soft > 0.5).sum(1).tolist() == [2] * 12
    assert float(soft[3, 5]) == float(soft[3, 6]) == pytest.approx(1 - math.exp(-((0.2 / 0.12) ** 2)))
    assert (thin > 0).sum(1).tolist() == [1] * 12
    assert float(thin.max()) == 1
    assert set(thin.nonzero()[:, 1].tolist()) <= {5, 6}


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_thin_edges_turn_with_the_picture_and_diagonals_are_thin(turn):
    turned = soft_canny(torch.rot90(step(), turn, (2, 3)))
    assert (turned > 0).sum(3 if turn % 2 == 0 else 2).unique().tolist() == [1]
    diagonal = torch.where(torch.arange(16)[:, None] + torch.arange(16) > 15, 0.6, 0.2).double()[None, None]
    thin = soft_canny(torch.rot90(diagonal, turn, (2, 3)))[0, 0, 3:-3, 3:-3]
    assert (thin > 0).sum(1).max() <= 2
    assert (thin > 0).any(1).all()


def test_between_its_thresholds_an_edge_is_weak_and_below_there_is_none():
    peak = float(canny_magnitude(step(0.1)).max())
    weak = soft_canny(step(0.1), low=peak - 0.01, high=peak + 0.01)
    assert float(weak.max()) == pytest.approx(0.5)
    assert not soft_canny(step(0.1), low=peak, high=peak + 0.01).any()


def test_line_art_finds_dark_strokes_and_no_bright_ones():
    dark = torch.full((1, 1, 15, 15), 0.9, dtype=torch.float64)
    dark[..., 7] = 0.1
    found = line_art(dark)[0, 0]
    assert bool((found[:, 7] > 0.9).all())
    assert bool((found[:, :4] < 0.05).all())
    assert float(line_art(1 - dark)[0, 0, :, 7].max()) == 0
    assert not line_art(torch.full_like(dark, 0.3)).gt(1e-20).any()


def test_a_silhouette_is_what_is_bright():
    found = silhouette(step(0.6))[0, 0]
    assert bool((found[:, :6] < 0.01).all() and (found[:, 6:] > 0.99).all())
    assert float(silhouette(torch.full((1, 1, 2, 2), 0.3), threshold=0.3)[0, 0, 0, 0]) == 0.5


def test_colours_are_weighed_as_the_eye_does():
    red = torch.zeros(1, 3, 9, 9)
    red[:, 0] = 1
    assert float(luminance(red)[0, 0, 0, 0]) == pytest.approx(0.299)
    grey = pictures()
    torch.testing.assert_close(luminance(grey.expand(-1, 3, -1, -1)), grey)
    assert luminance(grey) is grey


@pytest.mark.parametrize("detector", DETECTORS)
def test_detectors_give_one_map_in_the_unit_range_and_a_gradient_everywhere(detector):
    found = detector(pictures(3))
    assert found.shape == (2, 1, 9, 11)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    flat = torch.full((1, 1, 9, 9), 0.5, requires_grad=True)
    detector(flat).sum().backward()
    assert flat.grad.isfinite().all()
    assert torch.equal(detector(pictures(3)[1:]), found[1:])


@pytest.mark.parametrize("detector", [soft_edges, canny_magnitude, line_art, silhouette])
def test_gradients_are_those_of_finite_differences(detector):
    assert torch.autograd.gradcheck(detector, (0.5 + 0.1 * pictures(rows=1)).requires_grad_())


def test_thin_edges_have_the_gradient_of_the_magnitude_on_the_ridge():
    grey = step(0.02).requires_grad_()
    thin = soft_canny(grey, low=0.0, high=1.0)
    ridge = (thin > 0).double().detach()
    (ours,) = torch.autograd.grad(thin.sum(), grey)
    (want,) = torch.autograd.grad((canny_magnitude(grey) * ridge).sum(), grey)
    torch.testing.assert_close(ours, want)
    assert ours.any()


def test_maps_to_drop_are_empty_or_not_finite():
    maps = torch.rand(4, 1, 3, 3, generator=generator())
    maps[1] = 0
    maps[2, 0, 1, 1] = torch.nan
    maps[3, 0, 1, 1] = torch.inf
    assert usable(maps).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("call", "word"),
    [(lambda: soft_edges(torch.zeros(1, 2, 9, 9)), "1 or 3"), (lambda: soft_edges(torch.zeros(9, 9)), "pictures"),
     (lambda: silhouette(torch.zeros(1, 1, 9, 9, dtype=torch.uint8)), "uint8.*/ 255"), (lambda: soft_edges(pictures(), scale=0.0), "scale"),
     (lambda: line_art(pictures(), scale=-1.0), "scale"), (lambda: silhouette(pictures(), width=0.0), "width"),
     (lambda: soft_canny(pictures(), low=0.2, high=0.1), "low, high"), (lambda: canny_magnitude(pictures(), sigma=0.0), "sigma"),
     (lambda: canny_magnitude(pictures(), sigma=5.0), "sigma")],
)  # fmt: skip
def test_bad_pictures_and_numbers(call, word):
    with pytest.raises(LegatoValueError, match=word):
        call()
