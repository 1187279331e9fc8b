"""Which images are chosen, against brute force; and whitening against what it is defined by."""

import itertools

import pytest
import torch

from legato.distillation import Zca, herding_rows, kmeans_rows, random_rows
from legato.errors import LegatoValueError


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(ipc=3, each=8):
    """Classes of `ipc` far groups each, the classes mixed; and the group of each row."""
    group = torch.arange(2 * ipc).repeat_interleave(each)
    centres = 50 * torch.randn(2 * ipc, 4, generator=numbers())
    rows = torch.randperm(len(group), generator=numbers(1))
    features = centres[group] + torch.randn(len(group), 4, generator=numbers(2))
    return features[rows], (group % 2)[rows], group[rows]


METHODS = {
    "random": lambda x, y, ipc: random_rows(y, ipc, generator=numbers()),
    "kmeans": lambda x, y, ipc: kmeans_rows(x, y, ipc),
    "herding": lambda x, y, ipc: herding_rows(x, y, ipc),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ipc", [1, 7, 24])
def test_exactly_ipc_different_images_of_each_class_in_order(method, ipc):
    x, y, _ = blobs()
    rows = METHODS[method](x, y, ipc)
    assert y[rows].tolist() == [0] * ipc + [1] * ipc
    assert len(set(rows.tolist())) == 2 * ipc


def test_kmeans_takes_one_image_of_each_group_and_the_one_nearest_to_its_centre():
    x, y, group = blobs()
    rows = kmeans_rows(x, y, 3)
    assert sorted(group[rows].tolist()) == list(range(6))
    for row in rows:
        own = x[group == group[row]]
        distances = (own - own.mean(0)).norm(dim=1)
        assert float((x[row] - own.mean(0)).norm()) == pytest.approx(float(distances.min()), rel=1e-5)


def test_equal_images_are_no_trouble():
    rows = kmeans_rows(torch.zeros(6, 2), torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    assert len(set(rows.tolist())) == 4


def test_herding_is_greedy():
    x, y = torch.randn(6, 3, dtype=torch.float64, generator=numbers()), torch.zeros(6, dtype=torch.int64)
    rows = herding_rows(x, y, 3).tolist()
    for k in range(1, 4):
        best = min(
            set(range(6)) - set(rows[: k - 1]), key=lambda i: float((x[[*rows[: k - 1], i]].mean(0) - x.mean(0)).norm())
        )
        assert rows[k - 1] == best
    first = min(itertools.combinations(range(6), 1), key=lambda c: float((x[list(c)].mean(0) - x.mean(0)).norm()))
    assert rows[0] == first[0]


def test_random_rows_follow_from_the_generator_and_reach_all():
    y = torch.tensor([0, 1] * 5)
    assert torch.equal(random_rows(y, 2, generator=numbers(3)), random_rows(y, 2, generator=numbers(3)))
    generator = numbers()
    seen = torch.cat([random_rows(y, 1, generator=generator) for _ in range(100)])
    assert len(seen.unique()) == 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ipc", [0, 3])
def test_too_many_images_name_the_class_and_both_counts(method, ipc):
    y = torch.tensor([0, 0, 0, 1, 1])
    with pytest.raises(LegatoValueError, match=rf"ipc: expected 1 .. 2, the rows of class 1, the smallest; got {ipc}"):
        METHODS[method](torch.randn(5, 2), y, ipc)


def test_whitening_and_back_is_nothing():
    x = torch.randn(200, 2, 3, 3, dtype=torch.float64, generator=numbers()).cumsum(3)
    zca = Zca.fit(x, eps=0.1)
    white = zca.whiten(x)
    torch.testing.assert_close(zca.invert(white), x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(zca.forward, zca.forward.T, rtol=1e-10, atol=1e-12)
    fine = Zca.fit(x, eps=1e-9).whiten(x).flatten(1)
    torch.testing.assert_close(fine.T.cov(), torch.eye(18, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    values = torch.linalg.eigvalsh(white.flatten(1).T.cov())
    spread = torch.linalg.eigvalsh(x.flatten(1).T.cov())
    torch.testing.assert_close(values, spread / (spread + 0.1), rtol=1e-8, atol=1e-10)
    with pytest.raises(LegatoValueError, match="eps: expected a number > 0"):
        Zca.fit(x, eps=0.0)
    with pytest.raises(LegatoValueError, match="images: expected at least two"):
        Zca.fit(x[:1])
