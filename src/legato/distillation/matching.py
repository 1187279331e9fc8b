"""How far a student ends from where an expert went, and what the AST paper adds to that."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Generator, Tensor

from legato import errors

MidPoints: TypeAlias = Literal["equal", "adaptive"]
MID_POINTS = ("equal", "adaptive")


@final
@dataclass(frozen=True)
class Match:
    """The matching loss of trajectory matching, an outer loss of `unrolled_grad`.

    loss(theta) = weight * |theta - target|^2 / |start - target|^2, over all weights together: 0 at the target, `weight` at the start.

    Raises, when it is made: LegatoValueError for a start that is the target, for shapes that differ, and for weights that are not finite.
    Source: Cazenavette et al. 2022, arXiv 2203.11932.
    """

    target: Tensor
    """[P], where the expert went."""
    start: Tensor
    """[P], where the student began."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.target.shape != self.start.shape:
            raise errors.argument("target", expected=f"shape {list(self.start.shape)}", got=list(self.target.shape))
        distance = float(self.distance(self.start))
        if not 0 < distance < math.inf:
            raise errors.argument(
                "target", expected="weights some finite distance from the start: the expert did not move", got=distance,
                fix="look whether the snapshots of the expert share memory, or whether its training diverged",
            )  # fmt: skip

    def distance(self, theta: Tensor) -> Tensor:
        """|theta - target|^2, []."""
        return (theta - self.target).square().sum()

    def __call__(self, theta: Tensor) -> Tensor:
        """The loss at theta [P], []."""
        return self.weight * self.distance(theta) / self.distance(self.start)


def mid_points(steps: int, epochs: int, mode: MidPoints | None) -> dict[int, tuple[int, float]]:
    """After which steps of the student which later entries of the expert are matched too: step -> (epochs from the start, weight).

    Steps s_j = (N // M) j for j = 1 .. M-1, those below N-1 only; weight 1 ("equal") or j / M ("adaptive"); None or M = 1: none.

    Args:
        steps: N >= M, of the student.
        epochs: M >= 1, of the expert.
        mode: as above.
    Raises: LegatoValueError for numbers out of range or another word.
    Source: the official code of AST, arXiv 2310.10541.
    """
    if mode is not None and mode not in MID_POINTS:
        raise errors.choice("mid_points", mode, MID_POINTS)
    if epochs < 1 or steps < epochs:
        raise errors.argument(
            "expert_epochs", expected=f"1 <= expert_epochs <= student_steps = {steps}", got=epochs,
            fix="fewer epochs, or more steps: each epoch is matched by at least one step",
        )  # fmt: skip
    if mode is None:
        return {}
    places = {(steps // epochs) * j: j for j in range(1, epochs)}
    return {step: (j, 1.0 if mode == "equal" else j / epochs) for step, j in places.items() if step < steps - 1}


def balance(epoch: int, max_start: int) -> float:
    """The factor c(t) of AST's balanced inner-loop loss for a start at the expert's epoch t, with h = max_start // 2.

    c(t) = log_5(t - h + 8) for t >= h, else 1 / log_5(h - t + 8). It jumps at h, from 0.7325 to 1.2920 for max_start = 20. A factor of the
    loss is a factor of the step size, exactly so also with momentum, and that is how it is used here.

    Source: the official code of AST, arXiv 2310.10541.
    """
    half = max_start // 2
    return math.log(epoch - half + 8, 5) if epoch >= half else 1 / math.log(half - epoch + 8, 5)


def perturbed(
    weights: Mapping[str, Tensor], scale: float = 1.0, *, generator: Generator | None = None
) -> dict[str, Tensor]:
    """AST's weight perturbation of the student's start: W + scale * D / |D|_F * W elementwise, D Gaussian, for every 4-D tensor.

    The relative size of what is added is about scale / sqrt(numel): 0.08 for 16 filters of 1 x 3 x 3, 0.003 for 128 of 128 x 3 x 3.

    Args:
        weights: name -> tensor; those that are not 4-D stay as they are.
        scale: >= 0; the official 1.0.
        generator: of the noise, on any device; None draws from torch's global one.
    Raises: LegatoValueError for a scale that is negative or not finite.
    Source: the official code of AST, arXiv 2310.10541.
    """
    if not 0 <= scale < math.inf:
        raise errors.argument("perturb", expected="a number >= 0", got=scale, fix="0 for none, 1 is the official value")
    return {name: _perturbed(w, scale, generator) if w.dim() == 4 else w for name, w in weights.items()}


def _perturbed(w: Tensor, scale: float, generator: Generator | None) -> Tensor:
    device = w.device if generator is None else generator.device
    noise = torch.randn(w.shape, generator=generator, device=device, dtype=w.dtype).to(w.device)
    moved: Tensor = w + noise * (scale / noise.norm()) * w
    return moved
