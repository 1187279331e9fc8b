"""What one would write instead of `unrolled_grad`: autograd through all steps at once, which is also what the gradient is by definition."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from legato.distillation.inner_loop import OuterLoss, Part, StepLoss, Unrolled


def naive_unrolling(
    step_loss: StepLoss,
    theta0: Tensor,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    outer: Mapping[int, OuterLoss],
    *,
    alpha: float | Tensor,
    momentum: float = 0.0,
) -> Unrolled:
    """The same as `unrolled_grad`, with the graphs of all steps in memory. Our reimplementation of what trajectory matching does."""
    pixels, targets = images.detach().requires_grad_(), labels.detach().requires_grad_(labels.requires_grad)
    rates = torch.as_tensor(alpha, dtype=theta0.dtype, device=theta0.device).detach().requires_grad_()
    theta, losses = theta0.detach().requires_grad_(), dict[int, Tensor]()
    velocity = torch.zeros_like(theta0)
    for i, rows in enumerate(batches):
        loss = step_loss(theta, pixels[rows], targets[rows], Part(i, 0, len(rows)))
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = momentum * velocity + gradient
        theta = theta - rates.expand(len(batches))[i] * velocity
        if i + 1 in outer:
            losses[i + 1] = outer[i + 1](theta)
    total = torch.stack(list(losses.values())).sum()
    wanted = [pixels, rates, *([targets] if labels.requires_grad else [])]
    found = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    parts = {step: loss.detach() for step, loss in losses.items()}
    return Unrolled(
        total.detach(), parts, found[0], found[2] if labels.requires_grad else None, found[1], theta.detach()
    )
