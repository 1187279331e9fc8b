"""Small denoisers of pictures: trained from a data set, kept as a folder, and found again."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from legato import data, errors, nets
from legato.data import Batches, Splits
from legato.diffusion import Denoiser, DenoisingObjective, class_condition, ddim_levels, ddim_sample, schedule_of
from legato.diffusion.schedule import NoiseSchedule, scaled_linear
from legato.training import Fitted, cosine, fit, load_model, save_model

Net: TypeAlias = Literal["mlp", "unet"]
CARD = "legato.json"
FIRST, LAST, LEVELS = 0.00085, 0.012, 1000
"""Stable Diffusion's schedule."""
SIDE = 64
"""Pixels of a picture on a sheet, at least."""


@dataclass(frozen=True)
class Recipe:
    """How a denoiser is trained."""

    net: Net = "mlp"
    width: int = 256
    """Of the mlp's layers, or of the unet's first ones."""
    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 1e-3
    """The peak of AdamW; a cosine leads down to nothing."""
    ema_decay: float = 0.995
    drop: float = 0.1
    """Share of labels that are dropped, for guidance."""
    seed: int = 0


@dataclass(frozen=True)
class Pictured:
    """A denoiser of pictures [C, H, W] in [-1, 1], and what it knows of them."""

    denoiser: Denoiser
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    data: str = ""

    @property
    def model(self) -> nn.Module:
        """The network."""
        assert isinstance(self.denoiser.model, nn.Module)
        return self.denoiser.model

    def about(self, labels: Tensor) -> dict[str, Tensor]:
        """The condition of labels int64 [B]."""
        return {"class_labels": labels}

    def nothing(self, rows: int) -> dict[str, Tensor]:
        """The condition that says nothing."""
        return {"class_labels": torch.full((rows,), len(self.class_names))}

    def with_model(self, model: nn.Module) -> "Pictured":
        """The same with another network."""
        return Pictured(self.denoiser.with_model(model), self.shape, self.class_names, self.data)


def pictures(splits: Splits) -> Splits:
    """The data in [-1, 1]. Raises: DataError for what is no pictures."""
    if not splits.is_image:
        raise errors.DataError(errors.message("data", expected="pictures", got=f"vectors in {splits.provenance.name}"))
    unit = data.to_unit(splits)
    parts = {name: getattr(unit, name) for name in ("train", "validation", "test")}
    return replace(unit, **{name: replace(part, inputs=2 * part.inputs - 1) for name, part in parts.items()})


def build(net: str, shape: tuple[int, ...], num_classes: int, width: int) -> nn.Module:
    """The network that `net` names. Raises: LegatoValueError for another name; MissingExtraError for a unet without diffusers."""
    if net == "mlp":
        return nets.MLPDenoiser(shape, num_classes, width=width)
    if net != "unet":
        raise errors.choice("net", net, ("mlp", "unet"))
    diffusers = errors.require("diffusers", extra="diffusion")
    levels = 3 if shape[1] % 4 == 0 and shape[1] >= 16 else 2
    unet: nn.Module = diffusers.UNet2DModel(
        sample_size=shape[1:], in_channels=shape[0], out_channels=shape[0], num_class_embeds=num_classes + 1, layers_per_block=2,
        block_out_channels=(width, *[2 * width] * (levels - 1)), norm_num_groups=min(32, width // 2), attention_head_dim=16,
        down_block_types=("DownBlock2D", *["DownBlock2D"] * (levels - 2), "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * (levels - 1)),
    )  # fmt: skip
    return unet


def train(
    splits: Splits,
    recipe: Recipe,
    folder: Path | None = None,
    *,
    device: str = "cpu",
    progress: bool = False,
    autocast: str | None = None,
) -> tuple[Pictured, Fitted]:
    """A class-conditional denoiser of the training split, and how its training went; taken up again in `folder`.

    `splits` in [-1, 1]. Steps are rounded up to whole epochs.
    """
    shape, names = splits.input_shape, splits.class_names
    torch.manual_seed(recipe.seed)
    model = build(recipe.net, shape, len(names), recipe.width)
    schedule = scaled_linear(LEVELS, FIRST, LAST)
    part = splits.train
    batches = Batches(part.inputs, part.targets, part.index, recipe.batch_size, seed=recipe.seed)
    objective = DenoisingObjective(schedule, class_condition(len(names), recipe.drop), seed=recipe.seed)
    fitted = fit(
        model, objective, batches, epochs=math.ceil(recipe.steps / len(batches)),
        optimizer=partial(torch.optim.AdamW, lr=recipe.learning_rate, weight_decay=1e-4), schedule=partial(cosine, warmup=0.02),
        clip_norm=1.0, ema_decay=recipe.ema_decay, device=device, autocast=autocast, folder=folder, progress=progress,
    )  # fmt: skip
    trained = fitted.model.requires_grad_(True)
    return Pictured(Denoiser(trained, schedule), shape, names, splits.provenance.name), fitted


def finished(fitted: Fitted) -> None:
    """Raises: LegatoError for a run whose loss stopped being finite."""
    if fitted.diverged:
        raise errors.LegatoError(f"training broke off: {fitted.diverged}. Fix: a lower --learning-rate.")


def noise_loss(denoiser: Denoiser, inputs: Tensor, about: dict[str, Tensor], seed: int = 0, passes: int = 4) -> float:
    """Mean squared error of the prediction on fixed noise and timesteps, over `passes` passes through the rows."""
    generator, total = Generator().manual_seed(seed), 0.0
    with torch.no_grad():
        for _ in range(passes):
            t = torch.randint(len(denoiser.schedule), (len(inputs),), generator=generator)
            noise = torch.randn(inputs.shape, generator=generator)
            output = denoiser.output(denoiser.schedule.noisy(inputs, noise, t), t, about)
            total += float((output - denoiser.schedule.target(inputs, noise, t)).square().mean())
    return total / passes


def sampled(
    known: Pictured, noise: Tensor, about: dict[str, Tensor], *, steps: int = 50, scale: float = 1.0, rows: int = 1024
) -> Tensor:
    """DDIM pictures [B, C, H, W] from noise, `rows` at a time."""
    levels = ddim_levels(known.denoiser.schedule, steps)
    made = []
    with torch.no_grad():
        for start in range(0, len(noise), rows):
            part = noise[start : start + rows]
            told = {name: value[start : start + rows] for name, value in about.items()}
            nothing = known.nothing(len(part)) if scale != 1 else {}
            made.append(ddim_sample(known.denoiser, part, levels, told, scale=scale, nothing=nothing))
    return torch.cat(made)


def save(known: Pictured, recipe: Recipe, folder: Path, **about: Any) -> None:
    """Write the denoiser to `folder`: an mlp as `save_model` does, a unet as diffusers does, both with a card in legato.json."""
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.net == "mlp":
        save_model(folder, known.model, "mlp-denoiser", known.shape, len(known.class_names), width=recipe.width)
    else:
        diffusers = errors.require("diffusers", extra="diffusion")
        scheduler = diffusers.DDIMScheduler(
            num_train_timesteps=LEVELS, beta_start=FIRST, beta_end=LAST, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        )  # fmt: skip
        diffusers.DDIMPipeline(unet=known.model, scheduler=scheduler).save_pretrained(folder)
    card = {
        "shape": known.shape,
        "class_names": known.class_names,
        "data": known.data,
        "recipe": asdict(recipe),
    } | about
    (folder / CARD).write_text(json.dumps(card, indent=1))


def load(folder: Path) -> Pictured:
    """The denoiser that `save` wrote.

    Raises: CheckpointError for a folder without one, or whose files do not fit; LegatoValueError for a pipeline of latents.
    """
    if not (folder / CARD).exists():
        raise _no_denoiser(folder)
    card = json.loads((folder / CARD).read_text())
    width = card["recipe"]["width"]
    schedule: NoiseSchedule
    if card["recipe"]["net"] == "mlp":
        model = load_model(folder, lambda _, shape, classes: nets.MLPDenoiser(shape, classes, width=width))
        schedule = scaled_linear(LEVELS, FIRST, LAST)
    else:
        diffusers = errors.require("diffusers", extra="diffusion")
        model = diffusers.UNet2DModel.from_pretrained(folder / "unet").eval()
        schedule = schedule_of(diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"))
    return Pictured(Denoiser(model, schedule), tuple(card["shape"]), tuple(card["class_names"]), card["data"])


def _no_denoiser(folder: Path) -> errors.LegatoError:
    if (folder / "model_index.json").exists():
        kind = json.loads((folder / "model_index.json").read_text()).get("_class_name", "?")
        return errors.argument(
            "model", expected="a folder of legato train-diffusion", got=f"a {kind} of diffusers",
            fix="for latents and text use legato.diffusion in Python, on the pipeline's unet and scheduler",
        )  # fmt: skip
    return errors.CheckpointError(
        f"{folder} holds no denoiser: there is no {CARD}. Fix: legato train-diffusion --out {folder.name}."
    )


def sheet(rows: Sequence[Tensor], path: Path) -> Path:
    """Write pictures [C, H, W] in [-1, 1], a list of rows [N, C, H, W], as one PNG; each enlarged to about SIDE pixels."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = tiled(rows, max(1, SIDE // rows[0].shape[-1]))
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(path)
    return path


def tiled(rows: Sequence[Tensor], enlarge: int = 1, gap: int = 1) -> NDArray[np.uint8]:
    """Rows of pictures as one, uint8 [C, rows * (H + gap), N * (W + gap)], with grey lines between."""
    spaced = [torch.nn.functional.pad(row, (0, gap, 0, gap)) for row in rows]
    whole = torch.cat([torch.cat(list(as_bytes(row)), 2) for row in spaced], 1)
    pixels: NDArray[np.uint8] = whole.repeat_interleave(enlarge, 1).repeat_interleave(enlarge, 2).numpy()
    return pixels


def as_bytes(made: Tensor) -> Tensor:
    """Pictures in [-1, 1] as uint8, cut at the ends."""
    return ((made.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
