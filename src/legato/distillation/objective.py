"""The loss that experts and students are trained with, and what AST adds to it for experts."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from legato.distillation.augmentation import DSA
from legato.training import Batch

Penalty: TypeAlias = Literal["channel", "sample"]
PENALTIES = ("channel", "sample")


def ramp(epoch: int) -> float:
    """AST's clipping loss: the factor 0.5 + 0.05 e of the loss in epochs e = 0 .. 9, then 1. Nothing is clipped."""
    return min(1.0, 0.5 + 0.05 * epoch)


def gradient_penalty(model: Callable[[Tensor], Tensor], inputs: Tensor, form: Penalty) -> Tensor:
    """mean of (|g| - 1)^2 with g = d (sum over k of f_k(x)) / dx.

    channel: |g| over the channels of each pixel, as AST's code has it, almost surely by a slip: it pulls each pixel to 1.
    sample: |g| over the whole input, as in WGAN-GP.
    The sum of the logits is their common shift, which the softmax does not see: the penalty mainly restrains that.

    Args:
        model: inputs [B, ...] -> logits [B, C].
        inputs: [B, C, H, W] or [B, D], not augmented.
        form: channel or sample.
    Returns: a scalar with a graph.
    Source: AST, arXiv 2310.10541, official code; Gulrajani et al. 2017, arXiv 1704.00028.
    """
    x = inputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    norms = gradient.norm(dim=1) if form == "channel" else gradient.flatten(1).norm(dim=1)
    penalty: Tensor = (norms - 1).square().mean()
    return penalty


@final
class AugmentedCrossEntropy:
    """An `Objective` of `legato.training.fit`: ramp(epoch) * cross-entropy of augmented inputs + weight * penalty on the inputs as they are.

    Args:
        augment: DSA, for images.
        loss_ramp: with `ramp`; without it the factor is 1.
        penalty, weight: of `gradient_penalty`; None for none.
        seed: of the augmentation.
    """

    def __init__(
        self,
        *,
        augment: bool = False,
        loss_ramp: bool = False,
        penalty: Penalty | None = None,
        weight: float = 2.0,
        seed: int = 0,
    ) -> None:
        self.dsa = DSA() if augment else None
        self.loss_ramp, self.penalty, self.weight, self.factor = loss_ramp, penalty, weight, 1.0
        self.generator = Generator().manual_seed(seed)

    def begin_epoch(self, epoch: int) -> None:
        """The factor of this epoch."""
        self.factor = ramp(epoch) if self.loss_ramp else 1.0

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The loss of a batch; targets are int64 [B] or probabilities [B, C]."""
        inputs, targets, _ = batch
        seen = inputs if self.dsa is None else self.dsa(inputs, self.dsa.draw(len(inputs), self.generator))
        loss = self.factor * F.cross_entropy(model(seen), targets)
        return loss if self.penalty is None else loss + self.weight * gradient_penalty(model, inputs, self.penalty)

    def after_step(self, model: nn.Module) -> None:
        """Nothing."""

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """The gradients of the loss itself."""
        return closure()

    def state_dict(self) -> dict[str, Any]:
        """The state of the random numbers."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.generator.set_state(state["generator"])
