"""What a model may be trained for: how each task of a comparison finds its data, names a trial, trains it and is timed."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

from legato import errors
from legato.data import Splits
from legato.data.text import Text, TextBatches, load_text, windows
from legato.lab.trial import Outcome
from legato.studies import classify, language, objectives
from legato.studies.classify import Factory, TrialConfig
from legato.studies.config import CompareConfig, LanguageOptions
from legato.studies.language import LanguageConfig
from legato.studies.methods import Context
from legato.studies.prepared import Source, prepare
from legato.studies.score import ACCURACY, LOSS, Score
from legato.training import Batch, Objective

Setting: TypeAlias = TrialConfig | LanguageConfig
"""All that decides the numbers of one training."""
Loaded: TypeAlias = Splits | Text


@dataclass(frozen=True)
class Parts:
    """What takes a step of a training, to be timed."""

    model: nn.Module
    objective: Objective
    optimizer: Optimizer
    batch: Batch
    last_epoch: int


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks."""

    rates: Mapping[str, tuple[float, ...]]
    """Optimizer -> the learning rates of `auto`."""
    load: Callable[[CompareConfig], tuple[Source, Any]]
    """The data of the first seed, and where every trial finds its own."""
    setting: Callable[[CompareConfig, Any], Any]
    """The template of all trials."""
    check: Callable[[Any], None]
    """Raises where the objective of a setting cannot be made."""
    trial: Callable[..., Outcome]
    """(setting, folder, source, factory, models) -> numbers."""
    epoch: Callable[[Any], tuple[Any, int]]
    """The same setting with one epoch, and how many it has."""
    parts: Callable[[Source, Factory | None, Any], Parts]
    facts: Callable[[Any], dict[str, Any]]
    """What the store keeps of the data: names of the classes, rows, provenance."""
    test_bytes: Callable[[Any, Any], int]
    """What one test reading takes on the disk."""
    score: Score
    """What its arms are ranked by."""


def task_of(setting: Setting) -> Task:
    """The task that a setting belongs to."""
    return TASKS["language" if isinstance(setting, LanguageConfig) else "classify"]


def context(setting: Setting) -> Context:
    """What an objective may know of a trial."""
    return language.context(setting) if isinstance(setting, LanguageConfig) else classify.context(setting)


def _load_splits(config: CompareConfig) -> tuple[Source, Splits]:
    if config.language != LanguageOptions():
        raise errors.argument(
            "language",
            expected="nothing, for the task classify has no use for it",
            got="options",
            fix="--task language",
        )
    source = Source(
        config.data, config.target, config.group, config.classes, config.image_size, config.validation, config.test,
        config.data_dir, config.download,
    )  # fmt: skip
    return source, source.load(config.first_seed)


def _classify_setting(config: CompareConfig, splits: Splits) -> TrialConfig:
    return TrialConfig(
        data=splits.provenance.name,
        data_sha256=splits.provenance.sha256,
        objective="ce",
        learning_rate=0.0,
        seed=0,
        model=_network(config.model, splits),
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        augment=config.augment,
        noise_kind=config.noise_kind,
        validation_labels=config.validation_labels,
        device=config.device,
        autocast=config.autocast,
        train_rows=config.rows,
        attack_radius=config.attack_radius,
        keeps_model=config.save_model,
    )


def _network(model: str, splits: Splits) -> str:
    """auto: an mlp for vectors and for grey pictures of up to 32 pixels, a convnet for other pictures."""
    if model != "auto":
        return model
    return "convnet" if splits.is_image and (splits.input_shape[0] > 1 or max(splits.input_shape[1:]) > 32) else "mlp"


def _check_classify(setting: TrialConfig) -> None:
    objectives.parse(setting.objective).build(classify.context(setting))


def _classify_trial(
    setting: TrialConfig, folder: Path, source: Source, factory: Factory | None, models: Path | None
) -> Outcome:
    return classify.trial(setting, folder, source=source, factory=factory, models=models)


def _classify_parts(source: Source, factory: Factory | None, setting: TrialConfig) -> Parts:
    data = prepare(setting, source)
    model = classify.new_model(setting, data, factory)
    rows, first = data.train, slice(setting.batch_size)
    batch = (rows.inputs[first], rows.seen[first], rows.index[first])
    optimizer = classify.new_optimizer(setting, model.parameters())
    return Parts(model, classify.new_objective(setting, data, model), optimizer, batch, setting.epochs - 1)


def _split_facts(splits: Splits) -> dict[str, Any]:
    rows = {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)}
    return {"class_names": list(splits.class_names), "rows": rows, "provenance": asdict(splits.provenance)}


def _load_text(config: CompareConfig) -> tuple[Source, Text]:
    own = CompareConfig(task="language")
    of_classify = (
        "model", "epochs", "batch_size", "optimizer", "weight_decay", "clip_norm", "augment", "label_noise", "noise_kind",
        "validation_labels", "attack_radius", "references", "target", "group", "classes", "rows", "image_size", "validation", "test",
        "save_model", "download",
    )  # fmt: skip
    for name in of_classify:
        if getattr(config, name) != getattr(own, name):
            fix = (
                f"--language.{name.replace('_', '-')}"
                if name in LanguageOptions.__dataclass_fields__
                else "leave it out"
            )
            raise errors.argument(
                name, expected="nothing, for the task language has no use for it", got=getattr(config, name), fix=fix
            )
    source = Source(config.data, data_dir=config.data_dir)
    return source, _text(source)


def _text(source: Source) -> Text:
    return load_text(source.data, data_dir=source.data_dir)


def _language_setting(config: CompareConfig, text: Text) -> LanguageConfig:
    for span in (text.train, text.validation, text.test):
        windows(span, config.language.length, 1)  # a text that is too short is named now
    options = asdict(config.language) | {"device": config.device, "autocast": config.autocast}
    return language.config_for(text, learning_rate=0.0, seed=0, **options)


def _check_language(setting: LanguageConfig) -> None:
    language.check_objective(setting.objective)
    language.new_model(setting)
    objectives.parse(setting.objective).build(language.context(setting))


def _language_trial(
    setting: LanguageConfig, folder: Path, source: Source, factory: Factory | None, models: Path | None
) -> Outcome:
    return language.trial(setting, folder, text=_text(source))


def _language_parts(source: Source, factory: Factory | None, setting: LanguageConfig) -> Parts:
    model, factors = language.new_model(setting)
    model.to(setting.device)
    batches = TextBatches(
        _text(source).train.to(setting.device), setting.length, setting.batch_size, 1, seed=setting.seed
    )
    return Parts(
        model, language.new_objective(setting, model), language.new_optimizer(setting, model, factors), next(batches.epoch(0)), setting.checks - 1
    )  # fmt: skip


def _text_facts(text: Text) -> dict[str, Any]:
    rows = {name: len(getattr(text, name)) for name in ("train", "validation", "test")}
    return {"class_names": [], "rows": rows, "provenance": asdict(text.provenance)}


def _language_bytes(text: Text, setting: LanguageConfig) -> int:
    """Of the answers, and of what is watched: about 3 kB a block and reading."""
    watched = setting.steps // setting.watch_every + 1 if setting.watch_every else 0
    return 10 * setting.validation_rows * setting.length + 3000 * setting.depth * watched


TASKS: Mapping[str, Task] = {
    "classify": Task(
        {"sgd": (0.005, 0.02, 0.08, 0.32), "adamw": (0.0001, 0.0004, 0.0016, 0.0064)},
        _load_splits, _classify_setting, _check_classify, _classify_trial,
        lambda setting: (replace(setting, epochs=1), setting.epochs),
        _classify_parts, _split_facts, lambda splits, setting: len(splits.test) * (2 * splits.num_classes + 10), ACCURACY,
    ),
    "language": Task(
        dict.fromkeys(("adamw", "muon"), (0.001, 0.003, 0.01, 0.03, 0.1)),
        _load_text, _language_setting, _check_language, _language_trial,
        lambda setting: (replace(setting, steps=setting.steps // setting.checks, checks=1), setting.checks),
        _language_parts, _text_facts, _language_bytes, LOSS,
    ),
}  # fmt: skip
