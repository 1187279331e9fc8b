"""A distilled set: a few images with their labels, and all that is needed to use them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from legato import errors
from legato.distillation.preprocessing import Preprocessing
from legato.distillation.rows import Rows
from legato.distillation.students import SCHOOLING, Schooling, train_student
from legato.distillation.whitening import Zca
from legato.training.checkpoint import read_tensors, write_tensors

_KEY = "legato-distilled"
SIDE = 64
"""Pixels of a picture in a grid, at least."""


@final
@dataclass(frozen=True)
class DistilledSet:
    """What `distill` gives."""

    images: Tensor = field(repr=False)
    """[C * ipc, ...] as networks see them, class by class."""
    labels: Tensor = field(repr=False)
    """int64 [C * ipc]."""
    alpha: float
    """The learned step size of a student without momentum; a good learning rate to begin with."""
    preprocessing: Preprocessing = field(repr=False)
    """From raw inputs to what networks see, and back: put the test set through `preprocessing.apply`."""
    validation: float
    """Accuracy in [0, 1] of the student by which this set was chosen: on validation rows, so a little flattering."""
    steps: int
    """The outer step at which it stood."""
    class_names: tuple[str, ...] = ()
    stopped: str = ""
    """Why the run ended early, if it did."""
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    """Settings, recipes, digest of the data, and `history`: step, matching loss, step size, validation accuracy."""

    @property
    def ipc(self) -> int:
        """Images a class."""
        return len(self.labels) // (int(self.labels.max()) + 1)

    @property
    def rows(self) -> Rows:
        """(images, labels) as networks see them."""
        return self.images, self.labels

    def as_dataset(self) -> TensorDataset:
        """The rows, for a DataLoader."""
        return TensorDataset(self.images, self.labels)

    def train_student(
        self, model: nn.Module, *, learning_rate: float | None = None, schooling: Schooling = SCHOOLING, seed: int = 0
    ) -> nn.Module:
        """Train any network for these inputs in place; the learning rate is `alpha` unless it is given. It expects preprocessed inputs."""
        device = next(model.parameters()).device
        rows = self.images.to(device), self.labels.to(device)
        return train_student(model, rows, learning_rate or self.alpha, schooling, seed=seed)

    def pictures(self) -> Tensor:
        """The images as pictures in 0 .. 1, [C * ipc, channels, H, W]. Raises: LegatoValueError for vectors."""
        if self.images.dim() != 4:
            raise errors.argument(
                "pictures", expected="a set of images", got=f"vectors of {self.images.shape[1]} numbers"
            )
        return self.preprocessing.invert(self.images).clamp(0, 1)

    def grid(self, path: str | Path) -> Path:
        """Write the pictures as one PNG, a column a class."""
        from PIL import Image

        columns = len(self.labels) // self.ipc
        order = torch.arange(len(self.labels)).view(columns, self.ipc).T.flatten()
        Image.fromarray(tiled(self.pictures()[order], columns)).save(path, "PNG")
        return Path(path)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, all in it, and the same words as JSON beside it."""
        told = {
            "alpha": self.alpha, "validation": self.validation, "steps": self.steps, "class_names": self.class_names,
            "stopped": self.stopped, "provenance": self.provenance,
        }  # fmt: skip
        words = json.dumps(told, indent=1)
        path = Path(path)
        write_tensors(
            path, {"images": self.images, "labels": self.labels, **self.preprocessing.tensors()}, {_KEY: words}
        )
        path.with_suffix(".json").write_text(words)
        return path

    @staticmethod
    def load(path: str | Path) -> "DistilledSet":
        """Read what `save` wrote, on the CPU. Raises: CheckpointError for a file that is no distilled set."""
        tensors, words = read_tensors(Path(path))
        if _KEY not in words:
            raise errors.CheckpointError(f"{path} is no distilled set: its header has no {_KEY!r} entry.")
        told = json.loads(words[_KEY])
        told["class_names"] = tuple(told["class_names"])
        zca = [tensors[name] for name in ("zca_mean", "zca_forward", "zca_backward") if name in tensors]
        preprocessing = Preprocessing(tensors["mean"], tensors["deviation"], Zca(*zca) if zca else None)
        return DistilledSet(tensors["images"], tensors["labels"], preprocessing=preprocessing, **told)


def tiled(pictures: Tensor, across: int) -> NDArray[np.uint8]:
    """Pictures [n, 1 or 3, H, W] in 0 .. 1 as one of bytes, [H', W'] or [H', W', 3]: `across` in a row, enlarged to some 64 pixels each."""
    times = max(1, -(-SIDE // max(pictures.shape[2:])))
    large = pictures.float().cpu().repeat_interleave(times, 2).repeat_interleave(times, 3)
    framed = torch.nn.functional.pad(large, (2, 2, 2, 2), value=1.0)
    lines = [torch.cat(list(line), dim=2) for line in framed.split(across)]
    whole = (torch.cat(lines, dim=1) * 255).round().to(torch.uint8)
    return whole[0].numpy() if len(whole) == 1 else whole[:3].permute(1, 2, 0).contiguous().numpy()
