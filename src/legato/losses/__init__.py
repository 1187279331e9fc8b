"""Scores -> loss."""

from legato.losses.comp_sum import comp_sum_loss
from legato.losses.criterion import CompSumLoss, Warmup, gce, mae, sum_exponential
from legato.losses.focal import FocalLoss, focal_loss

__all__ = ["CompSumLoss", "FocalLoss", "Warmup", "comp_sum_loss", "focal_loss", "gce", "mae", "sum_exponential"]
