"""A training run: will it hold when it is scaled?"""

from legato.stability.attention import log_sum_exp_interval, norm_bound
from legato.stability.qk_clip import QKClip, qk_clip_factors
from legato.stability.readings import AttentionReading, LogitReading, Reading
from legato.stability.rules import Alarm, Thresholds, alarms
from legato.stability.watch import Watcher, watch

__all__ = [
    "Alarm",
    "AttentionReading",
    "LogitReading",
    "QKClip",
    "Reading",
    "Thresholds",
    "Watcher",
    "alarms",
    "log_sum_exp_interval",
    "norm_bound",
    "qk_clip_factors",
    "watch",
]
