"""What flat minima cost: a whole training step with each method against the plain one."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato.bench.case import Case
from legato.bench.timing import Step
from legato.flatness import ASAM, MESA, MSAM, SAF, SAM, LookSAM
from legato.nets import build

NETS = {"resnet": (128, 1, 28, 28), "mlp": (128, 784)}
"""A step of at least 50 ms, and one of about 2 ms, on one thread."""
CLASSES = 10
RADII = {"ASAM": 1.0, "MSAM": 1.0}
BLOCKS = 16
"""Batches an epoch, each with rows of its own."""
Extra = Callable[[nn.Module], Any]


def cases(official: Path | None = None) -> list[Case]:
    """Every case of the room; `official` is of no use here."""
    methods: list[tuple[str, Callable[[str], Step], dict[str, float]]] = [
        ("SAF", partial(term_step, _saf), {"resnet": 1.02, "mlp": 1.15}),
        ("MESA", partial(term_step, _mesa), {"resnet": 1.45}),
        *(
            (kind.__name__, partial(seam_step, partial(kind, radius=RADII.get(kind.__name__, 0.05))), {})
            for kind in (SAM, ASAM, LookSAM, MSAM)
        ),
    ]
    rows = [
        Case(f"{name}, {net}", "a plain step", shape, partial(make, net), partial(plain_step, net), bars.get(net))
        for net, shape in NETS.items()
        for name, make, bars in methods
    ]
    if find_spec("pytorch_optimizer"):
        rows += [
            Case(f"SAM, {net}", "pytorch_optimizer's SAM", shape, partial(seam_step, partial(SAM, radius=0.05), net), partial(peer_step, net))
            for net, shape in NETS.items()
        ]  # fmt: skip
    return rows


class _Training:
    """A network, an optimizer, and batches whose rows come by once an epoch."""

    def __init__(self, net: str) -> None:
        shape = NETS[net]
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.model = build(net, shape[1:], CLASSES)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
        self.inputs = torch.randn(shape, generator=generator)
        self.target = torch.randint(CLASSES, shape[:1], generator=generator)
        self.steps = 0

    @property
    def rows(self) -> int:
        return BLOCKS * len(self.target)

    def next(self) -> tuple[int | None, Tensor]:
        """The number of the epoch that begins here, if one does, and the index of the next rows."""
        epoch, block = divmod(self.steps, BLOCKS)
        self.steps += 1
        first = block * len(self.target)
        return (None if block else epoch), torch.arange(first, first + len(self.target))

    def loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.inputs), self.target)

    def closure(self) -> Tensor:
        """Gradients of the mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        return loss.detach()


def plain_step(net: str) -> Step:
    """Forward, backward and SGD."""
    training = _Training(net)

    def step() -> None:
        training.closure()
        training.optimizer.step()

    return step


def term_step(make: Callable[[_Training], Any], net: str) -> Step:
    """The same with a term that is active in every timed step."""
    training = _Training(net)
    term = make(training)
    for _ in range(4 * BLOCKS):  # what is recorded before the term begins, without the network
        epoch, index = training.next()
        if epoch is not None:
            term.begin_epoch(epoch)
        if isinstance(term, SAF):
            term(torch.randn(len(index), CLASSES), index)

    def step() -> None:
        epoch, index = training.next()
        if epoch is not None:
            term.begin_epoch(epoch)
        training.optimizer.zero_grad(set_to_none=True)
        out = training.model(training.inputs)
        loss = F.cross_entropy(out, training.target) + term.penalty(out, (training.inputs, training.target, index))
        loss.backward()
        training.optimizer.step()
        term.after_step(training.model)

    return step


def _saf(training: _Training) -> SAF:
    return SAF(training.rows, CLASSES, start=2, lag=3)


def _mesa(training: _Training) -> MESA:
    return MESA(training.model, start=2, steps_per_epoch=BLOCKS)


def seam_step(make: Extra, net: str) -> Step:
    """The same with gradients found in another way."""
    training = _Training(net)
    method = make(training.model)

    def step() -> None:
        method.gradients(training.closure)
        training.optimizer.step()

    return step


def peer_step(net: str) -> Step:
    """A step of `pytorch_optimizer.SAM`, which wraps the optimizer and is handed a closure."""
    from pytorch_optimizer import SAM as PeerSAM

    training = _Training(net)
    optimizer = PeerSAM(training.model.parameters(), torch.optim.SGD, rho=0.05, lr=1e-4, momentum=0.9, nesterov=True)

    def closure() -> Tensor:
        loss = training.loss()
        loss.backward()
        return loss

    def step() -> None:
        closure()
        optimizer.step(closure)
        optimizer.zero_grad()

    return step
