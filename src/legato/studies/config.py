"""What a user can ask of `legato compare`: one frozen dataclass, from which command line, documentation and stored run come."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

Text: TypeAlias = Annotated[str | None, tyro.conf.arg(metavar="TEXT")]
Column: TypeAlias = Annotated[str | None, tyro.conf.arg(metavar="COLUMN")]
File: TypeAlias = Annotated[str | None, tyro.conf.arg(metavar="FILE")]
Whole: TypeAlias = Annotated[int | None, tyro.conf.arg(metavar="N")]
Number: TypeAlias = Annotated[float | None, tyro.conf.arg(metavar="X")]


@dataclass(frozen=True)
class LanguageOptions:
    """Of the task language alone: a decoder on bytes of text."""

    width: Annotated[int, tyro.conf.arg(metavar="N")] = 32
    """Of the model."""
    depth: Annotated[int, tyro.conf.arg(metavar="N")] = 2
    """Blocks."""
    heads: Annotated[int, tyro.conf.arg(metavar="N")] = 2
    """Attention heads; width / heads must be even."""
    length: Annotated[int, tyro.conf.arg(metavar="N")] = 64
    """Bytes of a window."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """Windows of a step."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 300
    """Optimizer steps."""
    checks: Annotated[int, tyro.conf.arg(metavar="N")] = 6
    """How often the validation loss is read, evenly over the run; must divide the steps."""
    warmup: Annotated[float, tyro.conf.arg(metavar="X")] = 0.05
    """Share of the steps in which the learning rate rises."""
    qk_norm: bool = True
    """Layer normalisation of queries and keys."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: for the matrices inside, adamw for the rest."""
    weight_decay: Annotated[float, tyro.conf.arg(metavar="X")] = 1e-4
    """Independent of the learning rate, unless decay says otherwise."""
    decay: Literal["independent", "conventional"] = "independent"
    """conventional: times the learning rate, as torch has it."""
    eps: Annotated[float, tyro.conf.arg(metavar="X")] = 1e-8
    """Of adamw."""
    clip_norm: Number = 1.0
    """Largest norm of the gradient."""
    mup: Literal["simple", "intermediate", "full"] | None = None
    """muParam: learning rates and initial weights by the width."""
    base_width: Annotated[int, tyro.conf.arg(metavar="N")] = 256
    """At which muParam changes nothing."""
    validation_rows: Annotated[int, tyro.conf.arg(metavar="N")] = 128
    """Windows of validation text, and as many of test text."""
    watch_every: Annotated[int, tyro.conf.arg(metavar="N")] = 50
    """Steps between readings of attention logits and gradients, for the page, at the chosen learning rates; 0 reads none."""


DATA = {"classify": "fashion-mini", "language": "python"}
"""What each task is shown on where nothing is asked for."""


@dataclass(frozen=True)
class CompareConfig:
    """Which objective should I train my model with?

    Trains every objective at every learning rate with every seed on your data, chooses each objective's rate on validation
    data, reads the test set once, and says in words which objective wins, by how much, and how sure that is.
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")] = ""
    """A name from `legato data`, a CSV or Parquet file (with --target), an .npz file with x and y, or a folder with one sub-folder of pictures a class.
    Default: fashion-mini. For the task language: python (the bytes of its standard library, the default), perl-doc, python-doc, anarchism, gcide,
    or any file or folder of text."""
    task: Literal["classify", "language"] = "classify"
    """classify: name the class of an input. language: foretell the next byte of a text."""
    language: LanguageOptions = LanguageOptions()
    objectives: Annotated[tuple[str, ...], tyro.conf.arg(metavar="OBJECTIVE ...")] = (
        "ce",
        "label-smoothing:0.1",
        "comp-sum:1.7",
    )
    """Objectives to compare, separated by spaces; 'ce', or else the first, is the baseline. `legato objectives` lists them."""
    label_noise: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="SHARE ...")] = None
    """Shares of training labels to corrupt, each a comparison of its own. Default: 0 and 0.4 for fashion-mini, 0 for all else."""
    noise_kind: Literal["symmetric", "pair"] = "symmetric"
    """symmetric: to any other class; pair: to the next class."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 10
    """Number of seeds; each has its own validation cut, corrupted labels, initial weights and batches, equal for all objectives."""
    first_seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """The first of the consecutive seeds."""
    learning_rates: Annotated[tuple[float, ...] | Literal["auto"], tyro.conf.arg(metavar="auto|RATE ...")] = "auto"
    """The grid of learning rates, the same for every objective. auto: 0.005 to 0.32 for sgd, 0.0001 to 0.0064 for adamw, each four times the last."""
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")] = "auto"
    """auto, mlp, convnet, resnet, or pkg.module:factory with factory(input_shape, num_classes) -> torch.nn.Module."""
    epochs: Annotated[int, tyro.conf.arg(metavar="N")] = 15
    """Passes through the training data."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 128
    """Rows a step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: momentum 0.9, Nesterov. Both follow a cosine schedule to zero."""
    weight_decay: Annotated[float, tyro.conf.arg(metavar="X")] = 5e-4
    """Weight decay of the optimizer."""
    clip_norm: Number = None
    """Largest norm of the gradient; without it nothing is clipped."""
    augment: bool = False
    """Random shifts and flips of training images."""
    attack_radius: Number = None
    """Also measure accuracy under attack: the largest change of a pixel, of 0 .. 1. The adversarial objectives train against it."""
    select_by: Literal["auto", "error", "nll", "robust-error"] = "auto"
    """What chooses the learning rate on validation data: the error, the NLL after temperature scaling, or the error under attack. Never the arm's own loss.
    auto: what the task is judged by, the error for classify and the NLL for language."""
    validation_labels: Literal["noisy", "clean"] = "noisy"
    """Labels of the validation data when label noise is added; you have no clean ones in practice, hence the default."""
    references: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Models without an objective to stand beside the table: hist-gradient-boosting (scikit-learn's, for tables)."""
    target: Column = None
    """Column of a table that holds the class."""
    group: Column = None
    """Column of a table whose equal values must not be divided between training, validation and test."""
    classes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CLASS ...")] = ()
    """Keep only these classes."""
    rows: Whole = None
    """Learn from this many rows only, drawn anew by each seed."""
    image_size: Whole = None
    """Resize pictures to this many pixels a side."""
    validation: File = None
    """File with the validation data; by default a fifth of the training data, cut anew by each seed."""
    test: File = None
    """File with the test data; by default the data set's own, or a fixed fifth of the rows."""
    data_dir: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to look for data sets first."""
    download: bool = False
    """Allow a data set to be fetched from the network."""
    workers: Whole = None
    """Processes that train side by side, one thread each; default: the number of cores."""
    backend: Literal["loky", "ray"] = "loky"
    """loky: this machine; ray: the Ray cluster that RAY_ADDRESS names, or a local one."""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """Where to train: cpu, cuda, cuda:1, mps."""
    autocast: Annotated[Literal["bf16"] | None, tyro.conf.arg(metavar="bf16")] = None
    """Mixed precision."""
    minutes: Number = None
    """Upper limit; trims seeds first, then learning rates, and says so."""
    save_model: bool = False
    """Keep the trained model of each objective's chosen rate and first seed, in OUT/models."""
    track: Annotated[
        Literal["tensorboard", "trackio", "wandb"] | None, tyro.conf.arg(metavar="tensorboard|trackio|wandb")
    ] = None
    """Also hand every training curve to a tracker."""
    pack: bool = False
    """Also write the results as one file, OUT.jsonl.xz, from which `legato page` can draw."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of the run; the same command on the same folder finishes what is missing. Default: runs/NAME-OF-DATA."""
    dry_run: bool = False
    """Only say how many trials, minutes and megabytes it would take."""

    def __post_init__(self) -> None:
        if not self.data:
            object.__setattr__(self, "data", DATA[self.task])
        if self.select_by == "auto":
            object.__setattr__(self, "select_by", "nll" if self.task == "language" else "error")
