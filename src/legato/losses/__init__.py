"""Scores -> loss."""

from legato.losses.adversarial import SmoothAdversarialLoss, smooth_adversarial_from_scores, smooth_adversarial_loss
from legato.losses.attacks import pgd
from legato.losses.comp_sum import comp_sum_loss
from legato.losses.criterion import CompSumLoss, Warmup, gce, mae, sum_exponential
from legato.losses.ens_derivatives import ens_derivatives
from legato.losses.ensloss import EnsLoss, ens_loss
from legato.losses.focal import FocalLoss, focal_loss
from legato.losses.margin_losses import MarginLoss, exponential_loss, hinge_loss, log_tail_loss, logistic_loss
from legato.losses.margins import margins
from legato.losses.mart import Mart, mart_loss
from legato.losses.pgd_training import PGDAdversarial, pgd_adversarial_loss
from legato.losses.robustness import WorstCase, worst_case
from legato.losses.trades import Trades, trades_loss

__all__ = [
    "CompSumLoss",
    "EnsLoss",
    "FocalLoss",
    "MarginLoss",
    "Mart",
    "PGDAdversarial",
    "SmoothAdversarialLoss",
    "Trades",
    "Warmup",
    "WorstCase",
    "comp_sum_loss",
    "ens_derivatives",
    "ens_loss",
    "exponential_loss",
    "focal_loss",
    "gce",
    "hinge_loss",
    "log_tail_loss",
    "logistic_loss",
    "mae",
    "margins",
    "mart_loss",
    "pgd",
    "pgd_adversarial_loss",
    "smooth_adversarial_from_scores",
    "smooth_adversarial_loss",
    "sum_exponential",
    "trades_loss",
    "worst_case",
]
