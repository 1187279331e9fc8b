"""Which real images may stand for a class: at random, nearest to the centres of k-means, or by herding. Rows into the training set."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from legato import errors

Rows = NDArray[np.int64]


def random_rows(targets: Tensor, ipc: int, *, generator: Generator) -> Tensor:
    """`ipc` different rows of each class, int64 [C * ipc], class by class.

    Args:
        targets: int64 [N], classes 0 .. C-1, each with at least ipc rows.
        ipc: images a class, >= 1.
        generator: on the CPU.
    Raises: LegatoValueError for an ipc that is not in reach of the smallest class, which it names.
    """
    return _by_class(targets, ipc, lambda rows: torch.randperm(len(rows), generator=generator)[:ipc])


def kmeans_rows(features: Tensor, targets: Tensor, ipc: int, *, seed: int = 0) -> Tensor:
    """The real images nearest to the `ipc` centres of k-means in each class, all different; int64 [C * ipc].

    Centres and images are paired so that the sum of squared distances is smallest, so no image is taken twice.

    Args:
        features: [N, ...], flattened: pixels, or an expert's logits (AST's representative initialisation).
        targets, ipc: as for `random_rows`.
        seed: of k-means.
    Source: AST, arXiv 2310.10541, as its earlier code has it; the last one takes ten centres for any ipc, and no image below ipc = 10.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    flat = features.detach().flatten(1).double().cpu()

    def nearest(rows: Tensor) -> Tensor:
        own = flat[rows].numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # equal images: they are paired all the same
            centres = KMeans(ipc, n_init=5, random_state=seed).fit(own).cluster_centers_
        return torch.from_numpy(linear_sum_assignment(cdist(centres, own, "sqeuclidean"))[1])

    return _by_class(targets, ipc, nearest)


def herding_rows(features: Tensor, targets: Tensor, ipc: int) -> Tensor:
    """Greedy: each next image brings the mean of those taken nearest to the mean of its class; int64 [C * ipc].

    Args:
        features: [N, ...], flattened.
        targets, ipc: as for `random_rows`.
    Source: Welling 2009, doi 10.1145/1553374.1553517, as Rebuffi et al. 2017, arXiv 1611.07725, use it.
    """
    flat = features.detach().flatten(1).double().cpu()

    def herd(rows: Tensor) -> Tensor:
        own = flat[rows]
        wanted, total, taken = own.mean(0), torch.zeros_like(own[0]), list[int]()
        for k in range(1, ipc + 1):
            distance = ((total + own) / k - wanted).square().sum(1)
            distance[taken] = torch.inf
            taken.append(int(distance.argmin()))
            total = total + own[taken[-1]]
        return torch.tensor(taken)

    return _by_class(targets, ipc, herd)


def _by_class(targets: Tensor, ipc: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """`choose` is given the rows of a class and says which of them, [ipc]."""
    counts = torch.bincount(targets)
    least = int(counts.argmin())
    if not 1 <= ipc <= int(counts[least]):
        raise errors.argument("ipc", expected=f"1 .. {counts[least]}, the rows of class {least}, the smallest", got=ipc)
    classes = [(targets == c).nonzero()[:, 0] for c in range(len(counts))]
    return torch.cat([rows[choose(rows.cpu()).to(rows.device)] for rows in classes])
