"""Early warnings: what in the readings says that a run is about to fail, the likely cause, and what helps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from legato import errors
from legato.stability.readings import Reading

QK = "normalise queries and keys (qk-layernorm), lower the learning rate, or lengthen the warm-up"
"""What helps against attention logits that grow."""


@dataclass(frozen=True)
class Thresholds:
    """When a reading is worth a warning. All are plain numbers > 0."""

    window: int = 50
    """Over how many optimizer steps growth is looked at."""
    growth: float = 10.0
    """Attention logits that grow by this factor within the window."""
    growth_from: float = 30.0
    """Growth is normal below this: logits start near 0."""
    limit: float = 1e4
    """The largest attention logit; beyond it runs of the paper diverged."""
    entropy: float = 0.05
    """Mean attention entropy of a head, in nats, below which it looks at one key alone."""
    entropy_fall: float = 10.0
    """... and by what factor it must have been larger at some time, so that heads that have always looked at one key are left out."""
    log_z: float = 30.0
    """RMS of the log-normaliser of the output logits, in nats."""
    smallest_logit: float = -300.0
    """The least output logit; a number < 0."""
    eps_ratio: float = 10.0
    """RMS of a gradient in units of the optimizer's eps. At 10 the step is 0.909 of a full one, at 1 half."""
    dead: float = 1e-9
    """RMS of an update in units of the RMS of its parameter, below which nothing is learned."""
    patience: int = 3
    """How many watched steps in a row a parameter must look dead, or its gradient small."""

    def __post_init__(self) -> None:
        for name in (part.name for part in fields(self)):
            value = getattr(self, name)
            good = (
                isinstance(value, int | float)
                and math.isfinite(value)
                and (value < 0 if name == "smallest_logit" else value > 0)
            )
            if not good:
                sign = "<" if name == "smallest_logit" else ">"
                raise errors.argument(f"thresholds.{name}", expected=f"a plain finite number {sign} 0", got=value)


@dataclass(frozen=True)
class Alarm:
    """One warning."""

    step: int
    """Of the reading that raised it."""
    rule: str
    """Which rule: `not finite`, `attention growth`, `attention limit`, `attention entropy`, `output logits`, `small gradient`, `dead update`."""
    where: str
    """The layer or parameter."""
    finding: str
    """What was seen, in a sentence with its numbers."""
    cause: str
    """What it usually comes from."""
    remedy: str
    """What usually helps."""

    def __str__(self) -> str:
        return f"step {self.step}: {self.finding}. Likely cause: {self.cause}. Fix: {self.remedy}"


def alarms(readings: Sequence[Reading], thresholds: Thresholds | None = None) -> list[Alarm]:
    """What the last of the readings, seen after those before it, warns of.

    Args:
        readings: in the order of steps; those of `Thresholds.window` steps and the last `patience` ones are looked at, and the
            entropies of all.
        thresholds: by default those of `Thresholds`.
    Returns: at most one alarm for each rule and place; none for an empty sequence.
    """
    if not readings:
        return []
    limits = thresholds or Thresholds()
    found: list[Alarm] = []
    for rule in (
        _not_finite,
        _attention_growth,
        _attention_limit,
        _attention_entropy,
        _output_logits,
        _small_gradient,
        _dead_update,
    ):
        found.extend(rule(readings, limits))
    return found


def _not_finite(readings: Sequence[Reading], limits: Thresholds) -> Iterator[Alarm]:
    now = readings[-1]
    bad = [name for name, value in now.metrics().items() if not math.isfinite(value)]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        yield Alarm(
            now.step, "not finite", "", f"{bad[0]}{more} is not finite", "the run has diverged, or a batch holds such numbers",
            "go back to a checkpoint before the first alarm, with a lower learning rate or clipped gradients",
        )  # fmt: skip


def _attention_growth(readings: Sequence[Reading], limits: Thresholds) -> Iterator[Alarm]:
    now = readings[-1]
    past = [reading for reading in readings[:-1] if now.step - reading.step <= limits.window]
    for name, layer in now.attention.items():
        top = max(layer.largest)
        before = [(max(old.attention[name].largest), old.step) for old in past if name in old.attention]
        low, step = min(before, default=(math.inf, 0))
        floor = max(low, limits.growth_from / limits.growth)
        if top >= limits.growth_from and top >= limits.growth * floor:
            yield Alarm(
                now.step, "attention growth", name,
                f"attention logits of {name} grow {top / floor:.3g}x in {now.step - step} steps, to {top:.3g}",
                "queries and keys grow at this learning rate", QK,
            )  # fmt: skip


def _attention_limit(readings: Sequence[Reading], limits: Thresholds) -> Iterator[Alarm]:
    now = readings[-1]
    for name, layer in now.attention.items():
        top = max(layer.largest)
        if top >= limits.limit:
            head = layer.largest.index(top)
            yield Alarm(
                now.step, "attention limit", name, f"the largest attention logit of {name} is {top:.3g}, in head {head}",
                "queries and keys have grown; each row looks at one key and short floating point types round such logits coarsely",
                f"{QK}; or scale the heads down (QKClip)",
            )  # fmt: skip


def _attention_entropy(readings: Sequence[Reading], limits: Thresholds) -> Iterator[Alarm]:
    now = readings[-1]
    for name, layer in now.attention.items():
        for head, value in enumerate(layer.entropy or []):
            if not value < limits.entropy:
                continue
            most = max((_entropy(old, name, head) for old in readings[:-1]), default=0.0)
            if most >= limits.entropy_fall * max(value, limits.entropy):
                yield Alarm(
                    now.step, "attention entropy", name,
                    f"attention entropy of {name}, head {head}, fell from {most:.3g} to {value:.3g} nats",
                    "attention logits have grown until each row looks at one key", QK,
                )  # fmt: skip
                break


def _output_logits(readings: Sequence[Reading], limits: Thresholds) -> Iterator[Alarm]:
    now = readings[-1]
    if now.logits is None:
        return
    if now.logits.log_z_rms > limits.log_z or now.logits.smallest < limits.smallest_logit:
        yield Alarm(
            now.step, "output logits", "logits",
            f"the log-normaliser is {now.logits.log_z_rms:.3g} nats (RMS) and the least output logit {now.logits.smallest:.3g}",
            "the output logits drift, which cross-entropy does not hold back",
            "add a z-loss of 1e-4, or weight decay that does not fall with the learning rate",
        )  # fmt: skip


def _small_gradient(readings: Sequence[Reading], limits: Thresholds) -> Iterator[Alarm]:
    last = readings[-limits.patience :]
    if len(last) < limits.patience:
        return
    now = last[-1]
    for name, eps in now.eps.items():
        ratios = [reading.gradient_rms.get(name, 0.0) / eps for reading in last if eps > 0]
        if ratios and all(0 < ratio < limits.eps_ratio for ratio in ratios):
            yield Alarm(
                now.step, "small gradient", name,
                f"the gradient of {name} is {ratios[-1]:.3g} times the optimizer's eps of {eps:.3g} (RMS), after clipping",
                "gradients shrink as models and learning rates grow, and Adam's eps then shortens the steps",
                f"a smaller eps, such as {eps * 1e-7:.0e}",
            )  # fmt: skip


def _dead_update(readings: Sequence[Reading], limits: Thresholds) -> Iterator[Alarm]:
    last = readings[-limits.patience :]
    if len(last) < limits.patience:
        return
    for name in last[-1].update_rms:
        if all(_dead(reading, name, limits.dead) for reading in last):
            yield Alarm(
                last[-1].step, "dead update", name, f"{name} has not moved in the last {limits.patience} watched steps",
                "no gradient reaches it, eps is far above its gradient, or its type is too short for such updates",
                "look at gradient_rms of it; keep the weights in float32; a smaller eps or a larger learning rate",
            )  # fmt: skip


def _dead(reading: Reading, name: str, limit: float) -> bool:
    """Whether a parameter that could move, at a learning rate that is not 0, did not."""
    known = name in reading.update_rms and reading.parameter_rms.get(name, 0.0) > 0
    return (
        known
        and reading.learning_rate.get(name, 1.0) > 0
        and reading.update_rms[name] <= limit * reading.parameter_rms[name]
    )


def _entropy(reading: Reading, name: str, head: int) -> float:
    layer = reading.attention.get(name)
    entropies = layer.entropy if layer is not None else None
    return entropies[head] if entropies is not None and head < len(entropies) else 0.0
