"""`legato train-diffusion`: a small denoiser of your pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class TrainDiffusion:
    """Train a small class-conditional diffusion model on pictures, to morph, measure and smooth.

    Writes the model (a unet as a pipeline folder of diffusers), samples.png and the loss on held-out pictures. The same command goes on
    where a stopped one was.
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")] = "digits"
    """A name from `legato data`, an .npz file with x and y, or a folder with one sub-folder of pictures a class."""
    net: Literal["mlp", "unet"] = "mlp"
    """mlp: for pictures of a few pixels, such as digits. unet: UNet2DModel of diffusers."""
    width: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Of the mlp's layers (256), or of the unet's first ones (32); a multiple of 16."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 3000
    """Optimizer steps, rounded up to whole passes through the data."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 128
    """Pictures a step."""
    learning_rate: Annotated[float, tyro.conf.arg(metavar="RATE")] = 1e-3
    """The peak of AdamW."""
    ema_decay: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.995
    """Of the average of the weights that is kept."""
    image_size: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Resize pictures to this many pixels a side."""
    bf16: bool = False
    """Forward passes in bfloat16."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Of weights, batches and noise."""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """Where to train: cpu, cuda, cuda:1, mps."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/denoiser")
    """Folder of the model."""

    def run(self) -> None:
        """Train, write, and say where it is."""
        import torch

        from legato import data
        from legato.studies import denoise

        width = self.width or (256 if self.net == "mlp" else 32)
        splits = denoise.pictures(data.load(self.data, image_size=self.image_size))
        recipe = denoise.Recipe(
            self.net, width, self.steps, self.batch_size, self.learning_rate, self.ema_decay, seed=self.seed
        )
        known, fitted = denoise.train(
            splits,
            recipe,
            self.out / "checkpoints",
            device=self.device,
            progress=True,
            autocast="bf16" if self.bf16 else None,
        )
        denoise.finished(fitted)
        known.model.to("cpu")
        part = splits.validation
        loss = denoise.noise_loss(known.denoiser, part.inputs, known.about(part.targets))
        denoise.save(known, recipe, self.out, validation_loss=loss, train_loss=fitted.history[-1]["train_loss"])
        classes = torch.arange(splits.num_classes).repeat_interleave(8)
        noise = torch.randn(len(classes), *known.shape, generator=torch.Generator().manual_seed(self.seed))
        made = denoise.sampled(known, noise, known.about(classes), scale=2.0)
        path = denoise.sheet(made.split(8), self.out / "samples.png")
        print(
            f"loss of the noise on held-out pictures: {loss:.4f}\nsamples, a row a class, guidance 2: {path}\nmodel: {self.out}"
        )
