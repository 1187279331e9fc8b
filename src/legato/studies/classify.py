"""The task `classify`: one trial trains one model with one objective, learning rate and seed, and measures it.

The validation split chooses; the test split is read only by a trial whose config says so.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from legato import data, errors, metrics, nets, training
from legato.lab.trial import Outcome
from legato.studies import flatness_readings, objectives, readings
from legato.studies.methods import Context, Training
from legato.studies.prepared import Labelled, Source, Task, prepare

Factory: TypeAlias = Callable[[tuple[int, ...], int], nn.Module]
"""(input_shape, num_classes) -> model."""
CURVES = (
    "train_loss", "validation_error", "test_error", "rows_loss", "loss_fall", "trajectory_loss", "ball_sharpness",
)  # fmt: skip
"""What is kept of each epoch, where it was read."""
CHOSEN = "steps with "
"""Before the name of a member of `select`: the curve of how many steps it has been trained with."""
HELD_OUT_SEED = 5_000_011
ATTACK_STEPS = {"validation": 10, "test": 20}
"""Steps of the attacks that measure; the harder ones are kept for the test."""


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
    train_rows: int | None = None
    """Learn from this many rows only, drawn by the seed; None takes all."""
    attack_radius: float | None = None
    """Largest change of a pixel of 0 .. 1 that an attacker may make; None measures no attack."""
    reads_test: bool = False
    """Whether the trained model is put to the test set."""
    keeps_test_curve: bool = False
    """Whether such a trial also notes the test error after each epoch, to show overfitting; nothing is chosen by it."""
    sharpness_rows: int = 0
    """On how many training rows the sharpness of a model that reads the test set is measured, after each epoch and at the end."""
    keeps_model: bool = False
    """Whether the trained model is kept beside the results."""


def new_model(config: TrialConfig, task: Task, factory: Factory | None = None) -> nn.Module:
    """The untrained model; its weights depend on the seed alone. A `factory` from Python takes the place of the import path."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        make = factory or partial(nets.build, config.model)
        model = make(task.input_shape, task.num_classes)
    if config.attack_radius:
        model = nn.Sequential(nets.Standardise(task.mean, task.deviation), model)
    return model.to(config.device)


def new_optimizer(config: TrialConfig, parameters: Any) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9, or AdamW; the objective may bring a weight decay of its own."""
    own = objectives.parse(config.objective).setting("weight-decay")
    rate, decay = config.learning_rate, config.weight_decay if own is None else own
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)


def context(config: TrialConfig) -> Context:
    """What the objective may know of the trial."""
    return Context(config.epochs, config.seed, config.attack_radius)


def new_objective(config: TrialConfig, task: Task, model: nn.Module) -> training.Objective:
    """What is minimised, made for this model and these training rows."""
    index = task.train.index
    rows, held_out = hold_out(config, task)
    told = Training(
        model, int(index.max()) + 1, task.num_classes, -(-len(rows.index) // config.batch_size),
        None if held_out is None else (held_out.inputs, held_out.seen),
    )  # fmt: skip
    return objectives.parse(config.objective).objective(context(config), told)


def hold_out(config: TrialConfig, task: Task) -> tuple[Labelled, Labelled | None]:
    """The training rows that the batches are made of, and those that the objective has asked to be left out, drawn by the seed.

    The validation data is never touched: it chooses among settings, and has to know nothing of them.
    Raises: LegatoValueError where nothing would be left to learn from.
    """
    rows, count = task.train, objectives.parse(config.objective).held_out
    if count == 0:
        return rows, None
    if count >= len(rows.index):
        raise errors.argument(
            f"objectives ({config.objective!r})", expected=f"fewer than the {len(rows.index)} training rows to be held out", got=count,
            fix=f"rows={len(rows.index) // 10}",
        )  # fmt: skip
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + config.seed)
    order = torch.randperm(len(rows.index), generator=generator).to(rows.index.device)

    def taken(part: Tensor) -> Labelled:
        return Labelled(rows.inputs[part], rows.seen[part], rows.true[part], rows.index[part])

    return taken(order[count:].sort().values), taken(order[:count])


def train(config: TrialConfig, task: Task, folder: Path, factory: Factory | None = None) -> training.Fitted:
    """Fit the model of `config` to the labels that a learner sees."""
    spec = objectives.parse(config.objective)
    rows, _ = hold_out(config, task)
    batches = data.Batches(
        rows.inputs, rows.seen, rows.index, config.batch_size, seed=config.seed,
        augment=data.crop_and_flip if config.augment else None,
    )  # fmt: skip
    model = new_model(config, task, factory)
    objective = new_objective(config, task, model)
    watched = {"validation_error": (task.validation.inputs, task.validation.seen)}
    if config.reads_test and config.keeps_test_curve:
        watched["test_error"] = (task.test.inputs, task.test.true)
    watch = None
    if config.reads_test and config.sharpness_rows:
        watch = flatness_readings.Watch(rows.inputs[: config.sharpness_rows], rows.seen[: config.sharpness_rows])
    fitted = training.fit(
        model,
        objective,
        batches,
        epochs=config.epochs,
        optimizer=partial(new_optimizer, config),
        schedule=training.cosine,
        validate=lambda model: (
            {
                name: metrics.error_rate(readings.predict(model, inputs), target.cpu())
                for name, (inputs, target) in watched.items()
            }
            | (watch(model) if watch else {})
            | _choices(objective)
        ),
        device=config.device,
        autocast=config.autocast,
        clip_norm=config.clip_norm,
        ema_decay=spec.setting("ema"),
        folder=folder,
    )
    if spec.stops_early and fitted.best is not None:
        fitted.model.load_state_dict(fitted.best.weights)
    return fitted


def trial(
    config: TrialConfig, folder: Path, *, source: Source, factory: Factory | None = None, models: Path | None = None
) -> Outcome:
    """Train, choose nothing, measure: the validation numbers of one setting and, if it was chosen, its test numbers."""
    task = prepare(config, source)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", errors.LegatoWarning)
        torch.manual_seed(config.seed)  # dropout and the like draw from here; the caller's state is given back
        fitted = train(config, task, folder, factory)
    model = fitted.model.eval()
    logits = readings.usable(readings.predict(model, task.validation.inputs), fitted.diverged)
    temperature = metrics.fit_temperature(logits, task.validation.seen.cpu())
    measured: dict[str, Any] = {
        "diverged": fitted.diverged,
        "warnings": sorted({str(warning.message) for warning in said if warning.category is errors.LegatoWarning}),
        "steps": fitted.steps,
        "curves": {name: [row.get(name) for row in fitted.history] for name in _curves(fitted)},
        "temperature": temperature,
        **readings.scores("validation", logits, task.validation.seen, temperature),
        **_under_attack(config, model, "validation", task.validation.inputs, task.validation.seen, fitted.diverged),
        "guess_validation_error": 1 - 1 / task.num_classes,
        "guess_validation_nll_scaled": math.log(task.num_classes),
    }
    if not config.reads_test:
        return Outcome(measured)
    if config.keeps_model and models is not None:
        _save(models, config, task, model)
    answers = readings.usable(readings.predict(model, task.test.inputs), fitted.diverged)
    given = objectives.parse(config.objective).calibrating_temperature
    measured |= readings.scores("test", answers, task.test.true, temperature)
    measured |= readings.scores("noisy_test", answers, task.test.seen, temperature)
    measured |= readings.recalibrated(answers, task.test.seen, logits, task.validation.seen, given)
    measured |= _under_attack(config, model, "test", task.test.inputs, task.test.true, fitted.diverged)
    if config.sharpness_rows:
        rows = slice(config.sharpness_rows)
        measured |= flatness_readings.sharpness(model, task.train.inputs[rows], task.train.seen[rows])
    measured["reliability"] = readings.reliability(answers, task.test.seen)
    return Outcome(measured, readings.arrays(answers, task.test))


def _choices(objective: training.Objective) -> dict[str, float]:
    """How many steps each member of a selecting objective has been trained with so far."""
    if isinstance(objective, training.WithGradients):
        objective = objective.objective
    return {f"{CHOSEN}{name}": steps for name, steps in getattr(objective, "steps", {}).items()}


def _curves(fitted: training.Fitted) -> list[str]:
    known = [name for name in CURVES if name in fitted.history[0]]
    return known + [name for name in fitted.history[0] if name.startswith(CHOSEN)]


def _under_attack(
    config: TrialConfig, model: nn.Module, split: str, inputs: Tensor, target: Tensor, diverged: str | None
) -> dict[str, float]:
    """The error under attack, for a trial that measures one; a diverged model gets nothing right."""
    if not config.attack_radius:
        return {}
    if diverged:
        return {f"{split}_robust_error": 1.0}
    error = readings.robust_error(
        model, inputs, target, config.attack_radius, steps=ATTACK_STEPS[split], hard=split == "test"
    )
    return {f"{split}_robust_error": error}


def _save(models: Path, config: TrialConfig, task: Task, model: nn.Module) -> None:
    """Keep the bare network, with what a user needs to feed it."""
    net = model[1] if config.attack_radius and isinstance(model, nn.Sequential) else model
    training.save_model(
        models / f"{config.objective}-noise-{config.label_noise:g}".replace(":", "-"),
        net,
        config.model,
        task.input_shape,
        task.num_classes,
        objective=config.objective,
        learning_rate=config.learning_rate,
        data=config.data,
        data_sha256=config.data_sha256,
        seed=config.seed,
        train_rows=config.train_rows,
        label_noise=config.label_noise,
        noise_kind=config.noise_kind,
        class_names=list(task.class_names),
        standardisation={"mean": task.mean.tolist(), "deviation": task.deviation.tolist()},
    )
