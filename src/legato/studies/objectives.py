"""The one table of all objectives, and the text form in which a user names them.

    ce    comp-sum:1.7    comp-sum:tau=1.7,warmup=0.3    label-smoothing:0.1    focal:2    ce+ema:0.99

`+` joins parts, `:key=value,key=value` sets them, one bare value is the main parameter. One part is the loss; the others change how it is
trained. `str(parse(text))` is canonical: it is what results are filed under. Reading and printing need no torch; only `build` does.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from legato import errors

if TYPE_CHECKING:
    from torch import nn

    from legato.training import Objective


@dataclass(frozen=True)
class Context:
    """What an objective may ask about the training that it is built for."""

    epochs: int
    """Length of the training, for schedules."""
    seed: int = 0
    """For objectives that draw random numbers of their own."""
    attack_radius: float | None = None
    """Largest l-infinity change of an input, in units of pixels in 0 .. 1; None where nobody attacks."""


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
    build: "Callable[..., nn.Module | Objective] | None" = None
    """`(context, **parameters)` -> a criterion `(logits, target) -> loss`, or an objective where the loss needs the model."""
    main: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


def _cross_entropy(context: Context, amount: float = 0.0) -> "nn.Module":
    from torch import nn

    return nn.CrossEntropyLoss(label_smoothing=amount)


def _comp_sum(context: Context, tau: float, warmup: float = 0.0) -> "nn.Module":
    from legato.losses import CompSumLoss, Warmup

    return CompSumLoss(Warmup(end=tau, epochs=math.ceil(warmup * context.epochs)) if warmup else tau)


def _focal(context: Context, gamma: float) -> "nn.Module":
    from legato.losses import FocalLoss

    return FocalLoss(gamma=gamma)


def _margin(phi: str) -> "Callable[[Context], nn.Module]":
    def build(context: Context) -> "nn.Module":
        from legato.losses import MarginLoss

        return MarginLoss(phi)

    return build


def _ensloss(context: Context, tail_power: float, random: float) -> "nn.Module":
    from legato.losses import EnsLoss

    return EnsLoss(tail_power=tail_power, random=bool(random), seed=context.seed)


def _attack(context: Context, steps: float) -> dict[str, Any]:
    """What all adversarial objectives are told of the attack.

    Raises: LegatoValueError where the training has no radius.
    """
    if context.attack_radius is None:
        raise errors.argument(
            "objectives", expected="the largest change that an attacker may make, for adversarial objectives", got="none",
            fix="--attack-radius 0.1 for pixels of 0 .. 1",
        )  # fmt: skip
    return {"radius": context.attack_radius, "bounds": (0.0, 1.0), "steps": int(steps), "seed": context.seed}


def _pgd_at(context: Context, tau: float, steps: float) -> "Objective":
    from legato import losses

    return losses.PGDAdversarial(outer=losses.CompSumLoss(tau, reduction="none"), **_attack(context, steps))


def _trades(context: Context, beta: float, steps: float) -> "Objective":
    from legato.losses import Trades

    return Trades(beta=beta, **_attack(context, steps))


def _mart(context: Context, beta: float, steps: float) -> "Objective":
    from legato.losses import Mart

    return Mart(beta=beta, **_attack(context, steps))


def _smooth_adversarial(context: Context, tau: float, nu: float, ramp: float, steps: float) -> "Objective":
    from legato.losses import SmoothAdversarialLoss

    return SmoothAdversarialLoss(tau=tau, nu=nu, ramp=math.ceil(ramp * context.epochs), **_attack(context, steps))


STEPS = Parameter(7, low=1)
LOSSES: Mapping[str, Method] = {
    "ce": Method("cross-entropy", "torch.nn.CrossEntropyLoss()", _cross_entropy),
    "label-smoothing": Method(
        "cross-entropy against softened targets",
        "torch.nn.CrossEntropyLoss(label_smoothing={amount})",
        _cross_entropy,
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
        lambda context, q: _comp_sum(context, tau=1 + q),
        "q",
        {"q": Parameter(0.7)},
    ),
    "mae": Method(
        "mean absolute error of the probabilities (comp-sum with tau = 2)",
        "legato.losses.mae()",
        lambda context: _comp_sum(context, tau=2.0),
    ),
    "sum-exponential": Method(
        "sum-exponential loss (comp-sum with tau = 0)",
        "legato.losses.sum_exponential()",
        lambda context: _comp_sum(context, tau=0.0),
    ),
    "focal": Method(
        "focal loss", "legato.losses.FocalLoss(gamma={gamma})", _focal, "gamma",
        {"gamma": Parameter(2.0)},
    ),
    "hinge": Method("hinge loss of the margin", 'legato.losses.MarginLoss("hinge")', _margin("hinge")),
    "exponential": Method("exponential loss of the margin", 'legato.losses.MarginLoss("exponential")', _margin("exponential")),
    "log-tail": Method(
        "a fixed margin loss with slope -min(1, 1/z): EnsLoss without the randomness", 'legato.losses.MarginLoss("log-tail")',
        _margin("log-tail"),
    ),
    "ensloss": Method(
        "a new random convex loss for every batch; random=0 takes its mean profile",
        "legato.losses.EnsLoss(tail_power={tail_power}, random={random})",
        _ensloss, "", {"tail_power": Parameter(1.0), "random": Parameter(1.0, high=2.0)},
    ),
    "pgd-at": Method(
        "the comp-sum loss of attacked inputs; tau 1 is cross-entropy (needs --attack-radius)",
        'legato.losses.PGDAdversarial(outer=legato.CompSumLoss({tau}, reduction="none"), radius={radius}, bounds=(0.0, 1.0), steps={steps})',
        _pgd_at, "", {"tau": Parameter(1.0), "steps": STEPS},
    ),
    "trades": Method(
        "cross-entropy and beta times the divergence under attack (needs --attack-radius)",
        "legato.losses.Trades(beta={beta}, radius={radius}, bounds=(0.0, 1.0), steps={steps})",
        _trades, "beta", {"beta": Parameter(6.0), "steps": STEPS},
    ),
    "mart": Method(
        "boosted cross-entropy of attacked inputs, and beta times a weighted divergence (needs --attack-radius)",
        "legato.losses.Mart(beta={beta}, radius={radius}, bounds=(0.0, 1.0), steps={steps})",
        _mart, "beta", {"beta": Parameter(5.0), "steps": STEPS},
    ),
    "smooth-adversarial": Method(
        "comp-sum loss and nu times the shift of margins under attack; ramp = share of the epochs (needs --attack-radius)",
        "legato.losses.SmoothAdversarialLoss(tau={tau}, nu={nu}, radius={radius}, bounds=(0.0, 1.0), steps={steps})",
        _smooth_adversarial, "nu",
        {"tau": Parameter(1.0), "nu": Parameter(0.5), "ramp": Parameter(0.5, high=1.0), "steps": STEPS},
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

    def python(self, context: Context) -> str:
        """The expression that makes the criterion."""
        values = {key: _number(value) for key, value in self.loss.values}
        return LOSSES[self.loss.name].python.format(**values, radius=context.attack_radius)

    @property
    def ema_decay(self) -> float | None:
        """The decay of the weight average, if the objective has one."""
        return next((dict(part.values)["decay"] for part in self.modifiers if part.name == "ema"), None)

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
        return method.build(context, **dict(self.loss.values))

    def objective(self, context: Context) -> "Objective":
        """What `legato.fit` minimises."""
        from torch import nn

        from legato.training import Criterion

        built = self.build(context)
        return Criterion(built) if isinstance(built, nn.Module) else built


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
