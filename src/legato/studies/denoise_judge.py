"""A small classifier as judge of generated pictures: is the class right, and how far are their features from those of real ones?"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from legato.data import Batches, Splits
from legato.metrics import frechet_distance
from legato.training import Criterion, cosine, fit

FEATURES, EPOCHS = 32, 60


@dataclass(frozen=True)
class Judge:
    """Reads the class of pictures, and their features [B, 32], the layer before the last."""

    body: nn.Module
    head: nn.Module

    def features(self, inputs: Tensor) -> Tensor:
        """[B, 32], without a gradient."""
        with torch.no_grad():
            out: Tensor = self.body(inputs)
        return out

    def accuracy(self, inputs: Tensor, labels: Tensor) -> float:
        """Share of pictures that it takes for their class."""
        with torch.no_grad():
            return float((self.head(self.body(inputs)).argmax(1) == labels).double().mean())

    def distance(self, inputs: Tensor, real: Tensor) -> float:
        """Frechet distance of their features."""
        return frechet_distance(self.features(inputs).numpy(), self.features(real).numpy())


def judge(splits: Splits, seed: int = 0) -> Judge:
    """A network of one hidden layer more than the features, trained on the training split in [-1, 1]; the same for the same seed."""
    torch.manual_seed(seed)
    dims = math.prod(splits.input_shape)
    body = nn.Sequential(nn.Flatten(), nn.Linear(dims, 128), nn.ReLU(), nn.Linear(128, FEATURES), nn.ReLU())
    head = nn.Linear(FEATURES, splits.num_classes)
    part = splits.train
    fit(
        nn.Sequential(body, head), Criterion(nn.CrossEntropyLoss()), Batches(part.inputs, part.targets, part.index, 64, seed=seed),
        epochs=EPOCHS, optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=1e-2), schedule=cosine,
    )  # fmt: skip
    return Judge(body.eval(), head.eval())
