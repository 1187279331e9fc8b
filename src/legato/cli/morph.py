"""`legato morph`: a film from one picture to another, through the noise of a diffusion model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Morph:
    """Turn picture A into picture B: both are inverted to noise, and the pictures between are what the noises between become.

    Writes an animated GIF and a sheet of all frames, and says how true the inversion is and how even the steps are.
    """

    a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A.png")]
    """The first picture."""
    b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B.png")]
    """The last one."""
    model: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """A folder of `legato train-diffusion`."""
    lora: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Adapters to load, such as those of `legato smooth`."""
    label: Annotated[str | None, tyro.conf.arg(metavar="CLASS")] = None
    """Class of both pictures; default: none is told."""
    frames: Annotated[int, tyro.conf.arg(metavar="N")] = 24
    """Pictures of the film, both ends among them."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 50
    """Of DDIM; more are truer to the pictures."""
    scale: Annotated[float, tyro.conf.arg(metavar="W")] = 1.0
    """Guidance towards the class; away from 1 the ends are no longer quite A and B."""
    retime: bool = False
    """Walk at the pace of the pictures."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("morph.gif")
    """The film; the sheet stands beside it as PNG."""

    def run(self) -> None:
        """Write film and sheet."""
        from legato.diffusion.lora import load_lora
        from legato.studies import denoise, denoise_morph

        known = denoise.load(self.model)
        if self.lora is not None:
            load_lora(known.model, self.lora)
        film = denoise_morph.morph(
            known, self.a, self.b, self.frames, label=self.label, steps=self.steps, scale=self.scale, retime=self.retime
        )
        denoise_morph.write_gif(film.frames, self.out)
        sheet = denoise.sheet(film.frames.split(12), self.out.with_suffix(".png"))
        print(f"ends against A and B: {film.ends}\nsteps: {film.steps}\nfilm: {self.out}\nall frames: {sheet}")
