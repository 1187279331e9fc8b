"""The task `language`: one trial trains one decoder on bytes of text with one objective, learning rate and seed, and measures it.

The validation span chooses; the test span is read only by a trial whose config says so.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from legato import errors, metrics, training
from legato.data.text import Text, TextBatches, load_text, windows
from legato.lab.trial import Outcome
from legato.stability import decay as optimizers
from legato.stability.decoder import Decoder
from legato.stability.mup import Factors, Variant, mu_parametrise_
from legato.stability.watch import Watcher, watch
from legato.studies import objectives, readings
from legato.studies.language_tokens import GradientSize, Probe, TokenRows
from legato.studies.methods import METHODS, TERMS, WHOLE, Context, Training

CURVES = ("train_loss", "validation_loss", "validation_error")
"""What is kept of each check."""
GRADIENT_WEIGHT = "blocks.0.up.weight"
"""The first weight of the first MLP, whose gradient the paper follows."""
GRADIENT_STEPS = 50
"""Over how many of the last steps."""
PROBE_ROWS = 8
TEMPERATURE_ROWS = 2048
"""Tokens that the temperature is fitted on."""
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class LanguageConfig:
    """All that decides the numbers of one trial."""

    data: str
    """Name of the text."""
    data_sha256: str
    """Of its tokens."""
    learning_rate: float
    """The peak."""
    seed: int
    """Of the first weights and the batches."""
    objective: str = "ce"
    """Canonical text form, such as ce+z-loss:coefficient=0.0001."""
    width: int = 32
    depth: int = 2
    heads: int = 2
    length: int = 64
    """Tokens of a window, T."""
    batch_size: int = 8
    """Windows of a step."""
    steps: int = 300
    checks: int = 6
    """How often the validation loss is read, evenly over the run, the last time at its end."""
    patience: int = 3
    """A run whose validation loss is above that of the untrained model at so many checks in a row is lost, and ends."""
    warmup: float = 0.05
    """Share of the steps."""
    lowest_rate: float = 1e-5
    """Where the cosine ends, an absolute learning rate."""
    qk_norm: bool = True
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 1e-4
    decay: Literal["independent", "conventional"] = "independent"
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    mup: Variant | None = None
    base_width: int = 256
    """Of muParam."""
    head_is_linear: bool = True
    """Whether muParam scales the head's learning rate."""
    probe_steps: tuple[int, ...] = ()
    """After how many steps the attention of a fixed batch of validation text is read; 0 is before the first."""
    watch_every: int = 0
    """Steps between those that `legato.stability.watch` reads; 0 reads none."""
    validation_rows: int = 128
    """Windows of validation text, evenly spaced, and as many of test text."""
    device: str = "cpu"
    autocast: Literal["bf16"] | None = None
    compiled: bool = False
    """Pays after some ten thousand steps."""
    reads_test: bool = False
    """Whether the trained model is put to the test text."""

    @property
    def model(self) -> str:
        """In words."""
        return f"decoder of width {self.width} and depth {self.depth}"

    def __post_init__(self) -> None:
        if self.checks < 1 or self.steps < 1 or self.steps % self.checks:
            raise errors.argument("steps", expected=f"a multiple of the {self.checks} checks", got=self.steps)
        if self.watch_every < 0:
            raise errors.argument("watch_every", expected="a whole number >= 0", got=self.watch_every)


def config_for(text: Text, *, learning_rate: float, seed: int, **settings: Any) -> LanguageConfig:
    """The config of a trial on a text; settings are the other fields of `LanguageConfig`."""
    origin = text.provenance
    return LanguageConfig(origin.name, origin.sha256, learning_rate, seed, **settings)


def check_objective(text: str) -> None:
    """Raises LegatoValueError for a part that needs more than logits and targets of tokens."""
    spec = objectives.parse(text)
    unfit = [part.name for part in spec.modifiers if part.name in {*TERMS, *WHOLE} - {"z-loss"}]
    if METHODS[spec.loss.name].attacks or spec.loss.members:
        unfit.insert(0, spec.loss.name)
    if unfit:
        raise errors.argument(
            "objectives", expected="losses of logits and targets for the task language", got=f"{unfit[0]} in {text!r}",
            fix="ce, ce+z-loss:1e-4, comp-sum:1.2, ce+sam:0.05",
        )  # fmt: skip


def context(config: LanguageConfig) -> Context:
    """What the objective may know of the trial; an epoch is the time between two checks."""
    return Context(config.checks, config.seed)


def new_model(config: LanguageConfig) -> tuple[Decoder, dict[str, Factors]]:
    """The untrained decoder, whose weights depend on the seed alone, and what its learning rates are multiplied by."""
    model = Decoder(
        Text.vocabulary, config.width, config.depth, config.heads,
        length=config.length, qk_norm=config.qk_norm, generator=Generator().manual_seed(config.seed),
    )  # fmt: skip
    factors = {}
    if config.mup is not None:
        factors = mu_parametrise_(model, config.mup, config.base_width, head_is_linear=config.head_is_linear)
    return model, factors


def new_optimizer(config: LanguageConfig, model: nn.Module, factors: Mapping[str, Factors]) -> Optimizer:
    """AdamW, or Muon with AdamW; the objective may bring a weight decay of its own."""
    own = objectives.parse(config.objective).setting("weight-decay")
    make = optimizers.muon if config.optimizer == "muon" else optimizers.adamw
    return make(
        model, config.learning_rate, config.weight_decay if own is None else own,
        decay=config.decay, factors=factors, eps=config.eps,
    )  # fmt: skip


def new_objective(
    config: LanguageConfig, model: nn.Module, after: Callable[[nn.Module, int], None] | None = None
) -> TokenRows:
    """What is minimised, made for this model; every token is a row."""
    told = Training(model, 0, Text.vocabulary, config.steps // config.checks)
    return TokenRows(objectives.parse(config.objective).objective(context(config), told), after)


@dataclass(frozen=True)
class Trained:
    """A training, and what was read on the way."""

    fitted: training.Fitted
    initial_loss: float
    size: int
    gradient_rms: float
    probes: Sequence[Mapping[str, Any]]
    watcher: Watcher | None


def train(config: LanguageConfig, text: Text) -> Trained:
    """Fit the decoder of `config`. Without checkpoints: they would not hold what is read on the way, so a killed trial begins anew."""
    model, factors = new_model(config)
    held = windows(text.validation, config.length, config.validation_rows).to(config.device)
    probe = Probe(held[:PROBE_ROWS, :-1], config.probe_steps)
    model.to(config.device)
    initial = measure(model, held)["validation_loss"]
    probe(model, 0)
    spec = objectives.parse(config.objective)
    batches = TextBatches(text.train, config.length, config.batch_size, config.steps // config.checks, seed=config.seed)
    compiled: Any = torch.compile(model) if config.compiled else model
    sizes: list[GradientSize] = []
    watchers: list[Watcher] = []
    with ExitStack() as stack:

        def optimizer(parameters: list[nn.Parameter]) -> Optimizer:
            made = new_optimizer(config, model, factors)
            sizes.append(GradientSize(model.get_parameter(GRADIENT_WEIGHT), made, GRADIENT_STEPS))
            if config.watch_every:
                keep = config.steps // config.watch_every + 1
                watchers.append(stack.enter_context(watch(model, made, every=config.watch_every, keep=keep)))
            return made

        fitted = training.fit(
            compiled,
            new_objective(config, model, probe),
            batches,
            epochs=config.checks,
            optimizer=optimizer,
            schedule=partial(training.cosine, warmup=config.warmup, lowest=config.lowest_rate),
            validate=partial(measure, held=held),
            stop=partial(lost, initial=initial, patience=config.patience),
            device=config.device,
            autocast=config.autocast,
            clip_norm=config.clip_norm,
            ema_decay=spec.setting("ema"),
        )
    if spec.stops_early and fitted.best is not None:
        fitted.model.load_state_dict(fitted.best.weights)
    return Trained(fitted, initial, model.size, sizes[0].mean, probe.readings, watchers[0] if watchers else None)


def lost(history: Sequence[Mapping[str, Any]], initial: float, patience: int) -> str | None:
    """Words for a run that has nothing more to give: a loss that is not finite, or is above the initial one again and again."""
    losses = [entry["validation_loss"] for entry in history]
    step = history[-1]["step"]
    if losses[-1] is None:
        return f"the validation loss is not finite after step {step}"
    last = losses[-patience:]
    if len(last) == patience and all(loss is not None and loss > initial for loss in last):
        return f"the validation loss was above the initial {initial:.3f} at {patience} checks in a row, the last after step {step}"
    return None


def measure(model: nn.Module, held: Tensor) -> dict[str, float]:
    """Cross-entropy in nats a token, without any term, and share of wrong next tokens on windows [M, T + 1]."""
    logits = predict(model, held)
    target = held[:, 1:].flatten().cpu()
    return {
        "validation_loss": float(F.cross_entropy(logits, target)),
        "validation_error": metrics.error_rate(logits, target),
    }


def predict(model: nn.Module, held: Tensor) -> Tensor:
    """Logits [M * T, V] of windows [M, T + 1], float32 on the CPU."""
    with torch.inference_mode():
        return torch.cat([model(part[:, :-1]).flatten(0, 1).float().cpu() for part in held.split(ROWS_AT_ONCE)])


def trial(config: LanguageConfig, folder: Path | None = None, *, text: Text | None = None) -> Outcome:
    """Train, choose nothing, measure: the validation numbers of one setting and, if it was chosen, its test numbers.

    Args:
        config: says which text by its SHA-256.
        folder: nothing is written there.
        text: by default that of the config's name, which is read once a process.
    Raises: DataError where the text is another one than that of the config.
    """
    text = _checked(config, load_text(config.data) if text is None else text)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", errors.LegatoWarning)
        done = train(config, text)
    fitted = done.fitted
    held = windows(text.validation, config.length, config.validation_rows).to(config.device)
    model = fitted.model.eval()
    logits, target = readings.usable(predict(model, held), fitted.diverged), held[:, 1:].flatten().cpu()
    every = max(1, len(target) // TEMPERATURE_ROWS)
    temperature = metrics.fit_temperature(logits[::every], target[::every])
    measured: dict[str, Any] = {
        "diverged": fitted.diverged,
        "loss": None if fitted.diverged else float(F.cross_entropy(logits, target)),
        "initial_loss": done.initial_loss,
        "parameters": done.size,
        "steps": fitted.steps,
        "gradient_rms": done.gradient_rms,
        "probes": done.probes,
        "curves": {name: [row.get(name) for row in fitted.history] for name in CURVES},
        "warnings": sorted({str(warning.message) for warning in said if warning.category is errors.LegatoWarning}),
        "temperature": temperature,
        **readings.scores("validation", logits, target, temperature),
        "guess_validation_error": 1 - 1 / Text.vocabulary,
        "guess_validation_nll_scaled": math.log(Text.vocabulary),
    }
    if done.watcher is not None:
        measured["alarms"] = [asdict(alarm) for alarm in done.watcher.alarms]
        measured["readings"] = [asdict(reading) for reading in done.watcher.readings]
    if not config.reads_test:
        return Outcome(measured)
    unseen = windows(text.test, config.length, config.validation_rows).to(config.device)
    answers, truth = readings.usable(predict(model, unseen), fitted.diverged), unseen[:, 1:].flatten().cpu()
    for name in ("test", "noisy_test"):  # no label is corrupted here
        measured |= readings.scores(name, answers, truth, temperature)
    measured["reliability"] = readings.reliability(answers, truth)
    nll, scaled = (F.cross_entropy(answers / t, truth, reduction="none") for t in (1.0, temperature))
    return Outcome(
        measured,
        {
            "prediction": answers.argmax(1).to(torch.uint8).numpy(),
            "true": truth.to(torch.uint8).numpy(),
            "nll": nll.numpy().astype(np.float32),
            "nll_scaled": scaled.numpy().astype(np.float32),
        },
    )


def _checked(config: LanguageConfig, text: Text) -> Text:
    if text.provenance.sha256 != config.data_sha256:
        raise errors.DataError(
            errors.message(
                f"text {config.data}", expected=f"the one with SHA-256 {config.data_sha256[:12]}", got=text.provenance.sha256[:12],
                fix="the files have changed, or Python has another version: begin a new folder",
            )
        )  # fmt: skip
    return text
