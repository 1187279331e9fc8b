"""A training run: will it hold when it is scaled?"""

from legato.stability.attention import exact_values, log_sum_exp_interval, norm_bound
from legato.stability.qk_clip import Heads, QKClip, find_heads, qk_clip_factors
from legato.stability.readings import AttentionReading, LogitReading, Reading, adam_share, output_logits
from legato.stability.rules import Alarm, Thresholds, alarms
from legato.stability.watch import Watcher, watch

__all__ = [
    "Alarm",
    "AttentionReading",
    "Heads",
    "LogitReading",
    "QKClip",
    "Reading",
    "Thresholds",
    "Watcher",
    "adam_share",
    "alarms",
    "exact_values",
    "find_heads",
    "log_sum_exp_interval",
    "norm_bound",
    "output_logits",
    "qk_clip_factors",
    "watch",
]
