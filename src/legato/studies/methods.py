"""The one table of all methods: what each is, its parameters, and how it is made. `studies.objectives` reads the text form.

Reading the table needs no torch; only `build` does.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from legato import errors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from legato.training import GradientMethod, Objective, Term


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
class Training:
    """What the parts that watch or change a training are made for."""

    model: "nn.Module"
    """What is trained."""
    rows: int
    """One more than the largest index of a training row."""
    classes: int
    """Number of classes."""
    batches: int
    """Batches an epoch."""
    held_out: "tuple[Tensor, Tensor] | None" = None
    """(inputs, labels) of the training rows that a selector has asked to be left out of the batches."""


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
    build: "Callable[..., Any] | None" = None
    """For a loss `(context, **parameters)` -> a criterion `(logits, target) -> loss`, or an objective where the loss needs the model;
    for a term or a gradient method `(context, training, **parameters)`, and for a whole objective the criterion after these two;
    None for what the trial itself does."""
    main: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    attacks: bool = False
    """Whether the loss needs the model, since it attacks it."""


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


def _select(
    criteria: "Mapping[str, nn.Module]", context: Context, every: float, rows: float, memory: float, boldness: float
) -> "Objective":
    from legato.online.selected_loss import SelectedLoss
    from legato.online.selector import Selector

    selector = Selector(list(criteria), memory=memory or None, boldness=max(boldness, BLIND), seed=context.seed)
    return SelectedLoss(criteria, selector=selector, every=int(every))


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


def _start(context: Context, start: float) -> int:
    """Epochs before a term begins: `start`, but never more than 0.3 of the training."""
    return int(min(start, 0.3 * context.epochs))


def _saf(
    context: Context, training: Training, lam: float, tau: float, lag: float, start: float, warmup: float
) -> "Term":
    from legato.flatness import SAF

    begin = _start(context, start)
    return SAF(training.rows, training.classes, lam=lam, tau=tau, lag=int(lag), start=begin, warmup=int(warmup))


def _mesa(context: Context, training: Training, lam: float, tau: float, horizon: float, start: float) -> "Term":
    from legato.flatness import MESA

    mesa = MESA(
        training.model, lam=lam, tau=tau, horizon_epochs=horizon, start=_start(context, start), steps_per_epoch=training.batches
    )  # fmt: skip
    mesa.plan(context.epochs)
    return mesa


def _ensembling(context: Context, training: Training, lam: float, tau: float, momentum: float, start: float) -> "Term":
    from legato.flatness import TemporalEnsembling

    begin = _start(context, start)
    return TemporalEnsembling(training.rows, training.classes, lam=lam, tau=tau, momentum=momentum, start=begin)


def _z_loss(context: Context, training: Training, coefficient: float) -> "Term":
    from legato.stability.z_loss import ZLoss

    return ZLoss(coefficient)


def _seam(name: str) -> "Callable[..., GradientMethod]":
    def build(context: Context, training: Training, **values: float) -> "GradientMethod":
        from legato import flatness

        made: GradientMethod = getattr(flatness, name)(training.model, **values)
        return made

    return build


STEPS = Parameter(7, low=1)
BLIND = 1e-9
"""A boldness that moves no probability away from the uniform one by more than rounding."""


def _esam(
    context: Context, training: Training, criterion: Any, radius: float, weights: float, rows: float
) -> "Objective":
    from legato.flatness import ESAM

    criterion.reduction = "none"
    return ESAM(criterion, training.model, radius, weight_share=weights, data_share=rows, seed=context.seed)


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
        _pgd_at, "", {"tau": Parameter(1.0), "steps": STEPS}, attacks=True,
    ),
    "trades": Method(
        "cross-entropy and beta times the divergence under attack (needs --attack-radius)",
        "legato.losses.Trades(beta={beta}, radius={radius}, bounds=(0.0, 1.0), steps={steps})",
        _trades, "beta", {"beta": Parameter(6.0), "steps": STEPS}, attacks=True,
    ),
    "mart": Method(
        "boosted cross-entropy of attacked inputs, and beta times a weighted divergence (needs --attack-radius)",
        "legato.losses.Mart(beta={beta}, radius={radius}, bounds=(0.0, 1.0), steps={steps})",
        _mart, "beta", {"beta": Parameter(5.0), "steps": STEPS}, attacks=True,
    ),
    "smooth-adversarial": Method(
        "comp-sum loss and nu times the shift of margins under attack; ramp = share of the epochs (needs --attack-radius)",
        "legato.losses.SmoothAdversarialLoss(tau={tau}, nu={nu}, radius={radius}, bounds=(0.0, 1.0), steps={steps})",
        _smooth_adversarial, "nu",
        {"tau": Parameter(1.0), "nu": Parameter(0.5), "ramp": Parameter(0.5, high=1.0), "steps": STEPS},
        attacks=True,
    ),
}  # fmt: skip
SELECTORS: Mapping[str, Method] = {
    "select": Method(
        "one of several losses, chosen anew every few steps by what has lowered the error on held-out training rows: "
        "select:ce/comp-sum:1.7/memory=30 (memory in choices, 0 never forgets; boldness 0 chooses blindly)",
        "legato.online.SelectedLoss({{{members}}}, selector=legato.online.Selector([{names}], memory={memory} or None, boldness={boldness}), "
        "every={every})  # an objective for legato.fit, once its held_out is set",
        _select, "",
        {
            "every": Parameter(5, low=1), "rows": Parameter(200, low=1), "memory": Parameter(300), "boldness": Parameter(1.0),
        },
    ),
}  # fmt: skip
"""What changes among losses; its members are named between slashes."""
TERMS: Mapping[str, Method] = {
    "saf": Method(
        "and the divergence of each row's outputs from those of some epochs ago (start: at most 0.3 of the epochs)",
        "legato.flatness.SAF(num_samples, num_classes, lam={lam}, tau={tau}, lag={lag})  # loss = criterion(out, y) + saf(out, index)",
        _saf, "lam",
        {"lam": Parameter(0.3), "tau": Parameter(5.0, low=1e-3), "lag": Parameter(3, low=1), "start": Parameter(5), "warmup": Parameter(0)},
    ),
    "mesa": Method(
        "and the divergence of the outputs from those of an average of the weights (horizon in epochs; start: at most 0.3 of them)",
        "legato.flatness.MESA(model, lam={lam}, tau={tau}, horizon_epochs={horizon})  # loss = criterion(out, y) + mesa(out, x)",
        _mesa, "lam",
        {"lam": Parameter(0.8), "tau": Parameter(5.0, low=1e-3), "horizon": Parameter(3.0, low=1e-3), "start": Parameter(5)},
    ),
    "temporal-ensembling": Method(
        "and the divergence of each row's outputs from an average of its earlier ones (start: at most 0.3 of the epochs)",
        "legato.flatness.TemporalEnsembling(num_samples, num_classes, lam={lam}, tau={tau}, momentum={momentum})"
        "  # loss = criterion(out, y) + ensembling(out, index)",
        _ensembling, "lam",
        {"lam": Parameter(1.0), "tau": Parameter(5.0, low=1e-3), "momentum": Parameter(0.6, high=1.0), "start": Parameter(5)},
    ),
    "z-loss": Method(
        "and coefficient times the mean square of log Z, the log-normaliser of the logits",
        "legato.stability.ZLoss({coefficient})  # loss = criterion(out, y) + z_loss(out, y)",
        _z_loss, "coefficient", {"coefficient": Parameter(1e-4)},
    ),
}  # fmt: skip
"""What is added to the loss of a batch."""
GRADIENTS: Mapping[str, Method] = {
    "sam": Method(
        "gradients at the worst point of a ball around the weights: two passes a step",
        "legato.flatness.SAM(model, radius={radius})  # loss = sam.gradients(closure); optimizer.step()",
        _seam("SAM"), "radius", {"radius": Parameter(0.05)},
    ),
    "asam": Method(
        "sam in a ball that scales with each weight",
        "legato.flatness.ASAM(model, radius={radius})  # loss = asam.gradients(closure); optimizer.step()",
        _seam("ASAM"), "radius", {"radius": Parameter(2.0)},
    ),
    "looksam": Method(
        "sam at every fifth step, and what it changed reused between",
        "legato.flatness.LookSAM(model, radius={radius}, every={every})  # loss = looksam.gradients(closure); optimizer.step()",
        _seam("LookSAM"), "radius", {"radius": Parameter(0.05), "every": Parameter(5, low=1)},
    ),
    "msam": Method(
        "gradients at weights moved along their momentum: one pass a step",
        "legato.flatness.MSAM(model, radius={radius})  # loss = msam.gradients(closure); optimizer.step()",
        _seam("MSAM"), "radius", {"radius": Parameter(0.3)},
    ),
}  # fmt: skip
"""Other ways to the gradients of a step."""
WHOLE: Mapping[str, Method] = {
    "esam": Method(
        "sam for a random share of the weights and the rows whose loss rises most",
        'legato.flatness.ESAM(criterion, model, radius={radius})  # an objective for legato.fit; criterion with reduction="none"',
        _esam, "radius", {"radius": Parameter(0.05), "weights": Parameter(0.6, low=1e-3), "rows": Parameter(0.5, low=1e-3)},
    ),
}  # fmt: skip
"""Objectives made of a criterion that gives a loss a row."""
TRIALS: Mapping[str, Method] = {
    "ema": Method(
        "the evaluated weights are an exponential moving average of the trained ones",
        "legato.fit(..., ema_decay={decay})",
        main="decay",
        parameters={"decay": Parameter(0.99, high=1.0)},
    ),
    "early-stopping": Method(
        "the evaluated weights are those of the epoch with the smallest validation error",
        "legato.fit(...).best.weights",
    ),
    "weight-decay": Method(
        "another weight decay of the optimizer",
        "torch.optim.SGD(..., weight_decay={amount})",
        main="amount",
        parameters={"amount": Parameter(5e-4)},
    ),
}
"""What a trial does around the training."""
MODIFIERS: Mapping[str, Method] = {**TERMS, **GRADIENTS, **WHOLE, **TRIALS}
METHODS: Mapping[str, Method] = {**LOSSES, **SELECTORS, **MODIFIERS}
