"""What the losses cost: one step of each against what a user would take instead."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato.bench.adversarial_peers import art_trades_step, has_art, trades_official_order
from legato.bench.case import Case
from legato.bench.fused import fused_step, plain_step, torch_line_step
from legato.bench.peers import keras_style_gce, official_ensloss, softmax_gather_gce, softplus_bce
from legato.bench.timing import Step
from legato.losses import EnsLoss, SmoothAdversarialLoss, Trades, comp_sum_loss, focal_loss
from legato.nets import build

Loss = Callable[[Tensor, Tensor], Tensor]
TAU = 1.7
TABLES = ((2048, 1000), (4096, 50257))
"""A batch of an image classifier with 1,000 classes; 4,096 tokens of a language model with GPT-2's vocabulary."""
COLUMNS = ((128,), (65536,))
"""Batches of one logit a sample."""
VOCABULARY = (4096, 512, 50257)
"""Tokens, width and vocabulary of a last layer."""
PICTURES = (128, 1, 28, 28)
ATTACK: dict[str, Any] = {"radius": 0.1, "steps": 10, "step_size": 0.025}


def cases(official: Path | None = None) -> list[Case]:
    """Every case of the room; with the authors' `losses.py` of EnsLoss, that is timed too."""
    tables = [case for shape in TABLES for case in table_cases(shape)]
    columns = [case for shape in COLUMNS for case in ensloss_cases(shape, official)]
    return [*tables, *columns, *attack_cases(), *fused_cases()]


def table_cases(shape: tuple[int, int]) -> list[Case]:
    """`comp_sum_loss` at tau 1.7, in float32 with "mean", on logits of this shape."""
    ours = partial(table_step, lambda h, y: comp_sum_loss(h, y, TAU), shape)
    peers: list[tuple[str, Loss, float | None]] = [
        ("F.cross_entropy", F.cross_entropy, 1.15),
        ("softmax-gather GCE (our reimplementation)", lambda h, y: softmax_gather_gce(h, y, TAU - 1), None),
        ("keras-style GCE (our reimplementation)", lambda h, y: keras_style_gce(h, y, TAU - 1), None),
        ("legato focal_loss", focal_loss, None),
    ]
    return [
        Case(f"comp_sum_loss tau={TAU:g}", name, shape, ours, partial(table_step, peer, shape), bar)
        for name, peer, bar in peers
    ]


def ensloss_cases(shape: tuple[int], official: Path | None = None) -> list[Case]:
    """`EnsLoss` on one logit a sample."""
    ours = partial(column_step, EnsLoss(), shape)
    rows = [
        Case("EnsLoss", "F.binary_cross_entropy_with_logits", shape, ours,
             partial(column_step, F.binary_cross_entropy_with_logits, shape), 2.0 if shape[0] <= 128 else None),
        Case("EnsLoss", "softplus BCE (our reimplementation)", shape, ours, partial(column_step, softplus_bce, shape)),
    ]  # fmt: skip
    if official is not None:
        theirs = partial(column_step, official_ensloss(official), shape)
        rows.append(Case("EnsLoss", "the official code, on the CPU", shape, ours, theirs, 1.0))
    return rows


def attack_cases(shape: tuple[int, ...] = PICTURES) -> list[Case]:
    """Adversarial steps with 10 attack steps on a small convolutional network and a small residual one."""
    ours: list[tuple[str, Callable[..., Tensor]]] = [
        ("Trades", Trades(bounds=(0.0, 1.0), **ATTACK)),
        ("SmoothAdversarialLoss", SmoothAdversarialLoss(bounds=(0.0, 1.0), **ATTACK)),
    ]
    peer = "TRADES in the official order (our reimplementation)"
    rows = [
        Case(f"{part}, {net}", peer, shape, partial(attack_step, loss, shape, net), partial(attack_step, trades_official_order, shape, net), 0.75)
        for net in ("convnet", "resnet")
        for part, loss in ours
    ]  # fmt: skip
    if has_art():
        part, loss = ours[0]
        rows.append(
            Case(f"{part}, convnet", "TRADES of the Adversarial Robustness Toolbox", shape, partial(attack_step, loss, shape), partial(art_step, shape))
        )  # fmt: skip
    return rows


def fused_cases(shape: tuple[int, int, int] = VOCABULARY) -> list[Case]:
    """The last layer and the loss together, [tokens, width] against [vocabulary, width]."""
    part, ours = f"fused_linear_comp_sum tau={TAU:g}", partial(fused_step, shape, TAU)
    return [
        Case(part, "F.linear + comp_sum_loss", shape, ours, partial(plain_step, shape, TAU), 0.9, 0.1),
        Case(part, "F.linear_cross_entropy + expm1", shape, ours, partial(torch_line_step, shape, TAU), 0.6),
    ]


def table_step(loss: Loss, shape: tuple[int, int]) -> Step:
    """One forward and backward on logits of its own; the gradient of the step before is freed first."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    target = torch.randint(shape[1], shape[:1], generator=generator)

    def step() -> None:
        logits.grad = None
        loss(logits, target).backward()

    return step


def column_step(loss: Loss, shape: tuple[int]) -> Step:
    """The same for one logit a sample and targets 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    target = torch.randint(2, shape, generator=generator).float()

    def step() -> None:
        logits.grad = None
        loss(logits, target).backward()

    return step


def attack_step(loss: Callable[..., Tensor], shape: tuple[int, ...], net: str = "convnet") -> Step:
    """Attack, forward and backward on a batch of noise; a function is told the attack, an object knows it."""
    model, inputs, target = attacked_batch(shape, net)
    told = ATTACK if loss is trades_official_order else {}

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss(model, inputs, target, **told).backward()

    return step


def art_step(shape: tuple[int, ...]) -> Step:
    """The same with the Adversarial Robustness Toolbox."""
    return art_trades_step(*attacked_batch(shape, "convnet"), **ATTACK)


def attacked_batch(shape: tuple[int, ...], net: str) -> tuple[nn.Module, Tensor, Tensor]:
    """An untrained network, pictures of noise and their classes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(shape, generator=generator)
    target = torch.randint(10, shape[:1], generator=generator)
    torch.manual_seed(0)
    return build(net, shape[1:], 10), inputs, target
