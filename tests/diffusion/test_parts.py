"""The small denoiser and the distance between sets of pictures."""

import numpy as np
import pytest
import torch

from legato.errors import LegatoValueError
from legato.metrics import frechet_distance
from legato.nets import MLPDenoiser


def test_the_mlp_denoiser_knows_time_and_class():
    torch.manual_seed(0)
    model = MLPDenoiser((1, 4, 4), 3, width=16)
    x, t = torch.randn(5, 1, 4, 4), torch.tensor([0, 10, 10, 500, 999])
    y = torch.tensor([0, 1, 2, 3, 3])
    out = model(x, t, y)
    assert out.shape == x.shape
    assert not torch.allclose(out, model(x, t + 1, y))
    assert not torch.allclose(out[:3], model(x, t, (y + 1) % 3)[:3])
    torch.testing.assert_close(model(x, t), model(x, t, torch.full((5,), 3)))
    torch.testing.assert_close(model(x, t, model.classes(y)), out)
    each = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(each, out, rtol=1e-5, atol=1e-6)
    assert MLPDenoiser((4,), 0, width=16).double()(torch.randn(2, 4).double(), t[:2]).dtype == torch.float64


def test_the_distance_of_gaussians_that_commute_is_known():
    """|m|^2 + sum (s - r)^2 for diagonal covariances; features are made to have exactly these moments."""
    rng = np.random.default_rng(0)
    white = rng.normal(size=(50, 3))
    white -= white.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    s, r, m = np.array([1.0, 2, 0]), np.array([3.0, 0.5, 1]), np.array([1.0, -1, 2])
    assert frechet_distance(white * s, white * r + m) == pytest.approx(
        float((m**2).sum() + ((s - r) ** 2).sum()), rel=1e-9
    )
    assert frechet_distance(white, white) == pytest.approx(0, abs=1e-9)


def test_the_distance_is_symmetric_and_is_that_of_the_matrix_root():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(30, 4)) + 1
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(want, rel=1e-8)


def test_features_that_do_not_fit_are_refused():
    for a, b, words in (
        (np.ones((5, 2)), np.ones((5, 3)), "shapes"),
        (np.ones((1, 2)), np.ones((5, 2)), "two rows"),
        (np.full((5, 2), np.nan), np.ones((5, 2)), "finite"),
    ):
        with pytest.raises(LegatoValueError, match=words):
            frechet_distance(a, b)
