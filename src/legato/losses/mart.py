"""MART: a boosted cross-entropy on attacked inputs, and a divergence that counts most where the clean input is misclassified."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.losses.adversary import Adversary, Diagnostics, Outcome
from legato.losses.arguments import check_reduction, is_number
from legato.losses.attack_losses import kl, own_scores
from legato.losses.attacks import Attack, Model, clean_and_attacked
from legato.losses.ball import Bound
from legato.losses.rows import reduce, widened


def mart_loss(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    bounds: tuple[Bound, Bound],
    beta: float = 5.0,
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    attack_mode: str = "eval",
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""MART: bce(x') + beta * KL(p(x) || p(x')) * (1 - p_y(x)), with bce(x') = -log p_y(x') - log(1 - max over k != y of p_k(x')).

    p = softmax(h), and x' comes from `pgd` on the cross-entropy, from a start 0.001 * randn around x. Gradients go through both
    inputs in every factor.

    Args:
        model, x, y, radius, bounds, norm, steps, step_size, attack_mode, generator: as in `pgd`.
        beta: >= 0, the weight of the divergence (the paper's lambda).
        reduction: "none" -> [B], "mean" or "sum" -> []. An empty batch has the mean 0.
    Returns: loss >= 0, float32 or float64, in nats.
    Raises: as `pgd`; LegatoValueError for a beta that is not a number >= 0, and for scores of fewer than 2 classes.
    Source: Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified examples", ICLR.
    """
    _check(beta)
    check_reduction(reduction)
    attack = Attack(radius, bounds, norm, steps, step_size, start="gaussian", attack_mode=attack_mode)
    attack.check(x, y)
    return _outcome(model, x, y, attack, beta, generator).reduced(reduction)


def mart_from_scores(
    clean: Tensor, attacked: Tensor, y: Tensor, *, beta: float = 5.0, reduction: str = "mean"
) -> Tensor:
    """The formula of `mart_loss` for given scores.

    Args:
        clean, attacked: [B, C] scores of the clean and of the attacked inputs, C >= 2.
        y: [B] int64, classes.
        beta, reduction: as in `mart_loss`.
    """
    _check(beta)
    clean, attacked = widened(clean), widened(attacked)
    losses = _boosted(attacked, y) + beta * _weighted(clean, attacked, y)
    return reduce(losses, torch.ones_like(losses), reduction)


@final
class Mart:
    """`mart_loss` as a training objective, also callable: `objective(model, x, y) -> mean loss`.

    It has the methods that `legato.fit` calls, draws the attacks' starts from a generator of its own, which `state_dict` keeps, and
    reads the values of the first batch. After each call `last` has the mean boosted cross-entropy of the attacked inputs and
    the share of them that are misclassified.

    Args:
        radius, bounds, norm, steps, step_size, attack_mode: the attack, as in `pgd`.
        beta: as in `mart_loss`.
        seed: of the random starts.
    Raises: LegatoValueError for a number out of range.
    """

    def __init__(
        self,
        *,
        radius: float,
        bounds: tuple[Bound, Bound],
        beta: float = 5.0,
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
        """The mean loss of a batch; see `mart_loss`."""
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
        raise errors.argument("beta", expected="a plain finite number >= 0", got=beta, fix="beta=5.0")


def _outcome(
    model: Model, x: Tensor, y: Tensor, attack: Attack, beta: float, generator: torch.Generator | None
) -> Outcome:
    clean, attacked = clean_and_attacked(model, x, y, attack, "cross-entropy", generator)
    boosted = _boosted(attacked, y)
    return Outcome(boosted + beta * _weighted(clean, attacked, y), boosted.detach(), attacked.argmax(1) != y)


def _boosted(attacked: Tensor, y: Tensor) -> Tensor:
    """-log p_y - log(1 - p_k) for the strongest class k != y; 1 - p_k is the sum of the others, so that no digits are lost."""
    total = attacked.logsumexp(1)
    own = own_scores(attacked, y, classes=2)
    rival = attacked.scatter(1, y[:, None], -torch.inf).argmax(1)
    others = attacked.scatter(1, rival[:, None], -torch.inf).logsumexp(1)
    return (total - own) + (total - others)


def _weighted(clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
    """KL(p(x) || p(x')) * (1 - p_y(x))."""
    miss = -torch.expm1(own_scores(clean, y) - clean.logsumexp(1))  # 1 - p, without its cancellation
    return kl(clean, attacked) * miss
