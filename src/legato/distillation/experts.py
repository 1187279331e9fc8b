"""Experts: training runs on all the data, of which the weights after each epoch are kept."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.distillation.flat import FlatModel, NetFactory, fresh
from legato.distillation.objective import PENALTIES, AugmentedCrossEntropy, Penalty
from legato.distillation.rows import Rows, Shuffled, accuracy, digest
from legato.training import fit
from legato.training.checkpoint import read_tensors, write_tensors

_KEY = "legato-expert"


@dataclass(frozen=True)
class Recipe:
    """How experts are trained. Those of trajectory matching are plain SGD; AST's have momentum, a ramp and a penalty."""

    epochs: int = 10
    """E >= 1; E + 1 entries, the first before training."""
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.0
    """AST: 0.9, with a learning rate of 0.003."""
    weight_decay: float = 0.0
    """AST: 1e-3."""
    loss_ramp: bool = False
    """AST's clipping loss: the loss times 0.5, 0.55 ... 0.95 in the first ten epochs. Without momentum a warm-up of the learning rate."""
    gradient_penalty: Penalty | None = None
    """AST's penalty on input gradients: channel, as its code has it, or sample, as the equation that it goes back to."""
    penalty_weight: float = 2.0
    augment: bool = False
    """DSA, for images."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise errors.argument(
                "epochs, batch_size", expected="whole numbers >= 1", got=f"{self.epochs}, {self.batch_size}"
            )
        if self.gradient_penalty is not None and self.gradient_penalty not in PENALTIES:
            raise errors.choice("gradient_penalty", self.gradient_penalty, PENALTIES)


PLAIN = Recipe()
"""Plain SGD."""


@final
@dataclass(frozen=True)
class Expert:
    """One run."""

    weights: Tensor = field(repr=False)
    """[K, P], before training and after each of the first K - 1 epochs."""
    final: Tensor = field(repr=False)
    """[P], at the end."""
    steps: tuple[float, ...]
    """|theta_{e+1} - theta_e| of each epoch: how smooth the run was."""
    errors: tuple[float, ...]
    """Share of the validation rows that are wrong after each epoch."""
    fingerprint: Mapping[str, str] = field(repr=False)
    """What it was made from; equal for experts that may be used together."""

    def at(self, epoch: int) -> Tensor:
        """theta after so many epochs, [P] float32."""
        return self.weights[epoch].float()

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        told = {"steps": self.steps, "errors": self.errors, "fingerprint": dict(self.fingerprint)}
        write_tensors(path, {"weights": self.weights, "final": self.final}, {_KEY: json.dumps(told)})

    @staticmethod
    def load(path: Path, expected: Mapping[str, str] | None = None) -> "Expert":
        """Read a file that `save` wrote.

        Raises: CheckpointError for a file that cannot be read or is no expert; LegatoValueError for a fingerprint that is not the
            expected one, with the names of what differs.
        """
        tensors, words = read_tensors(path)
        if _KEY not in words:
            raise errors.CheckpointError(f"{path} is no expert: its header has no {_KEY!r} entry. Fix: delete it.")
        told: dict[str, Any] = json.loads(words[_KEY])
        found = told["fingerprint"]
        differs = [name for name in expected or () if found.get(name) != (expected or {})[name]]
        if differs:
            raise errors.argument(
                "experts", expected=f"experts of the same {', '.join(differs)}", got=f"others in {path.name}",
                fix="train new ones, in another folder",
            )  # fmt: skip
        return Expert(tensors["weights"], tensors["final"], tuple(told["steps"]), tuple(told["errors"]), found)


def train_expert(
    net: NetFactory,
    train: Rows,
    val: Rows,
    recipe: Recipe = PLAIN,
    *,
    seed: int = 0,
    keep: int | None = None,
    dtype: torch.dtype = torch.float16,
    folder: Path | None = None,
) -> Expert:
    """Train one expert, or take it from `folder` if it is there.

    Args:
        net: makes the network; torch's global random numbers are seeded for it, and put back.
        train, val: rows as networks see them, on one device, where the expert is trained.
        recipe: how.
        seed: of weights, order and augmentation.
        keep: K - 1, the last epoch whose weights are kept, besides the final ones; None for all.
        dtype: of the kept weights.
        folder: a cache of experts, each under the digest of its fingerprint and seed.
    Raises: LegatoValueError for a network with running statistics or dropout, and for a run that diverged.
    """
    model = fresh(net, seed).to(train[0].device)
    keep = recipe.epochs if keep is None else min(keep, recipe.epochs)
    found = fingerprint(model, train, recipe, keep)
    name = digest(torch.frombuffer(bytearray(json.dumps([found, seed, str(dtype)]).encode()), dtype=torch.uint8))
    path = None if folder is None else Path(folder) / f"expert-{name}.safetensors"
    if path is not None and path.exists():
        return Expert.load(path, found)
    expert = _train(model, train, val, recipe, seed, keep, dtype, found)
    if path is not None:
        expert.save(path)
    return expert


def fingerprint(model: nn.Module, train: Rows, recipe: Recipe, keep: int) -> dict[str, str]:
    """What must be equal for experts to be used with the same data and network. Preprocessing is seen in the data."""
    shapes = [(name, list(p.shape)) for name, p in model.named_parameters()]
    return {
        "network": f"{model} {shapes}",
        "training data": digest(*train),
        "recipe": json.dumps(asdict(recipe)),
        "kept epochs": str(keep),
    }


def _train(
    model: nn.Module, train: Rows, val: Rows, recipe: Recipe, seed: int, keep: int, dtype: torch.dtype, found: dict[str, str]
) -> Expert:  # fmt: skip
    flat = FlatModel(model)
    path = [flat.weights()]

    def snapshot(trained: nn.Module) -> dict[str, float]:
        path.append(flat.weights())
        return {"validation_error": 1 - accuracy(trained, val)}

    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    objective = AugmentedCrossEntropy(
        augment=recipe.augment, loss_ramp=recipe.loss_ramp, penalty=recipe.gradient_penalty, weight=recipe.penalty_weight, seed=seed
    )  # fmt: skip
    fitted = fit(
        model, objective, Shuffled(train, recipe.batch_size, seed), epochs=recipe.epochs,
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=momentum, weight_decay=decay), validate=snapshot, device=train[0].device,
    )  # fmt: skip
    steps = [float((after - before).norm()) for before, after in pairwise(path)]
    if fitted.diverged is not None or not math.isfinite(sum(steps)):
        got = fitted.diverged or "weights that are not finite"
        raise errors.argument("experts", expected="a training that stays finite", got=got, fix="a lower learning_rate")
    wrong = tuple(float(entry["validation_error"]) for entry in fitted.history)
    weights = torch.stack(path[: keep + 1]).to(dtype).cpu()
    return Expert(weights, path[-1].cpu(), tuple(steps), wrong, found)
