"""Scores -> loss."""

from legato.losses.adversarial import SmoothAdversarialLoss, smooth_adversarial_from_scores, smooth_adversarial_loss
from legato.losses.attacks import pgd
from legato.losses.calibration import recalibrate
from legato.losses.certificate import Certificate, certificate
from legato.losses.comp_sum import comp_sum_loss
from legato.losses.criterion import CompSumLoss, Warmup, gce, mae, sum_exponential
from legato.losses.ens_derivatives import ens_derivatives
from legato.losses.ensloss import EnsLoss, ens_loss
from legato.losses.focal import FocalLoss, focal_loss
from legato.losses.fused import FusedLinearCompSum, fused_linear_comp_sum
from legato.losses.guarantees import (
    best_risk_symmetric_noise,
    bounded_infimum,
    conditional_infimum,
    error_bound,
    explicit_error_bound,
    gap_bounded,
    gap_complete,
    transform,
)
from legato.losses.margin_losses import MarginLoss, exponential_loss, hinge_loss, log_tail_loss, logistic_loss
from legato.losses.margins import margins
from legato.losses.mart import Mart, mart_from_scores, mart_loss
from legato.losses.pgd_training import PGDAdversarial, pgd_adversarial_loss
from legato.losses.robustness import WorstCase, survives, worst_case
from legato.losses.tight_guarantees import tight_error_bound, tight_transform
from legato.losses.trades import Trades, trades_from_scores, trades_loss

__all__ = [
    "Certificate",
    "CompSumLoss",
    "EnsLoss",
    "FocalLoss",
    "FusedLinearCompSum",
    "MarginLoss",
    "Mart",
    "PGDAdversarial",
    "SmoothAdversarialLoss",
    "Trades",
    "Warmup",
    "WorstCase",
    "best_risk_symmetric_noise",
    "bounded_infimum",
    "certificate",
    "comp_sum_loss",
    "conditional_infimum",
    "ens_derivatives",
    "ens_loss",
    "error_bound",
    "explicit_error_bound",
    "exponential_loss",
    "focal_loss",
    "fused_linear_comp_sum",
    "gap_bounded",
    "gap_complete",
    "gce",
    "hinge_loss",
    "log_tail_loss",
    "logistic_loss",
    "mae",
    "margins",
    "mart_from_scores",
    "mart_loss",
    "pgd",
    "pgd_adversarial_loss",
    "recalibrate",
    "smooth_adversarial_from_scores",
    "smooth_adversarial_loss",
    "sum_exponential",
    "survives",
    "tight_error_bound",
    "tight_transform",
    "trades_from_scores",
    "trades_loss",
    "transform",
    "worst_case",
]
