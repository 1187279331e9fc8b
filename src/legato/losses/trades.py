"""TRADES: cross-entropy on clean inputs, and how far the predicted distribution moves under attack."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.losses.adversary import Adversary, Diagnostics, Outcome
from legato.losses.arguments import check_reduction, is_number
from legato.losses.attack_losses import kl
from legato.losses.attacks import Attack, Model, clean_and_attacked, scores
from legato.losses.ball import Bound
from legato.losses.comp_sum import comp_sum_loss
from legato.losses.rows import reduce, widened


def trades_loss(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    bounds: tuple[Bound, Bound],
    beta: float = 6.0,
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    attack_mode: str = "eval",
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""TRADES: cross_entropy(h(x), y) + beta * max over x' of KL(softmax(h(x)) || softmax(h(x'))).

    x' comes from `pgd` on the divergence, from a start 0.001 * randn around x, since at x itself its slope is 0. The scores of x are
    computed once for the attack and not again in each step. Gradients go through both distributions. A probability of 0 gives 0, not NaN.

    Args:
        model, x, y, radius, bounds, norm, steps, step_size, attack_mode, generator: as in `pgd`.
        beta: >= 0, the weight of the divergence (the paper's 1/lambda). With 0 no attack is made.
        reduction: "none" -> [B], "mean" or "sum" -> []. An empty batch has the mean 0.
    Returns: loss >= 0, float32 or float64, in nats.
    Raises: as `pgd`; LegatoValueError for a beta that is not a number >= 0.
    Source: Zhang et al. 2019, arXiv 1901.08573.
    """
    _check(beta)
    check_reduction(reduction)
    attack = Attack(radius, bounds, norm, steps, step_size, start="gaussian", attack_mode=attack_mode)
    attack.check(x, y)
    return _outcome(model, x, y, attack, beta, generator).reduced(reduction)


def trades_from_scores(
    clean: Tensor, attacked: Tensor, y: Tensor, *, beta: float = 6.0, reduction: str = "mean"
) -> Tensor:
    """The formula of `trades_loss` for given scores: cross_entropy(clean, y) + beta * KL(softmax(clean) || softmax(attacked)).

    Args:
        clean, attacked: [B, C] scores of the clean and of the attacked inputs.
        y: [B] int64, classes.
        beta, reduction: as in `trades_loss`.
    """
    _check(beta)
    losses = comp_sum_loss(clean, y, reduction="none") + beta * kl(widened(clean), widened(attacked))
    return reduce(losses, torch.ones_like(losses), reduction)


@final
class Trades:
    """`trades_loss` as a training objective, also callable: `objective(model, x, y) -> mean loss`.

    It has the methods that `legato.fit` calls, draws the attacks' starts from a generator of its own, which `state_dict` keeps, and
    reads the values of the first batch. After each call `last` has the mean divergence and the share of attacked rows
    that are misclassified, or None where beta is 0 and no attack was made.

    Args:
        radius, bounds, norm, steps, step_size, attack_mode: the attack, as in `pgd`.
        beta: as in `trades_loss`.
        seed: of the random starts.
    Raises: LegatoValueError for a number out of range.
    """

    def __init__(
        self,
        *,
        radius: float,
        bounds: tuple[Bound, Bound],
        beta: float = 6.0,
        norm: str = "linf",
        steps: int = 10,
        step_size: float | None = None,
        attack_mode: str = "eval",
        seed: int = 0,
    ) -> None:
        _check(beta)
        self.beta = beta
        attack = Attack(radius, bounds, norm, steps, step_size, start="gaussian", attack_mode=attack_mode)
        self.adversary = Adversary(attack, seed)

    @property
    def last(self) -> Diagnostics | None:
        """Of the last batch."""
        return self.adversary.last

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch; see `trades_loss`."""
        generator = self.adversary.ready(model, x, y)
        return self.adversary.report(_outcome(model, x, y, self.adversary.attack, self.beta, generator))

    def begin_epoch(self, epoch: int) -> None:
        """Nothing to do."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], step: int) -> Tensor:
        """The mean loss of a batch (inputs, classes, index)."""
        return self(model, batch[0], batch[1])

    def after_step(self, model: nn.Module) -> None:
        """Nothing to do."""

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """The gradients of the loss itself."""
        return closure()

    def state_dict(self) -> dict[str, Any]:
        """The random numbers."""
        return self.adversary.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.adversary.load_state_dict(state)


def _check(beta: float) -> None:
    if not (is_number(beta) and beta >= 0):
        raise errors.argument("beta", expected="a plain finite number >= 0", got=beta, fix="beta=6.0")


def _outcome(
    model: Model, x: Tensor, y: Tensor, attack: Attack, beta: float, generator: torch.Generator | None
) -> Outcome:
    if beta == 0:
        return Outcome(comp_sum_loss(scores(model, x), y, reduction="none"))
    clean, attacked = clean_and_attacked(model, x, y, attack, "kl", generator)
    divergence = kl(clean, attacked)
    return Outcome(
        comp_sum_loss(clean, y, reduction="none") + beta * divergence, divergence.detach(), attacked.argmax(1) != y
    )
