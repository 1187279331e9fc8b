"""The ways to a gradient that pass twice, and small problems for them."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from legato.flatness.looksam import LookSAM
from legato.flatness.msam import MSAM
from legato.flatness.sam import ASAM, SAM

D = torch.float64
SEAMS = {
    "SAM": partial(SAM, radius=0.1),
    "ASAM": partial(ASAM, radius=0.5),
    "LookSAM": partial(LookSAM, radius=0.1, every=3),
    "MSAM": partial(MSAM, radius=0.3),
}


def plain_closure(net, x, y, loss=F.mse_loss):
    def closure():
        net.zero_grad()
        value = loss(net(x), y)
        value.backward()
        return value.detach()

    closure.calls = 0

    def counted():
        closure.calls += 1
        return closure()

    counted.calls = lambda: closure.calls
    return counted


def digits_like(rows=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator), torch.randint(4, (rows,), generator=generator)


def noisy_net():
    """BatchNorm and dropout: a pass leaves its traces."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
