"""Sharpness of a model that legato saved: its folder, and rows of data prepared as they were in its training."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato import data, errors, nets, training
from legato.data import Splits
from legato.studies.prepared import Source
from legato.studies.sharpness import Report, error_share, report
from legato.training.checkpoint import read_tensors
from legato.training.placement import place
from legato.training.saved import WEIGHTS_FILE

NUMBERS_AT_ONCE = 2**21
"""Input numbers in a batch, where no number of rows is asked for: many rows of a table, fewer of large pictures."""


@dataclass(frozen=True)
class Question:
    """Which model, on which rows."""

    checkpoint: Path
    """A folder that holds model.safetensors."""
    source: Source
    rows: int = 2000
    """How many rows at most, drawn by the seed."""
    split: Literal["train", "validation", "test"] = "train"
    between: Path | None = None
    """Another such folder, of a network of the same shape."""
    batch_rows: int | None = None
    """Rows that go through the model at once; None chooses by the size of an input. A single batch saves time, and costs memory."""
    model: str | None = None
    """`pkg.module:factory` of the user's own network: named again, because to build it is to run it."""
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of `Settings`, by name."""


@dataclass(frozen=True)
class Saved:
    """A model with the words that were saved beside it."""

    model: nn.Module
    card: dict[str, Any]
    name: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.card["input_shape"])


def measure(question: Question, *, progress: bool = False) -> Report:
    """Load model and rows, and measure.

    Raises: CheckpointError for a folder that holds no model of legato; DataError for data that the model was not made for;
        DeviceError for a device that is not there; LegatoValueError for a number out of range.
    """
    device = place(None, question.device).device
    for name, count, least in (("rows", question.rows, 2), ("batch_rows", question.batch_rows, 1)):
        if count is not None and count < least:
            raise errors.argument(name, expected=f"a whole number >= {least}", got=count)
    saved = open_model(question.checkpoint, question.model)
    other = None if question.between is None else open_model(question.between, question.model)
    seed = int(saved.card.get("seed", question.options.get("seed", 0)))
    splits = question.source.load(seed)
    inputs, targets = rows_of(saved, splits, question.split, question.rows, seed)
    size = question.batch_rows or max(1, NUMBERS_AT_ONCE // inputs[0].numel())
    batches = list(zip(inputs.to(device).split(size), targets.to(device).split(size), strict=True))
    return report(
        saved.model.to(device),
        F.cross_entropy,
        batches,
        metric=error_share,
        between=None if other is None else other.model.to(device),
        title=f"legato sharpness: {saved.name}",
        method=tuple(_method(question, saved, other, splits, seed)),
        progress=progress,
        **question.options,
    )


def open_model(folder: Path, own: str | None = None) -> Saved:
    """A model that `legato.training.save_model` wrote, in eval mode on the CPU.

    Args:
        folder: holds model.safetensors.
        own: the import path of its factory, if it is not a network of legato.
    Raises: CheckpointError for anything else; LegatoValueError for a factory that was not named.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"**/{WEIGHTS_FILE}"))
        fix = (
            f"choose one of {', '.join(inside[:8])} in it"
            if inside
            else "legato compare DATA --save-model writes models below RUN/models"
        )
        raise errors.CheckpointError(f"{folder} is no model of legato: it holds no {WEIGHTS_FILE}. Fix: {fix}.")
    card: dict[str, Any] = json.loads(read_tensors(folder / WEIGHTS_FILE)[1].get("legato", "{}"))

    def build(factory: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        if ":" in factory and factory != own:
            raise errors.argument(
                "model", expected=f"the factory of {folder.name}, {factory}, to be named, for it is run", got=own,
                fix=f"--model {factory}, if you trust it",
            )  # fmt: skip
        return nets.build(factory, input_shape, num_classes)

    return Saved(training.load_model(folder, build), card, folder.name)


def rows_of(saved: Saved, splits: Splits, split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most `count` rows of a split, drawn by the seed, scaled as the model saw them in training.

    Raises: DataError where shape or classes are not the model's.
    """
    classes = saved.card.get("class_names") or list(splits.class_names)
    for what, mine, theirs in (
        ("inputs of shape", saved.input_shape, splits.input_shape),
        ("a number of classes of", saved.card["num_classes"], splits.num_classes),
        ("the classes", list(classes), list(splits.class_names)),
    ):
        if mine != theirs:
            raise errors.DataError(errors.message("data", expected=f"{what} {mine}, as {saved.name} has", got=theirs))
    part = getattr(data.to_unit(splits), split)
    kept = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:count]
    if len(kept) < 2:
        raise errors.DataError(errors.message("data", expected=f"2 rows or more in the {split} split", got=len(kept)))
    scale = saved.card.get("standardisation")
    mean, deviation = data.moments(splits) if scale is None else (torch.tensor(scale[k]) for k in ("mean", "deviation"))
    return nets.Standardise(mean, deviation)(part.inputs[kept]), part.targets[kept]


def _method(
    question: Question, saved: Saved, other: Saved | None, splits: Splits, seed: int
) -> Iterator[tuple[str, str]]:
    card = saved.card
    trained = f", trained with {card['objective']} at rate {card['learning_rate']:g}" if "objective" in card else ""
    yield "model", f"{saved.name}: {card['factory']}{trained}"
    if other is not None:
        yield "other model", f"{other.name}: {other.card['factory']}"
    yield "loss", "cross-entropy, whatever the model was trained with"
    known = "" if "seed" in card else "; whether the model learned from the same ones is not recorded"
    yield "rows", f"of the {question.split} split, drawn with seed {seed}{known}"
    yield "data", f"{splits.provenance.name}; licence {splits.provenance.licence}; {splits.provenance.source}"
    if card.get("label_noise"):
        yield "labels", f"as they are; training saw {100 * card['label_noise']:g} % wrong ones"
    if "standardisation" not in card:
        yield "inputs", "standardised by this data's training split, for the model does not say how its own were"
