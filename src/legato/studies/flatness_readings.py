"""From a model in training to how sharp its minimum is: on fixed rows after each epoch, and by more measures at the end."""

import copy
import math
from collections import deque

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato import flatness

BALL = 0.2
"""Radius of the ball of weights in which the sharpest point is searched."""
STEP = 0.05
"""Length of the one step, the usual radius of SAM."""
EPOCH_STEPS, STEPS, PROBES = 3, 6, 10
"""Ascent steps after an epoch and at the end, and the most random vectors for the trace."""
ROWS_AT_ONCE = 512
BROKEN = 1e9
"""What a model whose loss is not finite counts as in every measure."""

MEASURES = ("sharpness_loss", "sharpness_one_step", "sharpness_ball", "sharpness_lambda_max", "sharpness_trace")


def surface(model: nn.Module, inputs: Tensor, target: Tensor) -> flatness.Surface:
    """The mean cross-entropy of these rows as a function of the weights, in evaluation mode; of a copy if they are frozen averages."""
    if not any(p.requires_grad for p in model.parameters()):
        model = copy.deepcopy(model).requires_grad_()
    batches = list(zip(inputs.split(ROWS_AT_ONCE), target.split(ROWS_AT_ONCE), strict=True))
    return flatness.Surface(model, F.cross_entropy, batches)


class Watch:
    """What is read after each epoch, on fixed rows, with outputs of `lag` epochs ago kept for comparison.

    rows_loss        mean cross-entropy L(t)
    loss_fall        L(t - lag) - L(t)
    trajectory_loss  the divergence of the outputs from those `lag` epochs ago, as SAF takes it
    ball_sharpness   the largest rise of the loss that a few steps of ascent find in the ball
    """

    def __init__(self, inputs: Tensor, target: Tensor, lag: int = 3) -> None:
        self.inputs, self.target = inputs, target
        self.past: deque[tuple[Tensor, float]] = deque(maxlen=lag)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The readings; NaN where there is no record yet, or no finite loss."""
        with torch.no_grad():
            logits = model(self.inputs).float()
        loss = float(F.cross_entropy(logits, self.target))
        fall = trajectory = math.nan
        if len(self.past) == self.past.maxlen:
            before, loss_before = self.past[0]
            fall = loss_before - loss
            trajectory = float(flatness.trajectory_loss(logits, before))
        self.past.append((logits, loss))
        ball = math.nan
        if math.isfinite(loss):
            here = surface(model, self.inputs, self.target)
            ball = flatness.sam_sharpness(here, radius=BALL, steps=EPOCH_STEPS).sharpness
        return {"rows_loss": loss, "loss_fall": fall, "trajectory_loss": trajectory, "ball_sharpness": ball}


def sharpness(model: nn.Module, inputs: Tensor, target: Tensor) -> dict[str, float]:
    """The measures of a trained model, on rows with the labels that training saw."""
    here = surface(model, inputs, target)
    loss = here.value()
    if not math.isfinite(loss):
        return dict.fromkeys(MEASURES, BROKEN)
    generator = torch.Generator().manual_seed(0)
    return {
        "sharpness_loss": loss,
        "sharpness_one_step": flatness.sam_sharpness(here, radius=STEP, steps=1).sharpness,
        "sharpness_ball": flatness.sam_sharpness(here, radius=BALL, steps=STEPS).sharpness,
        "sharpness_lambda_max": float(flatness.top_eigenvalues(here, tol=1e-3, generator=generator).values[0]),
        "sharpness_trace": flatness.hessian_trace(here, max_products=PROBES, generator=generator).trace,
    }
