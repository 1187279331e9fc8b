"""From raw inputs to what networks see, and back: standardised, and white if asked. Learned from the training rows alone."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from legato.distillation.rows import digest
from legato.distillation.whitening import Zca


@final
@dataclass(frozen=True)
class Preprocessing:
    """x = (raw - mean) / deviation for each channel of images in 0 .. 1 or each column of vectors, then `zca` where there is one."""

    mean: Tensor
    """[C] or [D]."""
    deviation: Tensor
    """[C] or [D]; 1 where the training rows are constant."""
    zca: Zca | None = None

    @staticmethod
    def fit(inputs: Tensor, *, zca: bool = False) -> "Preprocessing":
        """Learn it from raw training inputs [N, C, H, W], uint8 or in 0 .. 1, or [N, D]."""
        raw = _unit(inputs)
        axes = (0, *range(2, raw.dim()))
        mean, deviation = raw.mean(axes), raw.std(axes, correction=0)
        plain = Preprocessing(mean, deviation.masked_fill(deviation < 1e-8, 1))
        return Preprocessing(plain.mean, plain.deviation, Zca.fit(plain.apply(inputs))) if zca else plain

    def apply(self, inputs: Tensor) -> Tensor:
        """Raw inputs, of any split, as networks see them; float32, or float64 where they are."""
        raw = _unit(inputs)
        mean, deviation = (_for(statistic, raw) for statistic in (self.mean, self.deviation))
        scaled = (raw - mean) / deviation
        return scaled if self.zca is None else self.zca.whiten(scaled)

    def invert(self, seen: Tensor) -> Tensor:
        """What `apply` would turn into `seen`; images may leave 0 .. 1."""
        scaled = seen if self.zca is None else self.zca.invert(seen)
        return scaled * _for(self.deviation, seen) + _for(self.mean, seen)

    def to(self, device: str) -> "Preprocessing":
        """The same on another device."""
        zca = None if self.zca is None else Zca(*(t.to(device) for t in self.zca.tensors()))
        return Preprocessing(self.mean.to(device), self.deviation.to(device), zca)

    def digest(self) -> str:
        """Tells it from any other."""
        return digest(*self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Its parts by name, for files."""
        own = {"mean": self.mean, "deviation": self.deviation}
        names = ("zca_mean", "zca_forward", "zca_backward")
        return own | ({} if self.zca is None else dict(zip(names, self.zca.tensors(), strict=True)))


def _unit(inputs: Tensor) -> Tensor:
    return inputs if inputs.is_floating_point() else inputs.float() / 255


def _for(statistic: Tensor, inputs: Tensor) -> Tensor:
    """[C] or [D] in a shape that spreads over inputs."""
    return statistic.to(inputs).view(1, -1, *[1] * (inputs.dim() - 2))
