"""The smooth adversarial comp-sum loss: a comp-sum loss on clean inputs, and how far the margins move under attack."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.losses.adversary import Adversary, Diagnostics, Outcome
from legato.losses.arguments import check_reduction, is_number
from legato.losses.attack_losses import squared_margin_shift
from legato.losses.attacks import Attack, Model, clean_and_attacked, scores
from legato.losses.ball import Bound
from legato.losses.comp_sum import check_parameters, comp_sum_loss
from legato.losses.criterion import Warmup
from legato.losses.rows import reduce, widened

FLOOR = 1e-12
"""Added under the root of the norm, whose slope at 0 is infinite; a margin shift of 0 so counts 1e-6."""


def smooth_adversarial_loss(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    bounds: tuple[Bound, Bound],
    tau: float = 1.0,
    temperature: float = 1.0,
    nu: float = 0.5,
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    attack_mode: str = "eval",
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Smooth adversarial comp-sum loss: comp_sum(h(x), y) + nu * max over x' of ||Delta(x') - Delta(x)||_2.

    comp_sum is `comp_sum_loss(tau, temperature)`, Phi_tau(sum over j != y of exp(-(h_y - h_j)/temperature)), on the clean
    inputs; Delta in R^(C-1) holds the margins h_y - h_j, j != y. x' comes from `pgd` on the squared norm, from a uniform start, for
    at x' = x the norm has no slope. Both terms send gradients through the scores of the clean inputs, the second also through those
    of x'. Of temperature and nu only nu * temperature matters to a network whose last layer is free: multiplying the scores by
    the temperature gives the loss at temperature 1 and nu * temperature.

    Args:
        model, x, y, radius, bounds, norm, steps, step_size, attack_mode, generator: as in `pgd`.
        tau, temperature: as in `comp_sum_loss`.
        nu: >= 0, the weight of the second term. With 0 no attack is made. The bound on the robust error asks for sqrt(C-1)/temperature,
            with which training fails in practice; see docs/methods/adversarial.md.
        reduction: "none" -> [B], "mean" or "sum" -> []. An empty batch has the mean 0.
    Returns: loss >= 0, float32 or float64.
    Raises: as `pgd` and `comp_sum_loss`; LegatoValueError for a nu that is not a number >= 0.
    Source: Mao, Mohri, Zhong 2023, arXiv 2304.07288.
    """
    _check(tau, temperature, nu)
    check_reduction(reduction)
    attack = Attack(radius, bounds, norm, steps, step_size, attack_mode=attack_mode)
    attack.check(x, y)
    return _outcome(model, x, y, attack, tau, temperature, nu, generator).reduced(reduction)


def smooth_adversarial_from_scores(
    clean: Tensor,
    attacked: Tensor,
    y: Tensor,
    *,
    tau: float = 1.0,
    temperature: float = 1.0,
    nu: float = 0.5,
    reduction: str = "mean",
) -> Tensor:
    """The formula of `smooth_adversarial_loss` for given scores: comp_sum(clean, y) + nu * sqrt(||shift of margins||^2 + 1e-12).

    Args:
        clean, attacked: [B, C] scores of the clean and of the attacked inputs.
        y: [B] int64, classes.
        tau, temperature, nu, reduction: as in `smooth_adversarial_loss`.
    """
    _check(tau, temperature, nu)
    losses = comp_sum_loss(clean, y, tau, temperature=temperature, reduction="none") + nu * _shift(clean, attacked, y)
    return reduce(losses, torch.ones_like(losses), reduction)


@final
class SmoothAdversarialLoss:
    """`smooth_adversarial_loss` as a training objective, also callable: `objective(model, x, y) -> mean loss`.

    It has the methods that `legato.fit` calls, draws the attacks' starts from a generator of its own, which `state_dict` keeps, and
    reads the values of the first batch. After each call `last` has the mean margin shift and the share of attacked rows
    that are misclassified, or None where nu is 0 and no attack was made.

    Args:
        radius, bounds, norm, steps, step_size, attack_mode: the attack, as in `pgd`.
        tau, temperature, nu: the loss, as in `smooth_adversarial_loss`.
        ramp: the weight grows linearly from 0 in epoch 0 to nu in this epoch; 0 for none. Half of the training is a good value: before
            anything is learnt a large nu makes the constant classifier the best one. With a ramp, call `begin_epoch` in your own loop.
        seed: of the random starts.
    Raises: LegatoValueError for a number out of range.
    """

    def __init__(
        self,
        *,
        radius: float,
        bounds: tuple[Bound, Bound],
        tau: float = 1.0,
        temperature: float = 1.0,
        nu: float = 0.5,
        ramp: int = 0,
        norm: str = "linf",
        steps: int = 10,
        step_size: float | None = None,
        attack_mode: str = "eval",
        seed: int = 0,
    ) -> None:
        _check(tau, temperature, nu)
        if not (isinstance(ramp, int) and ramp >= 0):
            raise errors.argument("ramp", expected="a whole number of epochs >= 0", got=ramp)
        self.tau, self.temperature = tau, temperature
        self.schedule = Warmup(end=nu, epochs=ramp, start=0.0)
        self.adversary = Adversary(Attack(radius, bounds, norm, steps, step_size, attack_mode=attack_mode), seed)
        self.epoch: int | None = None

    @property
    def nu(self) -> float:
        """The weight in this epoch."""
        if self.epoch is None:
            if self.schedule.epochs:
                fix = "call begin_epoch(epoch) before each epoch, counted from 0; legato.fit does"
                raise errors.argument(
                    "ramp", expected="to be told the epoch", got="a loss before any begin_epoch", fix=fix
                )
            return self.schedule.end
        return self.schedule(self.epoch)

    @property
    def last(self) -> Diagnostics | None:
        """Of the last batch."""
        return self.adversary.last

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch; see `smooth_adversarial_loss`."""
        nu, generator = self.nu, self.adversary.ready(model, x, y)
        outcome = _outcome(model, x, y, self.adversary.attack, self.tau, self.temperature, nu, generator)
        return self.adversary.report(outcome)

    def begin_epoch(self, epoch: int) -> None:
        """Tell the ramp which epoch, from 0, is about to begin."""
        self.epoch = epoch

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], step: int) -> Tensor:
        """The mean loss of a batch (inputs, classes, index)."""
        return self(model, batch[0], batch[1])

    def after_step(self, model: nn.Module) -> None:
        """Nothing to do."""

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """The gradients of the loss itself."""
        return closure()

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the random numbers."""
        return {"epoch": self.epoch, "adversary": self.adversary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.epoch = state["epoch"]
        self.adversary.load_state_dict(state["adversary"])


def _check(tau: float, temperature: float, nu: float) -> None:
    check_parameters(tau, temperature, 0.0, "mean")
    if not (is_number(nu) and nu >= 0):
        raise errors.argument("nu", expected="a plain finite number >= 0", got=nu, fix="nu=0.5")


def _shift(clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
    return (squared_margin_shift(widened(attacked), y, widened(clean)) + FLOOR).sqrt()


def _outcome(
    model: Model, x: Tensor, y: Tensor, attack: Attack, tau: float, temperature: float, nu: float,
    generator: torch.Generator | None,
) -> Outcome:  # fmt: skip
    if nu == 0:
        return Outcome(comp_sum_loss(scores(model, x), y, tau, temperature=temperature, reduction="none"))
    clean, attacked = clean_and_attacked(model, x, y, attack, "margin-shift", generator)
    shift = _shift(clean, attacked, y)
    losses = comp_sum_loss(clean, y, tau, temperature=temperature, reduction="none") + nu * shift
    return Outcome(losses, shift.detach(), attacked.argmax(1) != y)
