"""What the room hands out: the three splits of a data set, and where they came from."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """One part of a data set, as plain tensors on the CPU."""

    inputs: Tensor
    """uint8 [N, C, H, W] for images, float32 [N, D] for vectors (images are float32 after `standardize`)."""
    targets: Tensor
    """int64 [N], class indices in 0 .. num_classes - 1."""
    index: Tensor
    """int64 [N], the row in the training pool, or in the test (or validation) file where there is one; of the chosen classes alone."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Provenance:
    """Where a data set came from and everything that was done to it. Holds no path of the user's machine."""

    name: str
    """The name it was asked for by: a name of the table, or the base name of a file or folder."""
    licence: str
    """The licence of the data; "not stated" for a user's own."""
    citation: str
    """What to cite; empty for a user's own data."""
    source: str
    """Which place it was taken from, in words: "embedded", "system: dataset-fashion-mnist", "file: data.csv"."""
    sha256: str
    """Of the decoded arrays, before any cut: equal for every seed, different for any other data."""
    notes: tuple[str, ...] = ()
    """Everything done to the data between the file and these tensors, a sentence each."""
    searched: tuple[str, ...] = ()
    """The places looked at, in order, the last one being the one that was taken."""


@dataclass(frozen=True)
class Splits:
    """A data set, cut in three: learn on `train`, choose on `validation`, report on `test`."""

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    """One name a class, in the order of the class indices."""
    feature_names: tuple[str, ...]
    """One name a column for vectors; empty for images."""
    provenance: Provenance

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input: (C, H, W) or (D,)."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def is_image(self) -> bool:
        """Whether one input is an image [C, H, W] and not a vector [D]."""
        return self.train.inputs.dim() == 4
