"""`legato istd`: how evenly a denoiser's pictures change."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Istd:
    """How evenly do the pictures of a diffusion model change between two noises?

    Prints the interpolation standard deviation (ISTD) with the mean step and the coefficient of variation (CV) that belong beside it, the
    same after re-timing by arc length, and the change under minor variations of the noise.
    """

    model: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """A folder of `legato train-diffusion`."""
    lora: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Adapters to load, such as those of `legato smooth`."""
    pairs: Annotated[int, tyro.conf.arg(metavar="N")] = 64
    """Pairs of noises."""
    points: Annotated[int, tyro.conf.arg(metavar="N")] = 11
    """Pictures between two noises, both ends among them."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 50
    """Of DDIM."""
    scale: Annotated[float, tyro.conf.arg(metavar="W")] = 1.0
    """Guidance; 1 is without."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Of the noises."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the figures there, as JSON."""

    def run(self) -> None:
        """Print three lines."""
        import json

        from legato.diffusion.lora import load_lora
        from legato.studies import denoise, denoise_tuned

        known = denoise.load(self.model)
        if self.lora is not None:
            load_lora(known.model, self.lora)
        options = {"points": self.points, "steps": self.steps, "scale": self.scale, "seed": self.seed}
        found = {
            name: denoise_tuned.evenness_of(known, self.pairs, retime=name == "re-timed", **options)
            for name in ("equal shares", "re-timed")
        }
        for name, value in found.items():
            print(f"{name}: {value}")
        rates = denoise_tuned.nearby(known, self.pairs, steps=self.steps, seed=self.seed)
        told = ", ".join(f"{rate:.3f} at {angle:g}" for rate, angle in zip(rates, denoise_tuned.ANGLES, strict=True))
        print(f"|dx| / |dz| of noises turned by a small angle: {told}")
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(
                json.dumps({name: asdict(value) for name, value in found.items()} | {"nearby": rates}, indent=1)
            )
