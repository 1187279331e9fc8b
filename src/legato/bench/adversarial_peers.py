"""Adversarial training as users run it today: in the order of passes of the authors, and as the Adversarial Robustness Toolbox does it."""

from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato.bench.timing import Step


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


def has_art() -> bool:
    """Whether the Adversarial Robustness Toolbox is installed: pip install adversarial-robustness-toolbox."""
    return find_spec("art") is not None


class _OneModule(nn.Module):
    """A network as a single module: the toolbox takes the layers of a Sequential apart and then reads the wrong one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores


def art_trades_step(
    model: nn.Module, x: Tensor, y: Tensor, *, radius: float, steps: int, step_size: float, beta: float = 6.0
) -> Step:
    """One batch of the toolbox's own TRADES trainer, on the CPU.

    Its attack maximises the cross-entropy, not the divergence, so that a step costs it one forward pass less than the official order;
    its optimizer step has a learning rate of 0, so that the weights stay what they were.
    """
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.defences.trainer import AdversarialTrainerTRADESPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        _OneModule(model), nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, torch.optim.SGD(model.parameters(), lr=0.0), clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    attack = ProjectedGradientDescentPyTorch(
        classifier, norm="inf", eps=radius, eps_step=step_size, max_iter=steps, batch_size=len(x), num_random_init=1, verbose=False
    )  # fmt: skip
    trainer = AdversarialTrainerTRADESPyTorch(classifier, attack, beta)
    inputs, labels = x.numpy(), torch.eye(10)[y].numpy()

    def step() -> None:
        trainer._batch_process(inputs, labels)

    return step
