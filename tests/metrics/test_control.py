"""Control metrics against torchmetrics, scikit-learn and pictures worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score

from legato.errors import LegatoValueError
from legato.metrics import (
    edge_counts,
    f1_of_counts,
    iou_counts,
    miou_of_counts,
    multi_scale_similarity,
    rmse,
    structural_similarity,
)


def maps(rows=3, size=20, channels=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(rows, channels, size, size, generator=g)
    return a, (a + 0.3 * torch.randn(a.shape, generator=g)).clamp(0, 1)


def test_f1_is_scikit_learns_a_picture_and_of_all_pixels():
    a, b = maps()
    counts = edge_counts(a, b, 0.6)
    binary = [(x > 0.6).flatten(1).numpy() for x in (a, b)]
    want = [f1_score(asked, found) for found, asked in zip(*binary, strict=True)]
    np.testing.assert_allclose(f1_of_counts(counts).numpy(), want, rtol=1e-12)
    pooled = float(f1_of_counts(counts.sum(0)))
    assert pooled == pytest.approx(f1_score(binary[1].ravel(), binary[0].ravel()))
    assert pooled != pytest.approx(float(np.mean(want)), rel=1e-6)


def test_f1_of_nothing_found_where_nothing_is():
    empty, full = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    assert float(f1_of_counts(edge_counts(empty, empty))) == 1
    assert float(f1_of_counts(edge_counts(full, empty))) == float(f1_of_counts(edge_counts(empty, full))) == 0
    assert edge_counts(full, empty).tolist() == [[0, 16, 0]]
    assert edge_counts(empty, full).tolist() == [[0, 0, 16]]
    assert edge_counts(torch.full((1, 4), 0.5), torch.full((1, 4), 0.5)).tolist() == [[0, 0, 0]]


def test_iou_is_scikit_learns_over_all_pictures():
    g = torch.Generator().manual_seed(0)
    asked, found = (torch.randint(4, (3, 6, 6), generator=g) for _ in range(2))
    counts = iou_counts(found, asked, 4)
    assert counts.shape == (3, 4, 2)
    want = jaccard_score(asked.flatten().numpy(), found.flatten().numpy(), average="macro")
    assert miou_of_counts(counts) == pytest.approx(want)
    one = jaccard_score(asked[1].flatten().numpy(), found[1].flatten().numpy(), average=None, labels=range(4))
    np.testing.assert_allclose((counts[1, :, 0] / counts[1, :, 1]).numpy(), one, rtol=1e-6)


def test_ignored_pixels_count_nowhere_and_classes_in_no_mask_are_left_out():
    asked = torch.tensor([[[0, 0, 255, 1]]])
    found = torch.tensor([[[0, 1, 1, 1]]])
    counts = iou_counts(found, asked, 5)
    assert counts[0, :, 0].tolist() == [1, 1, 0, 0, 0]
    assert counts[0, :, 1].tolist() == [2, 2, 0, 0, 0]
    assert miou_of_counts(counts) == pytest.approx(0.5)
    assert math.isnan(miou_of_counts(iou_counts(found, torch.full_like(asked, 255), 5)))
    assert iou_counts(torch.tensor([[[9, 0, 9, 1]]]), torch.tensor([[[255, 0, 255, 1]]]), 2)[0, :, 0].tolist() == [1, 1]


def test_rmse_is_in_bytes_and_a_picture():
    a = torch.zeros(2, 1, 2, 2)
    b = torch.stack([torch.full((1, 2, 2), 1 / 255), torch.tensor([[[0.0, 0.0], [0.0, 4 / 255]]])])
    torch.testing.assert_close(rmse(a, b), torch.tensor([1.0, 2.0], dtype=torch.float64), rtol=1e-6, atol=0)
    assert float(rmse(a, b, unit=1.0)[0]) == pytest.approx(1 / 255)


def test_ssim_is_that_of_torchmetrics():
    peer = pytest.importorskip("torchmetrics.functional.image")
    a, b = maps(size=24, channels=2)
    want = peer.structural_similarity_index_measure(a.double(), b.double(), data_range=1.0, reduction="none")
    torch.testing.assert_close(structural_similarity(a, b), want, rtol=1e-7, atol=0)


def test_multi_scale_ssim_is_that_of_torchmetrics():
    peer = pytest.importorskip("torchmetrics.functional.image").multiscale_structural_similarity_index_measure
    a, b = maps(rows=2, size=176)
    a, b = (torch.nn.functional.avg_pool2d(x, 5, 1, 2) for x in (a, b))
    want = peer(a.double(), b.double(), data_range=1.0, reduction="none")
    torch.testing.assert_close(multi_scale_similarity(a, b), want, rtol=1e-6, atol=0)
    assert 0.1 < float(want[0]) < 0.99
    small = [x[..., :50, :44] for x in (a, b)]
    betas = tuple(w * 1.0001 / (0.0448 + 0.2856 + 0.3001) for w in (0.0448, 0.2856, 0.3001))
    want = peer(*(x.double() for x in small), data_range=1.0, reduction="none", betas=betas)
    torch.testing.assert_close(multi_scale_similarity(*small, scales=3), want, rtol=1e-6, atol=0)


def test_similarity_of_equal_opposite_and_flat_pictures():
    a, _ = maps(size=44)
    one = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(structural_similarity(a, a), one)
    torch.testing.assert_close(multi_scale_similarity(a, a, scales=3), one)
    assert bool((multi_scale_similarity(a, 1 - a, scales=2) == 0).all())  # negative contrast counts 0
    assert bool((structural_similarity(a, 1 - a) < 0).all())
    low, high = torch.full((1, 1, 11, 11), 0.2), torch.full((1, 1, 11, 11), 0.6)
    want = (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert float(structural_similarity(low, high)) == pytest.approx(want, rel=1e-6)
    coarse = structural_similarity(a, maps(size=44)[1])
    torch.testing.assert_close(multi_scale_similarity(a, maps(size=44)[1], scales=1), coarse.clamp(min=0) ** 1.0001)


@given(st.integers(0, 10_000))
def test_all_are_symmetric_and_bounded(seed):
    a, b = maps(rows=2, size=12, seed=seed)
    for metric in (structural_similarity, rmse, lambda x, y: f1_of_counts(edge_counts(x, y))):
        torch.testing.assert_close(metric(a, b), metric(b, a), rtol=1e-9, atol=1e-12)
    assert bool((structural_similarity(a, b).abs() <= 1).all())
    assert bool(((rmse(a, b) >= 0) & (rmse(a, b) <= 255)).all())


@pytest.mark.parametrize("metric", [rmse, structural_similarity, multi_scale_similarity, edge_counts])
def test_maps_that_cannot_be_compared(metric):
    a, b = maps(size=180)
    for arguments, word in (
        ((a, b[:, :, :100]), r"control's shape, \[3, 1, 100, 180\]"),
        ((a[:0], b[:0]), "a picture at least"),
        (((a * 255).byte(), (b * 255).byte()), "uint8.*wrap around"),
        ((a * 255, b), r"detected: .*\[0, 1\].*/ 255"),
        ((a, b - 1), r"control: .*\[0, 1\]"),
        ((a * math.nan, b), "detected: .*nan"),
    ):
        with pytest.raises(LegatoValueError, match=word):
            metric(*arguments)


def test_other_bad_arguments():
    a, b = maps(size=20)
    classes = torch.zeros(2, 3, 3, dtype=torch.int64)
    for call, word in (
        (lambda: edge_counts(a, b, 1.0), "threshold"),
        (lambda: structural_similarity(a[:, 0], b[:, 0]), r"\[N, C, H, W\]"),
        (lambda: structural_similarity(a[..., :10], b[..., :10]), "11 pixels"),
        (lambda: multi_scale_similarity(a, b), "176 pixels at least for 5 scales"),
        (lambda: multi_scale_similarity(a, b, scales=6), "scales"),
        (lambda: iou_counts(classes, classes[:1], 2), "detected: .*equal shapes"),
        (lambda: iou_counts(classes, classes.byte(), 2), "control: .*uint8"),
        (lambda: iou_counts(classes + 2, classes, 2), r"detected: .*0 \.\. 1.*got 2 \.\. 2"),
        (lambda: iou_counts(classes, classes - 1, 2), r"control: .*got -1 \.\. -1"),
    ):
        with pytest.raises(LegatoValueError, match=word):
            call()
