"""Adversarial losses in the order of passes that users run today. Our reimplementation, not a package's code."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def trades_official_order(
    model: nn.Module, x: Tensor, y: Tensor, *, radius: float, steps: int, step_size: float, beta: float = 6.0
) -> Tensor:
    """TRADES for l-inf and inputs in [0, 1], with the passes of the authors' code. Our reimplementation.

    2 steps + 3 forward passes: each attack step computes the clean scores again, and so does the divergence of the loss. The attack
    sees the model in evaluation mode; `model` is left in training mode. inputs [B, ...], y int64 [B] -> the mean loss.
    """
    model.eval()
    attacked = x.detach() + 0.001 * torch.randn_like(x)
    for _ in range(steps):
        attacked.requires_grad_()
        divergence = F.kl_div(F.log_softmax(model(attacked), dim=1), F.softmax(model(x), dim=1), reduction="sum")
        (gradient,) = torch.autograd.grad(divergence, attacked)
        attacked = attacked.detach() + step_size * gradient.sign()
        attacked = attacked.clamp(x - radius, x + radius).clamp(0.0, 1.0)
    model.train()
    natural = F.cross_entropy(model(x), y)
    robust = F.kl_div(F.log_softmax(model(attacked), dim=1), F.softmax(model(x), dim=1), reduction="sum") / len(x)
    return natural + beta * robust
