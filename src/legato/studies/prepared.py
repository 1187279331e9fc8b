"""The data of one trial: found, cut, corrupted and scaled as the trial's config says."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from legato import data
from legato.data import Split, Splits

if TYPE_CHECKING:
    from legato.studies.classify import TrialConfig
    from legato.studies.references import ReferenceConfig

ROWS_SEED = 4_000_037
NOISE_SEED = {"train": 1_000_003, "validation": 2_000_003, "test": 3_000_017}


@dataclass(frozen=True)
class Source:
    """Where the data comes from. Not part of a trial's name: that is made from the content, so a moved file changes nothing."""

    data: str
    target: str | None = None
    group: str | None = None
    classes: tuple[str, ...] = ()
    image_size: int | None = None
    validation: str | None = None
    test: str | None = None
    data_dir: str | None = None
    download: bool = False

    def load(self, seed: int) -> Splits:
        """The splits of this seed."""
        return data.load(
            self.data, target=self.target, group=self.group, classes=self.classes or None, image_size=self.image_size,
            validation=self.validation, test=self.test, seed=seed, data_dir=self.data_dir, download=self.download,
        )  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """Inputs with the labels that a learner sees and, where they were corrupted, the true ones."""

    inputs: Tensor
    seen: Tensor
    true: Tensor
    index: Tensor


@dataclass(frozen=True)
class Task:
    """The data of one trial, on its device."""

    train: Labelled
    validation: Labelled
    test: Labelled
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: Tensor
    """Of the training inputs, a number for each channel or column."""
    deviation: Tensor
    """Their standard deviation; inputs are standardised with both, unless the trial is attacked: then the model does it."""

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


def _thinned(splits: Splits, rows: int | None, seed: int) -> Splits:
    """At most `rows` rows to learn from, in class shares that are left to chance."""
    if rows is None or rows >= len(splits.train):
        return splits
    generator = torch.Generator().manual_seed(ROWS_SEED + seed)
    kept = torch.randperm(len(splits.train), generator=generator)[:rows]
    train = splits.train
    return replace(splits, train=Split(train.inputs[kept], train.targets[kept], train.index[kept]))


def prepare(config: "TrialConfig | ReferenceConfig", source: Source) -> Task:
    """Cut, corrupt and scale. Cut and corruption depend on the seed alone, so all arms see the same.

    Attacked inputs stay in 0 .. 1, so that a radius means what it says.
    """
    splits = _thinned(source.load(config.seed), config.train_rows, config.seed)
    mean, deviation = data.moments(splits)
    splits = data.to_unit(splits) if config.attack_radius else data.standardize(splits)

    def labelled(name: str, split: Split, corrupt: bool) -> Labelled:
        seen = split.targets
        if corrupt and config.label_noise:
            seen = data.corrupt_labels(
                seen, splits.num_classes, config.label_noise, kind=config.noise_kind, seed=NOISE_SEED[name] + config.seed
            )  # fmt: skip
        return Labelled(*(t.to(config.device) for t in (split.inputs, seen, split.targets, split.index)))

    return Task(
        labelled("train", splits.train, True),
        labelled("validation", splits.validation, config.validation_labels == "noisy"),
        labelled("test", splits.test, True),
        splits.input_shape,
        splits.class_names,
        mean.to(config.device),
        deviation.to(config.device),
    )
