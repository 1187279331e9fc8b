"""`legato smooth`: fine-tune a denoiser so that its latent space is smooth."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Smooth:
    """Make a diffusion model's latent space smooth: adapters trained with the variation penalty of Smooth Diffusion.

    Also trains the same adapters without the penalty, on the same noise, so that its gain can be told from that of plain fine-tuning,
    and measures both. With --estimator exact a step costs two to three plain ones.
    """

    model: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """A folder of `legato train-diffusion`."""
    data: Annotated[str, tyro.conf.arg(metavar="DATA")] = "digits"
    """As for `legato train-diffusion`; of the model's shape and classes."""
    lambda_: Annotated[float, tyro.conf.arg(name="lambda", metavar="X")] = 1.0
    """Weight of the penalty. More is smoother and worse in quality."""
    rank: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """Of the adapters."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 600
    """Optimizer steps, rounded up to whole passes through the data."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 128
    """Pictures a step."""
    learning_rate: Annotated[float, tyro.conf.arg(metavar="RATE")] = 1e-3
    """Of AdamW, constant."""
    estimator: Literal["exact", "fd"] = "exact"
    """exact: second derivatives. fd: finite differences, faster and with fused attention."""
    weighting: Literal["paper", "xt"] = "paper"
    """paper: the variation with the noise, times sigma. xt: the variation with the noisy picture."""
    every: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Act in each N-th step only, N times as strong."""
    share: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 1.0
    """Share of a batch's rows that the penalty looks at: cheaper and noisier."""
    twin: bool = True
    """Also train the twin without the penalty."""
    pairs: Annotated[int, tyro.conf.arg(metavar="N")] = 64
    """Pairs of noises to measure on."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Of adapters, batches and noise."""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """Where to train: cpu, cuda, cuda:1, mps."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/smooth")
    """Folder of the adapters, one sub-folder each for smooth and twin."""

    def run(self) -> None:
        """Train, measure and print the table."""
        from rich.console import Console

        from legato import data, errors
        from legato.diffusion.lora import save_lora
        from legato.studies import denoise, denoise_tuned

        known = denoise.load(self.model)
        splits = denoise.pictures(data.load(self.data, image_size=known.shape[-1]))
        if splits.input_shape != known.shape or splits.class_names != known.class_names:
            raise errors.argument(
                "data", expected=f"pictures {list(known.shape)} of {len(known.class_names)} classes, as {known.data}",
                got=f"{list(splits.input_shape)} of {splits.num_classes} in {self.data}",
            )  # fmt: skip
        arms = {"twin, lambda 0": ("twin", 0.0)} if self.twin else {}
        arms[f"smooth, lambda {self.lambda_:g}"] = ("smooth", self.lambda_)
        rows = {"model as it is": denoise_tuned.report(known, splits, self.pairs)}
        for name, (folder, lam) in arms.items():
            tuning = denoise_tuned.Tuning(
                lam,
                self.rank,
                self.steps,
                self.batch_size,
                self.learning_rate,
                self.estimator,
                self.weighting,
                self.every,
                self.share,
                self.seed,
            )
            tuned, fitted = denoise_tuned.tune(
                known, splits, tuning, self.out / folder / "checkpoints", device=self.device, progress=True
            )
            denoise.finished(fitted)
            tuned.model.to("cpu")
            save_lora(tuned.model, self.out / folder)
            rows[name] = denoise_tuned.report(tuned, splits, self.pairs)
        Console().print(_table(rows))
        print(
            "Measured on held-out pictures. ISTD falls with contrast too: read it beside the mean step, and CV, which does not."
        )
        print(f"adapters: {self.out / 'smooth'}")


def _table(rows: dict[str, dict[str, Any]]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in row.values()))
    return table
