"""The task `classify`: one trial trains one model with one objective, learning rate and seed, and measures it.

The validation split chooses; the test split is read only by a trial whose config says so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato import data, metrics, nets, training
from legato.data import Split, Splits
from legato.lab.trial import Outcome
from legato.studies import objectives

Factory: TypeAlias = Callable[[tuple[int, ...], int], nn.Module]
"""(input_shape, num_classes) -> model."""
NOISE_SEED = {"train": 1_000_003, "validation": 2_000_003, "test": 3_000_017}


@dataclass(frozen=True)
class Source:
    """Where the data comes from. Not part of a trial's name: that is made from the content, so a moved file changes nothing."""

    data: str
    target: str | None = None
    group: str | None = None
    validation: str | None = None
    test: str | None = None
    data_dir: str | None = None
    download: bool = False

    def load(self, seed: int) -> Splits:
        """The splits of this seed."""
        return data.load(
            self.data, target=self.target, group=self.group, validation=self.validation, test=self.test, seed=seed,
            data_dir=self.data_dir, download=self.download,
        )  # fmt: skip


@dataclass(frozen=True)
class TrialConfig:
    """All that decides the numbers of one trial."""

    data: str
    """Name of the data set."""
    data_sha256: str
    """Fingerprint of the decoded data."""
    objective: str
    """Canonical text form of the objective."""
    learning_rate: float
    seed: int
    model: str
    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    augment: bool = False
    label_noise: float = 0.0
    noise_kind: Literal["symmetric", "pair"] = "symmetric"
    validation_labels: Literal["noisy", "clean"] = "noisy"
    device: str = "cpu"
    autocast: Literal["bf16"] | None = None
    reads_test: bool = False
    """Whether the trained model is put to the test set."""
    keeps_model: bool = False
    """Whether the trained model is kept beside the results."""


@dataclass(frozen=True)
class Labelled:
    """Inputs with the labels that a learner sees and, where they were corrupted, the true ones."""

    inputs: Tensor
    seen: Tensor
    true: Tensor
    index: Tensor


@dataclass(frozen=True)
class Task:
    """The data of one trial, corrupted and standardised, on its device."""

    train: Labelled
    validation: Labelled
    test: Labelled
    input_shape: tuple[int, ...]
    num_classes: int


def prepare(config: TrialConfig, source: Source) -> Task:
    """Cut, standardise and corrupt the data as `config` says. Corruption depends on the seed alone, so all arms see the same."""
    splits = data.standardize(source.load(config.seed))

    def labelled(name: str, split: Split, corrupt: bool) -> Labelled:
        seen = split.targets
        if corrupt and config.label_noise:
            seen = data.corrupt_labels(
                seen,
                splits.num_classes,
                config.label_noise,
                kind=config.noise_kind,
                seed=NOISE_SEED[name] + config.seed,
            )
        return Labelled(*(t.to(config.device) for t in (split.inputs, seen, split.targets, split.index)))

    return Task(
        labelled("train", splits.train, True),
        labelled("validation", splits.validation, config.validation_labels == "noisy"),
        labelled("test", splits.test, True),
        splits.input_shape,
        splits.num_classes,
    )


def new_model(config: TrialConfig, task: Task, factory: Factory | None = None) -> nn.Module:
    """The untrained model; its weights depend on the seed alone. A `factory` from Python takes the place of the import path."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        make = factory or partial(nets.build, config.model)
        return make(task.input_shape, task.num_classes).to(config.device)


def new_optimizer(config: TrialConfig, parameters: Any) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9, or AdamW."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)


def train(config: TrialConfig, task: Task, folder: Path, factory: Factory | None = None) -> training.Fitted:
    """Fit the model of `config` to the labels that a learner sees."""
    objective = objectives.parse(config.objective)
    rows = task.train
    batches = data.Batches(
        rows.inputs, rows.seen, rows.index, config.batch_size, seed=config.seed,
        augment=data.crop_and_flip if config.augment else None,
    )  # fmt: skip
    return training.fit(
        new_model(config, task, factory),
        training.Criterion(objective.build(config.epochs)),
        batches,
        epochs=config.epochs,
        optimizer=partial(new_optimizer, config),
        schedule=training.cosine,
        validate=partial(_validation, labelled=task.validation),
        device=config.device,
        autocast=config.autocast,
        clip_norm=config.clip_norm,
        ema_decay=objective.ema_decay,
        folder=folder,
    )


def trial(
    config: TrialConfig, folder: Path, *, source: Source, factory: Factory | None = None, models: Path | None = None
) -> Outcome:
    """Train, choose nothing, measure: the validation numbers of one setting and, if it was chosen, its test numbers."""
    task = prepare(config, source)
    with torch.random.fork_rng(devices=[]):  # dropout and the like draw from here; the caller's state is given back
        torch.manual_seed(config.seed)
        fitted = train(config, task, folder, factory)
    model = fitted.model.eval()
    logits = _logits(model, task.validation, fitted)
    temperature = metrics.fit_temperature(logits, task.validation.seen.cpu())
    measured: dict[str, Any] = {
        "diverged": fitted.diverged,
        "steps": fitted.steps,
        "curves": {key: [row.get(key) for row in fitted.history] for key in ("train_loss", "validation_error")},
        "temperature": temperature,
        **_scores("validation", logits, task.validation.seen, temperature),
        "guess_validation_error": 1 - 1 / task.num_classes,
        "guess_validation_nll_scaled": math.log(task.num_classes),
    }
    if not config.reads_test:
        return Outcome(measured)
    if config.keeps_model and models is not None:
        name = f"{config.objective}-noise-{config.label_noise}".replace(":", "-")
        about = {
            "objective": config.objective,
            "learning_rate": config.learning_rate,
            "label_noise": config.label_noise,
        }
        training.save_model(models / name, model, config.model, task.input_shape, task.num_classes, **about)
    logits = _logits(model, task.test, fitted)
    measured |= _scores("test", logits, task.test.true, temperature)
    measured |= _scores("noisy_test", logits, task.test.seen, temperature)
    return Outcome(measured, _test_arrays(logits, task, temperature))


def predict(model: nn.Module, inputs: Tensor, rows: int = 2048) -> Tensor:
    """Logits [N, C] in float32 on the CPU, computed by blocks of rows."""
    with torch.inference_mode():
        return torch.cat([model(block).float().cpu() for block in inputs.split(rows)])


def _logits(model: nn.Module, rows: Labelled, fitted: training.Fitted) -> Tensor:
    """Logits of a trained model; those of a diverged one are no answer and count as the uniform guess."""
    logits = predict(model, rows.inputs)
    return torch.zeros_like(logits) if fitted.diverged or not logits.isfinite().all() else logits


def _validation(model: nn.Module, labelled: Labelled) -> dict[str, float]:
    logits = predict(model, labelled.inputs)
    return {"validation_error": metrics.error_rate(logits, labelled.seen.cpu())}


def _scores(prefix: str, logits: Tensor, target: Tensor, temperature: float) -> dict[str, float]:
    """Error, NLL and calibration error, raw and at the temperature that was fitted on validation labels."""
    target = target.cpu()
    return {
        f"{prefix}_error": metrics.error_rate(logits, target),
        f"{prefix}_nll": metrics.nll(logits, target),
        f"{prefix}_nll_scaled": metrics.nll(logits, target, temperature),
        f"{prefix}_ece": metrics.expected_calibration_error(logits, target),
        f"{prefix}_ece_scaled": metrics.expected_calibration_error(logits, target, temperature),
    }


def _test_arrays(logits: Tensor, task: Task, temperature: float) -> dict[str, np.ndarray[Any, Any]]:
    probabilities = F.softmax(logits / temperature, dim=1)
    return {
        "logits": logits.half().numpy(),
        "prediction": logits.argmax(1).to(torch.int16).numpy(),
        "confidence": probabilities.amax(1).half().numpy(),
        "raw_confidence": F.softmax(logits, dim=1).amax(1).half().numpy(),
        "true": task.test.true.cpu().to(torch.int16).numpy(),
        "seen": task.test.seen.cpu().to(torch.int16).numpy(),
    }
