"""How a set is distilled, with a switch for each part of AST."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from legato import errors
from legato.distillation.experts import PLAIN, Recipe
from legato.distillation.matching import MidPoints, mid_points

Init: TypeAlias = Literal["random", "kmeans-pixel", "kmeans-logit", "noise"]
INITS = ("random", "kmeans-pixel", "kmeans-logit", "noise")
PRESETS = ("mtt", "ast")


@dataclass(frozen=True)
class Settings:
    """Trajectory matching; the parts of AST are off."""

    student_steps: int = 10
    """N, inner steps of the student on the images."""
    expert_epochs: int = 2
    """M, epochs of the expert that they are to match."""
    max_start: int = 8
    """T+: starts are the expert's epochs 0 .. T+ - 1."""
    batch: int | None = None
    """Images an inner step; None for all."""
    lr_pixels: float = 30.0
    """Of SGD with momentum 0.5 on the images."""
    cap: float = 0.04
    """Largest length of lr_pixels * gradient, a share of the norm of the first images: without it single steps spoil the set."""
    alpha: float = 0.05
    """The student's step size at the start; its logarithm is learned, so that it stays above 0."""
    lr_alpha: float = 0.02
    """Of Adam on the logarithm of the step size."""
    init: Init = "random"
    """Real images: random, k-means in pixels or in an expert's logits (AST). Or noise."""
    momentum: float = 0.0
    """Of the student; AST: 0.9, which makes its steps up to ten times as long."""
    balance: bool = False
    """AST's balanced inner-loop loss: a step size that depends on the start epoch."""
    mid_points: MidPoints | None = None
    """AST's intermediate matching loss: equal, adaptive or none."""
    perturb: float = 0.0
    """AST's weight perturbation of the start; 1.0 there."""
    augment: bool = False
    """DSA, for images."""
    micro_batch: int | None = None
    """Images that are differentiated at once: less memory, the same gradient."""
    seed: int = 0
    """Of experts, first images, starts and order."""

    def __post_init__(self) -> None:
        mid_points(self.student_steps, self.expert_epochs, self.mid_points)
        if self.init not in INITS:
            raise errors.choice("init", self.init, INITS)
        if self.max_start < 1:
            raise errors.argument("max_start", expected="a whole number >= 1", got=self.max_start)
        if self.batch is not None and self.batch < 1:
            raise errors.argument("batch", expected="a whole number >= 1, or None for all images", got=self.batch)
        for name in ("lr_pixels", "cap", "alpha", "lr_alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise errors.argument(name, expected="a number > 0", got=getattr(self, name))

    def check(self, recipe: Recipe) -> None:
        """Start and target fit in the experts' entries. Raises: LegatoValueError with the largest max_start that would."""
        largest = recipe.epochs + 1 - self.expert_epochs
        if self.max_start > largest:
            raise errors.argument(
                "max_start", expected=f"at most {largest} = epochs + 1 - expert_epochs, with experts of {recipe.epochs} epochs",
                got=self.max_start, fix=f"max_start={largest}, or longer experts" if largest > 0 else "longer experts",
            )  # fmt: skip


MTT = Settings()
"""Every part of AST off."""


def preset(name: str) -> tuple[Recipe, Settings]:
    """mtt: the defaults. ast: every part on, at the values of its official code for pictures of 32 x 32; see docs/methods/distillation.md.

    Raises: LegatoValueError for another name.
    """
    if name not in PRESETS:
        raise errors.choice("parts", name, PRESETS)
    if name == "mtt":
        return PLAIN, MTT
    recipe = Recipe(
        epochs=50, batch_size=256, learning_rate=0.003, momentum=0.9, weight_decay=1e-3, loss_ramp=True, gradient_penalty="channel",
        augment=True,
    )  # fmt: skip
    settings = Settings(
        student_steps=20, max_start=20, alpha=0.01, init="kmeans-logit", momentum=0.9, balance=True, mid_points="equal", perturb=1.0,
        augment=True,
    )  # fmt: skip
    return recipe, settings
