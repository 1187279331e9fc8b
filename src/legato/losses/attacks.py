"""Projected gradient ascent: a bad input for the model in a ball around each clean one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from legato import errors
from legato.losses.arguments import check_logits, is_number
from legato.losses.attack_losses import AGAINST_CLEAN, ON_SCORES, AttackLoss
from legato.losses.ball import STARTS, Ball, Bound, check_broadcast
from legato.losses.rows import widened

MODES = ("eval", "train")
Model = Callable[[Tensor], Tensor]
"""inputs [B, ...] -> scores [B, C]; usually a Module."""


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    bounds: tuple[Bound, Bound],
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    loss: str | AttackLoss = "cross-entropy",
    start: str = "uniform",
    best_step: bool = False,
    attack_mode: str = "eval",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Attacked inputs x': `steps` times x' = P(x' + a(gradient of loss at x')), with P the projection onto ball and bounds.

    a(g) = step_size * sign(g) for l-inf and step_size * g/||g||_2 for l2. Gradients are taken for the inputs only: `.grad` of the
    parameters is not touched, nor are running statistics of batch normalisation, and every layer returns to the mode it was in.
    It works inside torch.no_grad and torch.inference_mode. A DistributedDataParallel model is attacked without its wrapper, so
    that processes do not wait for each other.

    Args:
        model: inputs [B, ...] -> scores [B, C].
        x: [B, ...] clean inputs, floating point, finite and within bounds. Shorter types than float32 are attacked in float32.
        y: [B] int64, their classes.
        radius: > 0, in the units of x; l2 is taken over all axes but the first.
        bounds: (low, high) of valid inputs as the model gets them, numbers or tensors that broadcast to x: (0.0, 1.0) for
            pictures in [0, 1]. There is no default, since the wrong one would pass in silence.
        norm: "linf" or "l2".
        steps: >= 1.
        step_size: > 0, in the units of x; None is radius/4.
        restarts: >= 1 random starts; of more than one, each row keeps the one with the largest loss, for one forward pass more each.
        loss: what is climbed. "cross-entropy", "margin", "dlr"; "kl" and "margin-shift", which compare with the scores of x, computed
            once; or a function (scores [B, C], y) -> [B].
        start: "uniform" in the ball, or "gaussian" around x with standard deviation 0.001, as TRADES begins.
        best_step: keep the best of all steps and not the last, for one forward pass more.
        attack_mode: "eval" attacks the model as it is evaluated; "train" leaves each layer in its mode.
        generator: for the start; None takes torch's global random numbers.
    Returns: x' in the shape and type of x, detached.
    Raises: LegatoValueError for a number out of range, shapes that do not fit, and on the CPU values out of range or not finite (on
        other devices values are not read); LegatoTypeError for inputs that are not floating point.
    Source: Madry et al. 2018, arXiv 1706.06083.
    """
    attack = Attack(radius, bounds, norm, steps, step_size, restarts, start, best_step, attack_mode)
    attack.check(x, y)
    return attack.find(model, x, y, loss, generator)


@final
@dataclass(frozen=True, eq=False)
class Attack:
    """The settings of `pgd`, under the same names, checked once."""

    radius: float
    bounds: tuple[Bound, Bound]
    norm: str = "linf"
    steps: int = 10
    step_size: float | None = None
    restarts: int = 1
    start: str = "uniform"
    best_step: bool = False
    attack_mode: str = "eval"

    def __post_init__(self) -> None:
        _ = self.ball  # checks its part
        for name, count in (("steps", self.steps), ("restarts", self.restarts)):
            if not (isinstance(count, int) and count >= 1):
                raise errors.argument(name, expected="a whole number >= 1", got=count)
        if self.step_size is not None and not (is_number(self.step_size) and self.step_size > 0):
            raise errors.argument(
                "step_size", expected="a plain finite number > 0", got=self.step_size, fix="None is radius/4"
            )
        if self.start not in STARTS:
            raise errors.choice("start", str(self.start), STARTS)
        if self.attack_mode not in MODES:
            raise errors.choice("attack_mode", str(self.attack_mode), MODES)

    @cached_property
    def ball(self) -> Ball:
        """Where the attacked inputs may lie."""
        return Ball(self.radius, self.bounds, self.norm)

    def check(self, x: Tensor, y: Tensor, *, values: bool = False) -> None:
        """Types and shapes; on the CPU, or with `values`, also that the inputs are finite and within bounds.

        Raises: LegatoValueError or LegatoTypeError.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            fix = "for pictures, x.float() / 255; for tokens, their embeddings"
            raise errors.argument_type("inputs", expected="a floating point tensor", got=kind, fix=fix)
        if x.dim() == 0 or y.shape != x.shape[:1]:
            got = f"inputs {list(x.shape)} and classes {list(y.shape)}"
            raise errors.argument("inputs", expected="one class for each row of the inputs", got=got)
        check_broadcast(self.bounds, x)
        if values or x.device.type == "cpu":
            self.ball.check(widened(x.detach()))

    def find(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        loss: str | AttackLoss,
        generator: torch.Generator | None = None,
        clean: Tensor | None = None,
    ) -> Tensor:
        """Attacked inputs x'; see `pgd`.

        Args:
            clean: scores [B, C] of x in the attack's mode, if they are known; a loss that needs them computes them otherwise.
        """
        network = unwrapped(model)
        with torch.inference_mode(False), torch.enable_grad(), held_still(network, self.attack_mode):
            x, y = _usable(x), _usable(y)
            climbed = _resolved(loss, network, x, None if clean is None else _usable(clean))
            return self._climb(lambda point: per_row(climbed, scores(network, point.to(x.dtype)), y), x, generator)

    def _climb(self, height: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The highest point found, by `height` [B], in the type of x; the last step of one start is taken without a look."""
        ball, origin = self.ball, widened(x)
        size = self.radius / 4 if self.step_size is None else self.step_size
        best = _Best()
        for _ in range(self.restarts):
            point = ball.start(origin, self.start, generator)
            for _ in range(self.steps):
                point.requires_grad_()
                heights = height(point)
                (gradient,) = torch.autograd.grad(heights.sum(), point)
                point = point.detach()
                if self.best_step:
                    best.offer(point, heights.detach())
                point = ball.project(origin, point + ball.step(gradient, size))
            if self.restarts == 1 and not self.best_step:
                return point.to(x.dtype)
            with torch.no_grad():
                best.offer(point, height(point))
        return best.points.to(x.dtype)

    def keeps_the_mode_of(self, model: Model) -> bool:
        """Whether scores that training computes are also those that the attack would compute."""
        return self.attack_mode == "train" or not any(module.training for module in _modules(model))


@final
class _Best:
    """The best point of each row so far."""

    points: Tensor
    heights: Tensor | None = None

    def offer(self, points: Tensor, heights: Tensor) -> None:
        """Take over the rows of points [B, ...] whose heights [B] are larger."""
        if self.heights is None:
            self.points, self.heights = points, heights
            return
        better = heights > self.heights
        self.heights = heights.where(better, self.heights)
        self.points = points.where(better.reshape(-1, *[1] * (points.dim() - 1)), self.points)


def clean_and_attacked(
    model: Model, x: Tensor, y: Tensor, attack: Attack, loss: str | AttackLoss, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Scores [B, C] of x and of its attacked x', both with a graph.

    They come from two forward passes, as in the official codes: one over both halves would mix their batch statistics, and takes
    longer on a CPU. Where the attack does not change the model's mode, the clean pass also serves the attack.
    """
    early = scores(model, x) if attack.keeps_the_mode_of(model) else None
    worst = attack.find(model, x, y, loss, generator, None if early is None else early.detach())
    return scores(model, x) if early is None else early, scores(model, worst)


def unwrapped(model: Model) -> Model:
    """The model without DistributedDataParallel, whose forward pass would make all processes wait for each other."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def scores(model: Model, x: Tensor) -> Tensor:
    """model(x) [B, C], in float32 or float64.

    Raises: LegatoValueError or LegatoTypeError for an output that is not a floating point table of one row for each input.
    """
    output = model(x)
    check_logits(output)
    if output.dim() != 2 or len(output) != len(x):
        expected = f"scores of shape [{len(x)}, C]"
        raise errors.argument("model", expected=expected, got=f"shape {list(output.shape)}")
    return widened(output)


@contextmanager
def held_still(model: Model, mode: str) -> Iterator[None]:
    """The model in the attack's mode; batch normalisation learns nothing from it, and every layer comes back to what it was."""
    layers = [module for module in _modules(model) if module.training]
    name = "training"
    if mode == "train":  # without its statistics to keep, batch normalisation goes on with those of the batch
        name = "track_running_stats"
        layers = [layer for layer in layers if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    for layer in layers:
        setattr(layer, name, False)
    try:
        yield
    finally:
        for layer in layers:
            setattr(layer, name, True)


def _usable(value: Tensor) -> Tensor:
    """Detached; autograd cannot keep a tensor that was made in inference mode, so that one is copied."""
    return value.detach().clone() if value.is_inference() else value.detach()


def _modules(model: Model) -> Iterator[nn.Module]:
    return model.modules() if isinstance(model, nn.Module) else iter(())


def _resolved(loss: str | AttackLoss, model: Model, x: Tensor, clean: Tensor | None) -> AttackLoss:
    """The attack loss that `loss` names, as a function of scores and classes alone."""
    if callable(loss):
        return loss
    if loss in ON_SCORES:
        return ON_SCORES[loss]
    if loss not in AGAINST_CLEAN:
        raise errors.choice("loss", str(loss), [*ON_SCORES, *AGAINST_CLEAN])
    if clean is None:
        with torch.no_grad():
            clean = scores(model, x)
    against, reference = AGAINST_CLEAN[loss], clean
    return lambda attacked, y: against(attacked, y, reference)


def per_row(loss: AttackLoss, attacked: Tensor, y: Tensor, *, name: str = "loss") -> Tensor:
    """loss(attacked, y), [B].

    Raises: LegatoValueError for any other shape; `name` is the argument that the loss came from.
    """
    values = loss(attacked, y)
    if values.shape != y.shape:
        expected, fix = f"one value a row, shape {list(y.shape)}", 'use reduction="none"'
        raise errors.argument(name, expected=expected, got=f"shape {list(values.shape)}", fix=fix)
    return values
