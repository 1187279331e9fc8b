"""SAM as users write it into their loops today. Our reimplementation, not a package's code."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer


def sam_two_pass_step(
    model: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    optimizer: Optimizer,
    *,
    radius: float = 0.05,
) -> Tensor:
    """One optimizer step of SAM in the shape that is copied from davda54/sam. Our reimplementation.

    Two forward and backward passes; weight by weight, each is copied, moved and copied back; the momentum of BatchNorm is 0 in the
    second pass. It draws other dropout in the second pass, knows no GradScaler, and the counters of BatchNorm count both passes.

    Returns: the mean loss at the weights, with its graph.
    """
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    saved = _first_step(optimizer, radius)
    optimizer.zero_grad()
    momenta = _without_running_statistics(model)
    criterion(model(x), y).backward()
    for module, momentum in momenta.items():
        module.momentum = momentum
    for weight, before in saved.items():
        weight.data = before
    optimizer.step()
    return loss


def _first_step(optimizer: Optimizer, radius: float) -> dict[Tensor, Tensor]:
    """Climb by radius * g / |g|, and the weights as they were."""
    with torch.no_grad():
        weights = [w for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
        scale = radius / (torch.norm(torch.stack([w.grad.norm(p=2) for w in weights]), p=2) + 1e-12)
        saved = {}
        for weight in weights:
            saved[weight] = weight.data.clone()
            weight.add_(weight.grad * scale.to(weight))
    return saved


def _without_running_statistics(model: nn.Module) -> dict[_BatchNorm, float | None]:
    momenta = {module: module.momentum for module in model.modules() if isinstance(module, _BatchNorm)}
    for module in momenta:
        module.momentum = 0.0
    return momenta
