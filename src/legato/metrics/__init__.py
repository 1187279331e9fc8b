"""Outputs -> numbers. Everything is computed in float64 on the CPU; NaN logits give NaN, not an error; features must be finite."""

from legato.metrics.accuracy import confusion, error_rate, top_confused
from legato.metrics.calibration import ece_of_bins, expected_calibration_error, fit_temperature, nll, reliability
from legato.metrics.control import (
    edge_counts,
    f1_of_counts,
    iou_counts,
    miou_of_counts,
    multi_scale_similarity,
    rmse,
    structural_similarity,
)
from legato.metrics.frechet import frechet_distance

__all__ = [
    "confusion",
    "ece_of_bins",
    "edge_counts",
    "error_rate",
    "expected_calibration_error",
    "f1_of_counts",
    "fit_temperature",
    "frechet_distance",
    "iou_counts",
    "miou_of_counts",
    "multi_scale_similarity",
    "nll",
    "reliability",
    "rmse",
    "structural_similarity",
    "top_confused",
]
