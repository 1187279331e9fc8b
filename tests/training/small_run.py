"""A network and real digits that train in no time: the parts that the tests of the loop share."""

from collections.abc import Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from legato import training
from legato.data import Batches
from legato.training.objective import Batch, EpochBatches

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


@cache
def table() -> Tensor:
    """float64 [300, 65]: the first digits that scikit-learn brings, without the second that its import takes."""
    found = find_spec("sklearn")
    assert found and found.origin
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return torch.from_numpy(np.loadtxt(path, delimiter=",", max_rows=300))


def rows(count: int = 256, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """(inputs [N, 64], targets [N], index [N])."""
    return table()[:count, :64].to(dtype) / 16, table()[:count, 64].long(), torch.arange(count)


def digits(count: int = 256, batch_size: int = 32, **options: Any) -> Batches:
    return Batches(*rows(count, options.pop("dtype", torch.float32)), batch_size, **options)


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10))


def fit(model: nn.Module | None = None, batches: Any = None, objective: Any = None, **options: Any) -> training.Fitted:
    settings = {"epochs": 2, "optimizer": SGD, "schedule": training.cosine} | options
    loss = objective or training.Criterion(nn.CrossEntropyLoss())
    return training.fit(net() if model is None else model, loss, digits() if batches is None else batches, **settings)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def losses(fitted: training.Fitted) -> list[float | None]:
    return [entry["train_loss"] for entry in fitted.history]


class Stop(Exception):
    """Ends a run between two batches, as a killed process does."""


class StoppingBatches:
    """Batches that break off after some of them."""

    def __init__(self, batches: EpochBatches, after: int) -> None:
        self.batches, self.left = batches, after

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for batch in self.batches.epoch(epoch):
            self.left -= 1
            if self.left < 0:
                raise Stop
            yield batch


class Changed:
    """An objective like another one, except for the methods of a subclass."""

    def __init__(self, objective: Any = None) -> None:
        self.plain = objective or training.Criterion(nn.CrossEntropyLoss())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


class Sam(Changed):
    """Climb by 0.05 along the gradient, take the gradient there, come back: two closures a step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.parameters = list(model.parameters())

    def gradients(self, closure: Any) -> Tensor:
        loss = closure()
        with torch.no_grad():
            gradients = [p.grad for p in self.parameters]
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            climbs = [0.05 * g / norm for g in gradients]
            torch._foreach_add_(self.parameters, climbs)
        closure()
        with torch.no_grad():
            torch._foreach_sub_(self.parameters, climbs)
        return loss


class NanAt(Changed):
    """The loss is NaN in one step."""

    def __init__(self, step: int, value: float = float("nan")) -> None:
        super().__init__()
        self.step, self.value = step, value

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        loss = self.plain.loss(model, batch, step)
        return loss * self.value if step == self.step else loss
