"""The text form in which a user names an objective.

    ce    comp-sum:1.7    comp-sum:tau=1.7,warmup=0.3    label-smoothing:0.1    focal:2    ce+saf:1    ce+sam:0.1+ema:0.99

`+` joins parts, `:key=value,key=value` sets them, one bare value is the main parameter. One part is the loss; the others change how it is
trained. `select:ce/comp-sum:1.7/memory=30` is a loss that changes among its members; between the slashes stand losses and, as
key=value, its own parameters. `str(parse(text))` is canonical: it is what results are filed under. Reading and printing need no torch; only `build` does.
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
    SELECTORS,
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
    members: "tuple[Part, ...]" = ()
    """The losses that a selector chooses from."""

    def __str__(self) -> str:
        method = METHODS[self.name]
        told = [f"{k}={_number(v)}" for k, v in self.values if k == method.main or v != method.parameters[k].default]
        if self.members:
            return f"{self.name}:{'/'.join([*map(str, self.members), *told])}"
        return f"{self.name}:{','.join(told)}" if told else self.name

    def python(self, context: Context) -> str:
        """The expression that makes the criterion."""
        values = {"radius": str(context.attack_radius)} | {key: _number(value) for key, value in self.values}
        values["members"] = ", ".join(f'"{member}": {member.python(context)}' for member in self.members)
        values["names"] = ", ".join(f'"{member}"' for member in self.members)
        return METHODS[self.name].python.format(**values)

    def build(self, context: Context) -> Any:
        """The criterion, or the objective where the loss needs the model."""
        method, values = METHODS[self.name], dict(self.values)
        assert method.build is not None  # every loss has one; only modifiers have none
        if self.members:
            return method.build({str(member): member.build(context) for member in self.members}, context, **values)
        return method.build(context, **values)


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
        return self.loss.python(context)

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
    def held_out(self) -> int:
        """Training rows that are left out of the batches, for a selector to look at."""
        return int(dict(self.loss.values)["rows"]) if self.loss.members else 0

    @property
    def calibrating_temperature(self) -> float:
        """The temperature that theory gives: 1 / (2 - tau) after training with a comp-sum loss of tau < 2, else 1."""
        values = dict(self.loss.values)
        tau = {"comp-sum": values.get("tau", 1.0), "gce": 1 + values.get("q", 0.0), "sum-exponential": 0.0}
        tau_of_loss = tau.get(self.loss.name, 1.0)
        return 1 / (2 - tau_of_loss) if tau_of_loss < 2 else 1.0

    def build(self, context: Context) -> "nn.Module | Objective":
        """The criterion `(logits, target) -> loss`; for losses that need the model, the objective `(model, inputs, target) -> loss`."""
        built: nn.Module | Objective = self.loss.build(context)
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
        if self.held_out:
            plain.held_out = training.held_out  # type: ignore[attr-defined]
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
    losses = [part for part in parts if part.name not in MODIFIERS]
    if len(losses) != 1:
        raise errors.argument(
            "objectives", expected="one loss in each objective", got=f"{len(losses)} in {text!r}",
            fix=f"losses are {', '.join([*LOSSES, *SELECTORS])}; separate objectives by spaces",
        )  # fmt: skip
    others = tuple(part for part in parts if part.name in MODIFIERS)
    names = [part.name for part in others]
    if len(set(names)) < len(names):
        raise errors.argument("objectives", expected="each part once", got=repr(text), fix="leave one of the two out")
    needy = [name for name in names if name in TERMS or name in WHOLE]
    if needy and (METHODS[losses[0].name].attacks or losses[0].members):
        why = "which looks at the model itself" if losses[0].members else "which attacks the model"
        raise errors.argument(
            "objectives", expected=f"a loss of outputs and labels beside {needy[0]}", got=f"{losses[0].name}, {why}", fix=f"ce+{needy[0]}"
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
    if name in SELECTORS:
        pieces = [piece.strip() for piece in settings.split("/")]
        own = [piece for piece in pieces if "=" in piece.partition(":")[0]]
        members = _members([piece for piece in pieces if piece not in own], whole)
        return Part(name, _values(name, own, whole), members)
    return Part(name, _values(name, settings.split(","), whole))


def _members(pieces: list[str], whole: str) -> tuple[Part, ...]:
    """The losses that a selector chooses from: two or more, different, and none that attacks the model."""
    members = tuple(_part(piece, whole) for piece in pieces if piece)
    for member in members:
        if member.name not in LOSSES or LOSSES[member.name].attacks:
            raise errors.argument(
                f"objectives ({whole!r})", expected="losses of outputs and labels between the slashes", got=str(member), fix="select:ce/comp-sum:1.7"
            )  # fmt: skip
    if len(set(members)) < max(2, len(members)):
        raise errors.argument(
            f"objectives ({whole!r})", expected="two or more different losses between the slashes", got=[str(m) for m in members],
            fix="select:ce/comp-sum:1.7",
        )  # fmt: skip
    return members


def _values(name: str, settings: list[str], whole: str) -> tuple[tuple[str, float], ...]:
    """All parameters of a method, those that are set and those that are not."""
    method = METHODS[name]
    values = {key: parameter.default for key, parameter in method.parameters.items()}
    for setting in filter(None, settings):
        key, equals, value = setting.partition("=")
        if not equals:
            key, value = method.main, setting
        if not method.parameters:
            raise errors.argument(
                f"objectives ({whole!r})", expected=f"{name} alone, it has no parameter", got=setting, fix=f"write {name}"
            )  # fmt: skip
        if key not in method.parameters:
            raise errors.choice(f"objectives ({whole!r}), parameter of {name}", key, method.parameters)
        values[key] = _value(f"{name}:{key}", value, method.parameters[key])
    return tuple(values.items())


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
