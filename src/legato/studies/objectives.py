"""The one table of all objectives, and the text form in which a user names them.

    ce    comp-sum:1.7    comp-sum:tau=1.7,warmup=0.3    label-smoothing:0.1    focal:2    ce+ema:0.99

`+` joins parts, `:key=value,key=value` sets them, one bare value is the main parameter. One part is the loss; the others change how it is
trained. `str(parse(text))` is canonical: it is what results are filed under. Reading and printing need no torch; only `build` does.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from legato import errors

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Parameter:
    """One number of a method: its default and the half-open range [low, high) in which it makes sense."""

    default: float
    low: float = 0.0
    high: float = math.inf


@dataclass(frozen=True)
class Method:
    """A row of the table: what a part of an objective is, its parameters, and how it is made and written in Python."""

    summary: str
    python: str
    build: "Callable[..., nn.Module] | None" = None
    main: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


def _cross_entropy(*, label_smoothing: float = 0.0) -> "nn.Module":
    from torch import nn

    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)


def _comp_sum(*, epochs: int, tau: float, warmup: float) -> "nn.Module":
    from legato.losses import CompSumLoss, Warmup

    return CompSumLoss(Warmup(end=tau, epochs=math.ceil(warmup * epochs)) if warmup else tau)


def _focal(*, gamma: float) -> "nn.Module":
    from legato.losses import FocalLoss

    return FocalLoss(gamma=gamma)


LOSSES: Mapping[str, Method] = {
    "ce": Method("cross-entropy", "torch.nn.CrossEntropyLoss()", lambda epochs: _cross_entropy()),
    "label-smoothing": Method(
        "cross-entropy against softened targets",
        "torch.nn.CrossEntropyLoss(label_smoothing={amount})",
        lambda epochs, amount: _cross_entropy(label_smoothing=amount),
        "amount",
        {"amount": Parameter(0.1, high=1.0)},
    ),
    "comp-sum": Method(
        "comp-sum loss: tau 0 sum-exponential, 1 cross-entropy, 2 absolute error; warmup = share of the epochs from tau 1",
        "legato.CompSumLoss(tau={tau})",
        _comp_sum,
        "tau",
        {"tau": Parameter(1.7), "warmup": Parameter(0.0, high=1.0)},
    ),
    "gce": Method(
        "generalised cross-entropy (comp-sum with tau = 1 + q)",
        "legato.losses.gce(q={q})",
        lambda epochs, q: _comp_sum(epochs=epochs, tau=1 + q, warmup=0.0),
        "q",
        {"q": Parameter(0.7)},
    ),
    "mae": Method(
        "mean absolute error of the probabilities (comp-sum with tau = 2)",
        "legato.losses.mae()",
        lambda epochs: _comp_sum(epochs=epochs, tau=2.0, warmup=0.0),
    ),
    "sum-exponential": Method(
        "sum-exponential loss (comp-sum with tau = 0)",
        "legato.losses.sum_exponential()",
        lambda epochs: _comp_sum(epochs=epochs, tau=0.0, warmup=0.0),
    ),
    "focal": Method(
        "focal loss", "legato.losses.FocalLoss(gamma={gamma})", lambda epochs, gamma: _focal(gamma=gamma), "gamma",
        {"gamma": Parameter(2.0)},
    ),
}  # fmt: skip
MODIFIERS: Mapping[str, Method] = {
    "ema": Method(
        "the evaluated weights are an exponential moving average of the trained ones",
        "legato.fit(..., ema_decay={decay})",
        main="decay",
        parameters={"decay": Parameter(0.99, high=1.0)},
    ),
}
METHODS: Mapping[str, Method] = {**LOSSES, **MODIFIERS}


@dataclass(frozen=True)
class Part:
    """One method with all its parameters set."""

    name: str
    values: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        method = METHODS[self.name]
        told = [f"{k}={_number(v)}" for k, v in self.values if k == method.main or v != method.parameters[k].default]
        return f"{self.name}:{','.join(told)}" if told else self.name


@dataclass(frozen=True)
class ObjectiveSpec:
    """A parsed objective. `str()` is canonical, `label` is for people, `python` is the criterion in the user's own loop."""

    loss: Part
    modifiers: tuple[Part, ...] = ()

    def __str__(self) -> str:
        return "+".join(str(part) for part in (self.loss, *self.modifiers))

    @property
    def label(self) -> str:
        """`comp-sum tau=1.7 + ema decay=0.99`, `label-smoothing 0.1`."""
        return str(self).replace("+", " + ").replace(":", " ").replace(",", " ").replace("amount=", "")

    @property
    def python(self) -> str:
        """The expression that makes the criterion."""
        return LOSSES[self.loss.name].python.format(**{k: _number(v) for k, v in self.loss.values})

    @property
    def ema_decay(self) -> float | None:
        """The decay of the weight average, if the objective has one."""
        return next((dict(part.values)["decay"] for part in self.modifiers if part.name == "ema"), None)

    def build(self, epochs: int) -> "nn.Module":
        """The criterion `(logits, target) -> loss`; `epochs` is the length of the training, for schedules."""
        method = LOSSES[self.loss.name]
        assert method.build is not None  # every loss has one; only modifiers have none
        return method.build(epochs=epochs, **dict(self.loss.values))


def parse(text: str) -> ObjectiveSpec:
    """Read an objective from its text form.

    Raises:
        LegatoValueError: for an unknown method or parameter (the nearest name is given), a value that is no number or out of
            range, and anything but exactly one loss.
    """
    parts = [_part(piece.strip(), text) for piece in text.split("+")]
    losses = [part for part in parts if part.name in LOSSES]
    if len(losses) != 1:
        raise errors.argument(
            "objectives", expected="one loss in each objective", got=f"{len(losses)} in {text!r}",
            fix=f"losses are {', '.join(LOSSES)}; separate objectives by spaces",
        )  # fmt: skip
    return ObjectiveSpec(losses[0], tuple(part for part in parts if part.name not in LOSSES))


def _part(piece: str, whole: str) -> Part:
    name, _, settings = piece.partition(":")
    if name not in METHODS:
        raise errors.choice(f"objectives ({whole!r})", name, METHODS)
    method = METHODS[name]
    values = {key: parameter.default for key, parameter in method.parameters.items()}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            key, value = method.main, setting
        if not method.parameters:
            raise errors.argument(
                f"objectives ({whole!r})", expected=f"{name} alone, it has no parameter", got=piece, fix=f"write {name}"
            )
        if key not in method.parameters:
            raise errors.choice(f"objectives ({whole!r}), parameter of {name}", key, method.parameters)
        values[key] = _value(f"{name}:{key}", value, method.parameters[key])
    return Part(name, tuple(values.items()))


def _value(name: str, text: str, parameter: Parameter) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not parameter.low <= value < parameter.high:
        upper = "" if math.isinf(parameter.high) else f" and < {_number(parameter.high)}"
        raise errors.argument(
            name, expected=f"a finite number >= {_number(parameter.low)}{upper}", got=repr(text), fix=f"the default is {_number(parameter.default)}"
        )  # fmt: skip
    return value


def _number(value: float) -> str:
    return repr(value).removesuffix(".0")
