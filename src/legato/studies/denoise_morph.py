"""A film between two pictures, through the noise of a denoiser."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from legato import errors
from legato.diffusion import (
    Evenness,
    Likeness,
    ddim_invert,
    ddim_levels,
    evenness,
    likeness,
    retimed,
    slerp,
    step_lengths,
)
from legato.studies.denoise import Pictured, sampled, tiled
from legato.studies.denoise_tuned import TABLE

SIDE = 256
"""Pixels of a film's smaller side, at least."""


@dataclass(frozen=True)
class Film:
    """What a morph is."""

    frames: Tensor
    """[K, C, H, W] in [-1, 1]."""
    ends: Likeness
    """Of the first and last frame to the two pictures."""
    steps: Evenness


def morph(
    known: Pictured,
    a: Path,
    b: Path,
    frames: int = 24,
    *,
    label: str | None = None,
    steps: int = 50,
    scale: float = 1.0,
    retime: bool = False,
) -> Film:
    """Invert both pictures without guidance, walk between their noises on the sphere, and make pictures of the way.

    Raises: LegatoValueError for fewer than 3 frames, an unknown class, guidance without a class, or two equal pictures; DataError for a
        file that is no picture.
    """
    if frames < 3:
        raise errors.argument("frames", expected="a whole number >= 3", got=frames)
    if label is None and scale != 1:
        raise errors.argument(
            "scale", expected="1, for guidance needs a class", got=scale, fix=f"--label {known.class_names[0]}"
        )
    if label is not None and label not in known.class_names:
        raise errors.choice("label", label, known.class_names)
    ends = torch.stack([read_picture(path, known.shape) for path in (a, b)])
    if torch.equal(ends[0], ends[1]):
        raise errors.argument("b", expected="another picture than the first", got=b.name)
    place = len(known.class_names) if label is None else known.class_names.index(label)

    def told(count: int) -> dict[str, Tensor]:
        return known.about(torch.full((count,), place))

    with torch.no_grad():
        noise = ddim_invert(known.denoiser, ends, ddim_levels(known.denoiser.schedule, steps), told(2))[-1]

    def shown(shares: Tensor) -> Tensor:
        way = slerp(noise[:1].expand(len(shares), *known.shape), noise[1:].expand(len(shares), *known.shape), shares)
        return sampled(known, way, told(len(shares)), steps=steps, scale=scale)

    shares = torch.linspace(0, 1, frames)
    if retime:
        first = torch.linspace(0, 1, TABLE)
        shares = retimed(first, step_lengths(shown(first)[:, None]), frames)[:, 0]
    made = shown(shares)
    side = min(known.shape[1:])
    like = likeness(made[[0, -1]], ends, window=min(7, side - 1 + side % 2))
    return Film(made, like, evenness(step_lengths(made[:, None])))


def read_picture(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A picture [C, H, W] in [-1, 1] of the model's shape: made grey where C = 1, cut to the aspect around the centre and resized.

    Raises: DataError for a file that is absent or no picture.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture = ImageOps.fit(file.convert("L" if shape[0] == 1 else "RGB"), (shape[2], shape[1]))
    except OSError as problem:
        raise errors.DataError(f"{path} cannot be read as a picture: {problem}") from problem
    pixels = np.asarray(picture, dtype=np.float32).reshape(shape[1], shape[2], shape[0])
    return torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1)


def write_gif(frames: Tensor, path: Path, seconds: float = 2.0) -> None:
    """[K, C, H, W] in [-1, 1] as a film there and back, enlarged to a side that can be seen."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    enlarge = max(1, SIDE // min(frames.shape[2:]))
    pixels = [tiled([frame[None]], enlarge, gap=0) for frame in frames]
    pictures = [Image.fromarray(p[0] if len(p) == 1 else p.transpose(1, 2, 0)) for p in pixels]
    pictures += pictures[-2:0:-1]
    duration = round(1000 * seconds / len(frames))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, loop=0)
