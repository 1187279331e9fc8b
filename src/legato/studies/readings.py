"""From a trained model to plain numbers: errors, probabilities that can be believed or not, and accuracy under attack."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from legato import metrics
from legato.studies.prepared import Labelled

Numbers = dict[str, Any]


def predict(model: nn.Module, inputs: Tensor, rows: int = 2048) -> Tensor:
    """Logits [N, C] in float32 on the CPU, computed by blocks of rows."""
    with torch.inference_mode():
        return torch.cat([model(block).float().cpu() for block in inputs.split(rows)])


def usable(logits: Tensor, diverged: str | None) -> Tensor:
    """The logits of a trained model; those of a diverged one are no answer and count as the uniform guess."""
    return torch.zeros_like(logits) if diverged or not logits.isfinite().all() else logits


def scores(prefix: str, logits: Tensor, target: Tensor, temperature: float) -> Numbers:
    """Error, NLL and calibration error, raw and at the temperature that was fitted on validation labels."""
    target = target.cpu()
    return {
        f"{prefix}_error": metrics.error_rate(logits, target),
        f"{prefix}_nll": metrics.nll(logits, target),
        f"{prefix}_nll_scaled": metrics.nll(logits, target, temperature),
        f"{prefix}_ece": metrics.expected_calibration_error(logits, target),
        f"{prefix}_ece_scaled": metrics.expected_calibration_error(logits, target, temperature),
    }


def recalibrated(
    logits: Tensor, target: Tensor, validation_logits: Tensor, validation_target: Tensor, temperature: float
) -> Numbers:
    """Calibration error on test labels after two more remedies: a temperature that theory gives, and isotonic regression.

    Args:
        logits, target: of the test set.
        validation_logits, validation_target: what isotonic regression is fitted on, from confidence to share right.
        temperature: `1 / (2 - tau)` for a comp-sum loss.
    """
    from sklearn.isotonic import IsotonicRegression

    sure, guess = F.softmax(validation_logits, dim=1).max(dim=1)
    remedy = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    remedy.fit(sure.numpy(), (guess == validation_target.cpu()).numpy())
    confidence, prediction = F.softmax(logits, dim=1).max(dim=1)
    believed = remedy.predict(confidence.numpy())
    bins = metrics.reliability(believed, (prediction == target.cpu()).numpy())
    return {
        "noisy_test_ece_recalibrated": metrics.expected_calibration_error(logits, target.cpu(), temperature),
        "noisy_test_nll_recalibrated": metrics.nll(logits, target.cpu(), temperature),
        "noisy_test_ece_isotonic": metrics.ece_of_bins(*bins),
    }


def reliability(logits: Tensor, target: Tensor) -> dict[str, list[float | None]]:
    """Mean confidence and accuracy of each bin (None where it is empty) and its rows, raw."""
    confidence, prediction = F.softmax(logits, dim=1).max(dim=1)
    sure, right, count = metrics.reliability(confidence.numpy(), (prediction == target.cpu()).numpy())
    return {"confidence": _plain(sure), "accuracy": _plain(right), "count": _plain(count)}


def robust_error(model: nn.Module, inputs: Tensor, target: Tensor, radius: float, *, steps: int, hard: bool) -> float:
    """Share of rows that are wrong or that an attack makes wrong by a change of at most `radius` of any pixel.

    The attacks are projected gradient ascent on cross-entropy and margin and, if `hard`, towards each of the three likeliest
    wrong classes.
    """
    from legato.losses import worst_case

    attacks = ("cross-entropy", "margin", "targeted") if hard else ("cross-entropy", "margin")
    found = worst_case(
        model, inputs, target, radius=radius, bounds=(0.0, 1.0), steps=steps, restarts=1, losses=attacks, batch_size=500
    )
    return 1 - found.accuracy


def arrays(logits: Tensor, rows: Labelled) -> dict[str, NDArray[Any]]:
    """What the page and a second opinion need of one test reading."""
    return {
        "logits": logits.half().numpy(),
        "prediction": logits.argmax(1).to(torch.int16).numpy(),
        "true": rows.true.cpu().to(torch.int16).numpy(),
        "seen": rows.seen.cpu().to(torch.int16).numpy(),
    }


def _plain(values: NDArray[Any]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
