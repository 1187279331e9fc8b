"""What a user can ask of `legato stability sweep`: one frozen dataclass, from which command line and documentation come."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

PAPER_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Half decades."""


@dataclass(frozen=True)
class SweepConfig:
    """Will my training recipe hold when I scale it?

    Trains small decoders on text at every size, learning rate and seed, with and without remedies, and draws loss against learning rate,
    learning-rate sensitivity against size, and the first unstable learning rate against size with its extrapolation.
    """

    sizes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WIDTHxDEPTH ...")] = ("16x2", "32x2", "64x2")
    """Width and number of blocks; N = 12 * depth * width^2. Three or more for an extrapolation."""
    learning_rates: Annotated[tuple[float, ...], tyro.conf.arg(metavar="RATE ...")] = PAPER_RATES
    """The fixed grid of peak rates; sensitivities stand on it alone."""
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ARM ...")] = ("none", "qk-norm")
    """none; parts joined by +, of qk-norm, z-loss[:1e-4], warmup[:0.25], decay:conventional, weight-decay:0, mup[:full], muon, eps[:1e-15]; or all. The first is the baseline."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Number of seeds: first weights and batches."""
    first_seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """The first of the consecutive seeds."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 300
    """Of each run, a multiple of 6."""
    warmup: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.1
    """Share of the steps in which the learning rate rises."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """Windows a step."""
    length: Annotated[int, tyro.conf.arg(metavar="N")] = 64
    """Bytes of a window."""
    head_width: Annotated[int, tyro.conf.arg(metavar="N")] = 16
    """Of each attention head, at every size."""
    probe_steps: Annotated[tuple[int, ...], tyro.conf.arg(metavar="STEP ...")] = ()
    """After which steps attention logits are read. Default: at the end of the warm-up and after a third of the run."""
    text: Annotated[str, tyro.conf.arg(metavar="TEXT")] = "python"
    """python (the standard library that is installed), perl-doc, python-doc, anarchism, gcide, a file or a folder."""
    margin: Annotated[float, tyro.conf.arg(metavar="NATS")] = 0.25
    """A run that ends more than this above the best of its arm, size and seed counts as unstable."""
    refine: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Further runs near the first unstable rate, for each arm, size and seed; they serve that rate alone."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes that train side by side, one thread each; default: the number of cores."""
    backend: Literal["loky", "ray"] = "loky"
    """loky: this machine; ray: the Ray cluster that RAY_ADDRESS names, or a local one."""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """Where to train: cpu, cuda, cuda:1, mps."""
    autocast: Annotated[Literal["bf16"] | None, tyro.conf.arg(metavar="bf16")] = None
    """Mixed precision. It hides attention logits: bfloat16 has a spacing of 64 at 1e4."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/stability")
    """Folder of the run; the same command on the same folder finishes what is missing."""
