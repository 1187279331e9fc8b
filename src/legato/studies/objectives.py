"""The text form in which a user names an objective.

    ce    comp-sum:1.7    comp-sum:tau=1.7,warmup=0.3    label-smoothing:0.1    focal:2    ce+saf:1    ce+sam:0.1+ema:0.99

`+` joins parts, `:key=value,key=value` sets them, one bare value is the main parameter. One part is the loss; the others change how it is
trained. `str(parse(text))` is canonical: it is what results are filed under. Reading and printing need no torch; only `build` does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from legato import errors
from legato.studies.methods import (
    GRADIENTS,
    LOSSES,
    METHODS,
    MODIFIERS,
    TERMS,
    WHOLE,
    Context,
    Method,
    Parameter,
    Training,
)

if TYPE_CHECKING:
    from torch import nn

    from legato.training import Objective


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

    def python(self, context: Context) -> str:
        """The expression that makes the criterion."""
        values = {"radius": str(context.attack_radius)} | {key: _number(value) for key, value in self.loss.values}
        return LOSSES[self.loss.name].python.format(**values)

    @property
    def around(self) -> tuple[str, ...]:
        """What goes with the criterion, a line of Python for each further part."""
        return tuple(
            f"{part.name.replace('-', '_')} = " + MODIFIERS[part.name].python.format(**{k: _number(v) for k, v in part.values})
            for part in self.modifiers
        )  # fmt: skip

    def setting(self, name: str) -> float | None:
        """The main parameter of a further part such as `ema` or `weight-decay`; None without that part."""
        return next((dict(part.values)[METHODS[name].main] for part in self.modifiers if part.name == name), None)

    @property
    def stops_early(self) -> bool:
        """Whether the weights of the best epoch are evaluated."""
        return any(part.name == "early-stopping" for part in self.modifiers)

    @property
    def calibrating_temperature(self) -> float:
        """The temperature that theory gives: 1 / (2 - tau) after training with a comp-sum loss of tau < 2, else 1."""
        values = dict(self.loss.values)
        tau = {"comp-sum": values.get("tau", 1.0), "gce": 1 + values.get("q", 0.0), "sum-exponential": 0.0}
        tau_of_loss = tau.get(self.loss.name, 1.0)
        return 1 / (2 - tau_of_loss) if tau_of_loss < 2 else 1.0

    def build(self, context: Context) -> "nn.Module | Objective":
        """The criterion `(logits, target) -> loss`; for losses that need the model, the objective `(model, inputs, target) -> loss`."""
        method = LOSSES[self.loss.name]
        assert method.build is not None  # every loss has one; only modifiers have none
        built: nn.Module | Objective = method.build(context, **dict(self.loss.values))
        return built

    def objective(self, context: Context, training: Training) -> "Objective":
        """What `legato.fit` minimises."""
        from torch import nn

        from legato.training import Criterion, WithGradients

        def made(table: Mapping[str, Method], *parts: Any) -> list[Any]:
            chosen = [(table[part.name], part) for part in self.modifiers if part.name in table]
            return [
                method.build(context, training, *parts, **dict(part.values)) for method, part in chosen if method.build
            ]

        built = self.build(context)
        plain: Objective = Criterion(built, *made(TERMS)) if isinstance(built, nn.Module) else built
        objective: Objective
        (objective,) = made(WHOLE, built) or [plain]
        for method in made(GRADIENTS):
            objective = WithGradients(objective, method)
        return objective


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
    others = tuple(part for part in parts if part.name not in LOSSES)
    names = [part.name for part in others]
    if len(set(names)) < len(names):
        raise errors.argument("objectives", expected="each part once", got=repr(text), fix="leave one of the two out")
    needy = [name for name in names if name in TERMS or name in WHOLE]
    if LOSSES[losses[0].name].attacks and needy:
        raise errors.argument(
            "objectives", expected=f"a loss of outputs and labels beside {needy[0]}", got=f"{losses[0].name}, which attacks the model",
            fix=f"ce+{needy[0]}",
        )  # fmt: skip
    if any(name in WHOLE for name in names) and (
        more := [name for name in names if name in TERMS or name in GRADIENTS]
    ):
        raise errors.argument(
            "objectives", expected=f"esam without {more[0]}, since it trains on a part of the rows", got=repr(text)
        )
    return ObjectiveSpec(losses[0], tuple(sorted(others, key=lambda part: list(MODIFIERS).index(part.name))))


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
