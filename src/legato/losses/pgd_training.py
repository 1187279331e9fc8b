"""Adversarial training as Madry et al. do it: any loss, on attacked inputs alone."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from legato.losses.adversary import Adversary, Diagnostics, Outcome
from legato.losses.arguments import check_reduction
from legato.losses.attack_losses import AttackLoss, cross_entropy
from legato.losses.attacks import Attack, Model, per_row, scores
from legato.losses.ball import Bound


def pgd_adversarial_loss(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    bounds: tuple[Bound, Bound],
    outer: AttackLoss = cross_entropy,
    inner: str | AttackLoss = "cross-entropy",
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    attack_mode: str = "eval",
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""PGD adversarial training: outer(h(x'), y) at the x' that `pgd` finds for the inner loss, from a uniform start.

    Each loss that grows with cross-entropy row by row, as comp-sum for any tau does, has the same worst inputs as cross-entropy,
    which is the inner loss therefore: `outer=partial(comp_sum_loss, tau=0.5, reduction="none")` needs no other.

    Args:
        model, x, y, radius, bounds, norm, steps, step_size, attack_mode, generator: as in `pgd`.
        outer: what is trained, (scores [B, C], y) -> [B], in the type of the scores.
        inner: what the attack climbs, as `loss` in `pgd`.
        reduction: "none" -> [B], "mean" or "sum" -> []. An empty batch has the mean 0.
    Returns: the outer loss, float32 or float64.
    Raises: as `pgd`; LegatoValueError for an outer loss that is not one value a row.
    Source: Madry et al. 2018, arXiv 1706.06083, equation 2.1.
    """
    check_reduction(reduction)
    attack = Attack(radius, bounds, norm, steps, step_size, attack_mode=attack_mode)
    attack.check(x, y)
    return _outcome(model, x, y, attack, outer, inner, generator).reduced(reduction)


@final
class PGDAdversarial:
    """`pgd_adversarial_loss` as a training objective, also callable: `objective(model, x, y) -> mean loss`.

    It has the methods that `legato.fit` calls, draws the attacks' starts from a generator of its own, which `state_dict` keeps, and
    reads the values of the first batch. After each call `last` has the mean outer loss and the share of attacked rows
    that are misclassified.

    Args:
        radius, bounds, norm, steps, step_size, attack_mode: the attack, as in `pgd`.
        outer, inner: as in `pgd_adversarial_loss`; an outer loss with a schedule, as `CompSumLoss(Warmup(...), reduction="none")`,
            is told each epoch, and its state is kept.
        seed: of the random starts.
    Raises: LegatoValueError for a number out of range.
    """

    def __init__(
        self,
        *,
        radius: float,
        bounds: tuple[Bound, Bound],
        outer: AttackLoss = cross_entropy,
        inner: str | AttackLoss = "cross-entropy",
        norm: str = "linf",
        steps: int = 10,
        step_size: float | None = None,
        attack_mode: str = "eval",
        seed: int = 0,
    ) -> None:
        self.outer, self.inner = outer, inner
        self.adversary = Adversary(Attack(radius, bounds, norm, steps, step_size, attack_mode=attack_mode), seed)

    @property
    def last(self) -> Diagnostics | None:
        """Of the last batch."""
        return self.adversary.last

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch; see `pgd_adversarial_loss`."""
        generator = self.adversary.ready(model, x, y)
        outcome = _outcome(model, x, y, self.adversary.attack, self.outer, self.inner, generator)
        return self.adversary.report(outcome)

    def begin_epoch(self, epoch: int) -> None:
        """Pass the epoch on to an outer loss that wants it."""
        if hasattr(self.outer, "begin_epoch"):
            self.outer.begin_epoch(epoch)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], step: int) -> Tensor:
        """The mean loss of a batch (inputs, classes, index)."""
        return self(model, batch[0], batch[1])

    def after_step(self, model: nn.Module) -> None:
        """Nothing to do."""

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """The gradients of the loss itself."""
        return closure()

    def state_dict(self) -> dict[str, Any]:
        """The random numbers, and the state of an outer loss that has one."""
        outer = self.outer.state_dict() if hasattr(self.outer, "state_dict") else {}
        return {"outer": dict(outer), "adversary": self.adversary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        if hasattr(self.outer, "load_state_dict"):
            self.outer.load_state_dict(state["outer"])
        self.adversary.load_state_dict(state["adversary"])


def _outcome(
    model: Model, x: Tensor, y: Tensor, attack: Attack, outer: AttackLoss, inner: str | AttackLoss,
    generator: torch.Generator | None,
) -> Outcome:  # fmt: skip
    attacked = scores(model, attack.find(model, x, y, inner, generator))
    losses = per_row(outer, attacked, y, name="outer")
    return Outcome(losses, losses.detach(), attacked.argmax(1) != y)
