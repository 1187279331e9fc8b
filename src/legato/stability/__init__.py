"""A training run: will it hold when it is scaled?"""

from legato.stability.attention import exact_values, log_sum_exp_interval, norm_bound
from legato.stability.decay import Joint, adamw, muon, parameter_groups
from legato.stability.decoder import Decoder
from legato.stability.forecast import Band, Fit, Forecast, fit_power, forecast
from legato.stability.mup import Factors, coordinate_check, mu_factors, mu_parametrise_
from legato.stability.qk_clip import Heads, QKClip, find_heads, qk_clip_factors
from legato.stability.readings import AttentionReading, LogitReading, Reading, adam_share, output_logits
from legato.stability.rules import Alarm, Thresholds, alarms
from legato.stability.sensitivity import (
    Sensitivity,
    Spread,
    first_unstable,
    lr_sensitivity,
    sensitivity_over_seeds,
    shifted_sensitivities,
    upper_sensitivity,
    width_within,
)
from legato.stability.watch import Watcher, watch
from legato.stability.z_loss import ZLoss, z_loss

__all__ = [
    "Alarm",
    "AttentionReading",
    "Band",
    "Decoder",
    "Factors",
    "Fit",
    "Forecast",
    "Heads",
    "Joint",
    "LogitReading",
    "QKClip",
    "Reading",
    "Sensitivity",
    "Spread",
    "Thresholds",
    "Watcher",
    "ZLoss",
    "adam_share",
    "adamw",
    "alarms",
    "coordinate_check",
    "exact_values",
    "find_heads",
    "first_unstable",
    "fit_power",
    "forecast",
    "log_sum_exp_interval",
    "lr_sensitivity",
    "mu_factors",
    "mu_parametrise_",
    "muon",
    "norm_bound",
    "output_logits",
    "parameter_groups",
    "qk_clip_factors",
    "sensitivity_over_seeds",
    "shifted_sensitivities",
    "upper_sensitivity",
    "watch",
    "width_within",
    "z_loss",
]
