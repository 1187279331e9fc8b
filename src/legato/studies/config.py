"""What a user can ask of `legato compare`: one frozen dataclass, from which command line, documentation and stored run come."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class CompareConfig:
    """Which objective should I train my model with?

    Trains every objective at every learning rate with every seed on your data, chooses each objective's rate on validation
    data, reads the test set once, and says in words which objective wins, by how much, and how sure that is.
    """

    data: tyro.conf.Positional[str] = "fashion-mini"
    """A name from `legato data`, a CSV or Parquet file (with --target), or an .npz file with x and y."""
    task: Literal["classify"] = "classify"
    """What the model does with its inputs."""
    objectives: tuple[str, ...] = ("ce", "label-smoothing:0.1", "comp-sum:1.7")
    """Objectives to compare, separated by spaces; 'ce', or else the first, is the baseline. `legato objectives` lists them."""
    label_noise: tuple[float, ...] | None = None
    """Shares of training labels to corrupt, each a comparison of its own. Default: 0 and 0.4 for fashion-mini, 0 for all else."""
    noise_kind: Literal["symmetric", "pair"] = "symmetric"
    """symmetric: to any other class; pair: to the next class."""
    seeds: int = 10
    """Number of seeds; each has its own validation cut, corrupted labels, initial weights and batches, equal for all objectives."""
    first_seed: int = 0
    """The first of the consecutive seeds."""
    learning_rates: tuple[float, ...] | Literal["auto"] = "auto"
    """The grid of learning rates, the same for every objective. auto: 0.01 0.03 0.1 0.3 for sgd, a tenth to a hundredth for adamw."""
    model: str = "auto"
    """auto, mlp, convnet, resnet, or pkg.module:factory with factory(input_shape, num_classes) -> torch.nn.Module."""
    epochs: int = 15
    """Passes through the training data."""
    batch_size: int = 128
    """Rows a step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: momentum 0.9, Nesterov. Both follow a cosine schedule to zero."""
    weight_decay: float = 5e-4
    """Weight decay of the optimizer."""
    clip_norm: float | None = None
    """Largest norm of the gradient; None does not clip."""
    augment: bool = False
    """Random shifts and flips of training images."""
    select_by: Literal["error", "nll"] = "error"
    """What chooses the learning rate on validation data: the error, or the NLL after temperature scaling. Never the arm's own loss."""
    validation_labels: Literal["noisy", "clean"] = "noisy"
    """Labels of the validation data when label noise is added; you have no clean ones in practice, hence the default."""
    target: str | None = None
    """Column of a table that holds the class."""
    group: str | None = None
    """Column of a table whose equal values must not be divided between training, validation and test."""
    validation: str | None = None
    """File with the validation data; by default a fifth of the training data, cut anew by each seed."""
    test: str | None = None
    """File with the test data; by default the data set's own, or a fixed fifth of the rows."""
    data_dir: str | None = None
    """Where to look for data sets first."""
    download: bool = False
    """Allow a data set to be fetched from the network."""
    workers: int | None = None
    """Processes that train side by side, one thread each; default: the number of cores."""
    backend: Literal["loky", "ray"] = "loky"
    """loky: this machine; ray: the Ray cluster that RAY_ADDRESS names, or a local one."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, mps."""
    autocast: Literal["bf16"] | None = None
    """Mixed precision."""
    minutes: float | None = None
    """Upper limit; trims seeds first, then learning rates, and says so."""
    save_model: bool = False
    """Keep the trained model of each objective's chosen rate and first seed."""
    out: Path | None = None
    """Folder of the run; the same command on the same folder finishes what is missing. Default: runs/NAME-OF-DATA."""
    dry_run: bool = False
    """Only say how many trials, minutes and megabytes it would take."""
