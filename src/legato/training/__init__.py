"""The one training loop. Knows no method, no data set and no network."""

from legato.training.loop import Fitted, fit
from legato.training.objective import Batch, Criterion, EpochBatches, Objective
from legato.training.saved import load_model, save_model
from legato.training.schedules import constant, cosine, one_cycle

__all__ = [
    "Batch", "Criterion", "EpochBatches", "Fitted", "Objective", "constant", "cosine", "fit", "load_model", "one_cycle", "save_model",
]  # fmt: skip
