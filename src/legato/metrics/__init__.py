"""Outputs -> numbers. Everything is computed in float64 on the CPU; NaN logits give NaN, not an error; features must be finite."""

from legato.metrics.accuracy import confusion, error_rate, top_confused
from legato.metrics.calibration import ece_of_bins, expected_calibration_error, fit_temperature, nll, reliability
from legato.metrics.frechet import frechet_distance

__all__ = [
    "confusion",
    "ece_of_bins",
    "error_rate",
    "expected_calibration_error",
    "fit_temperature",
    "frechet_distance",
    "nll",
    "reliability",
    "top_confused",
]
