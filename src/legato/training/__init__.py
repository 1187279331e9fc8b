"""The one training loop, its checkpoints, and the protocol of what it minimises."""

from legato.training.checks import check_output
from legato.training.fitted import Best, Fitted
from legato.training.loop import fit
from legato.training.objective import Batch, Criterion, EpochBatches, GradientMethod, Objective, Term, WithGradients
from legato.training.saved import load_model, save_model
from legato.training.schedules import constant, cosine, one_cycle
from legato.training.tracking import Tracker, tracker

__all__ = [
    "Batch",
    "Best",
    "Criterion",
    "EpochBatches",
    "Fitted",
    "GradientMethod",
    "Objective",
    "Term",
    "Tracker",
    "WithGradients",
    "check_output",
    "constant",
    "cosine",
    "fit",
    "load_model",
    "one_cycle",
    "save_model",
    "tracker",
]
