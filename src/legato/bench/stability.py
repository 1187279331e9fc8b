"""What watching costs, against hooks that make the logits again, and what a warm worker saves a sweep."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato import training
from legato.bench.case import Case
from legato.bench.timing import Step
from legato.data.text import TextBatches, load_text, windows
from legato.errors import LegatoWarning
from legato.stability.decay import adamw
from legato.stability.decoder import Attention, Decoder, rotate
from legato.stability.watch import watch

SHAPE = (8, 128)
"""Batch and sequence length; width 64, 4 blocks."""
WIDTH, DEPTH, HEADS, VOCABULARY = 64, 4, 4, 256
CADENCE = 20
"""Steps in a timed call: one of them is watched."""
RUN = (32, 2, 300)
"""Width, depth and steps of a run of a sweep; a sweep of 42 runs in two workers adds two starts of a process to 42 such runs."""


def cases(official: Path | None = None) -> list[Case]:
    """Every case of the room; `official` is of no use here. The default cadence, every tenth reading an exact one, lies between the first two."""
    rows: list[tuple[str, str, str, str, float | None]] = [
        ("watch, every 20th step", "off", "watched", "plain", 1.015),
        ("watch, every 20th step, exact values each time", "off", "exact", "plain", 1.015),
        ("watch, every 20th step", "hooks that make the logits again", "watched", "hooked", None),
    ]
    run = Case(
        "a run of a sweep, warm worker", "a process for each run", RUN, lambda: one_run, lambda: run_in_a_process, 0.5, peak=lambda _: 0
    )  # fmt: skip
    return [*(_case(*row) for row in rows), run]


def _case(part: str, peer: str, ours: str, other: str, bar: float | None) -> Case:
    """Both sides train one model in turns, so that where its memory lies makes no difference."""
    training = _Training()
    return Case(part, peer, SHAPE, partial(training.calls, ours), partial(training.calls, other), bar)


class _Training:
    """A decoder, its optimizer and a batch, made when they are first needed."""

    @cached_property
    def model(self) -> Decoder:
        numbers = torch.Generator().manual_seed(0)
        return Decoder(VOCABULARY, WIDTH, DEPTH, HEADS, length=SHAPE[1], qk_norm=False, generator=numbers)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return adamw(self.model, 1e-4)

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        numbers = torch.Generator().manual_seed(1)
        tokens, target = torch.randint(VOCABULARY, (2, *SHAPE), generator=numbers)
        return tokens, target

    def step(self) -> None:
        tokens, target = self.batch
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(tokens).flatten(0, 1), target.flatten()).backward()
        self.optimizer.step()

    def calls(self, kind: str) -> Step:
        """What does `CADENCE` steps, of which one is looked at unless the kind is `plain`."""
        kinds: dict[str, Callable[[], Step]] = {
            "plain": lambda: self.plain,
            "hooked": lambda: self.hooked,
            "watched": partial(self.watched, 0),
            "exact": partial(self.watched, 1),
        }
        return kinds[kind]()

    def plain(self) -> None:
        for _ in range(CADENCE):
            self.step()

    def watched(self, exact_every: int) -> Step:
        def call() -> None:
            with warnings.catch_warnings(), watch(self.model, self.optimizer, every=CADENCE, exact_every=exact_every):
                warnings.simplefilter("ignore", LegatoWarning)  # alarms are no matter here
                self.plain()

        return call

    def hooked(self) -> None:
        with Hooks(self.model) as hooks:
            self.step()
            hooks.read()
        for _ in range(CADENCE - 1):
            self.step()


class Hooks:
    """Largest logit and mean entropy of each head by forward hooks that make queries, keys and logits again. Our reimplementation."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
        self.found: dict[str, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> "Hooks":
        self.handles = [layer.register_forward_hook(partial(self._look, name)) for name, layer in self.layers.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    @torch.no_grad()
    def _look(self, name: str, layer: Attention, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, cosine, sine = inputs
        split = (*x.shape[:-1], layer.heads, layer.head_dim)
        query, key = (
            rotate(norm(linear(x).view(split)).transpose(1, 2), cosine, sine)
            for linear, norm in ((layer.query, layer.query_norm), (layer.key, layer.key_norm))
        )
        logits = layer.scale * query @ key.transpose(-1, -2)
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        logits = logits.masked_fill(hidden, -torch.inf)
        entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
        self.found[name] = logits.amax((0, 2, 3)), entropy.mean((0, 2))

    def read(self) -> dict[str, list[list[float]]]:
        """Layer -> largest logits and entropies of its heads."""
        return {name: [values.tolist() for values in both] for name, both in self.found.items()}


def one_run() -> None:
    """Train a decoder on text in this process and measure it, as a run of a sweep does; no run is lost at this size, so none ends early."""
    width, depth, steps = RUN
    text = load_text()
    model = Decoder(VOCABULARY, width, depth, width // 16, length=64, generator=torch.Generator().manual_seed(0))
    held = windows(text.validation, 64, 128)
    fitted = training.fit(
        model, training.Criterion(Tokens()), TextBatches(text.train, 64, 8, steps // 6), epochs=6,
        optimizer=lambda _: adamw(model, 0.01), schedule=partial(training.cosine, warmup=0.1, lowest=1e-5),
        validate=lambda found: {"validation_error": _loss(found, held)}, clip_norm=1.0,
    )  # fmt: skip
    assert fitted.steps == steps


@torch.inference_mode()
def _loss(model: nn.Module, held: Tensor) -> float:
    return float(Tokens()(model(held[:, :-1]), held[:, 1:]))


class Tokens(nn.Module):
    """Cross-entropy of [B, T, V] and [B, T]."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """In nats a token."""
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def run_in_a_process() -> None:
    """The same in a fresh process, with the start of Python, its imports and the reading of the text."""
    subprocess.run([sys.executable, "-c", f"from {__name__} import one_run; one_run()"], check=True)
