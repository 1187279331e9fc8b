"""Denoiser -> smoother, more obedient denoiser."""

from legato.diffusion.attention import twice_differentiable
from legato.diffusion.ddim import ddim_invert, ddim_levels, ddim_sample, ddim_step, switched
from legato.diffusion.denoiser import Denoiser, denoiser, guided
from legato.diffusion.interpolation import retimed, slerp, walk
from legato.diffusion.inversion import Inverted, null_text_inversion, reconstruct, round_trip
from legato.diffusion.istd import Evenness, evenness, local_variation, step_lengths
from legato.diffusion.objective import DenoisingObjective, class_condition
from legato.diffusion.profile import VariationProfile, gaussian_variation, variation_profile
from legato.diffusion.schedule import NoiseSchedule, scaled_linear, schedule_of, variance_preserving
from legato.diffusion.similarity import Likeness, likeness
from legato.diffusion.smoothness import (
    SmoothnessRegularizer,
    running_level,
    unit_directions,
    variation,
    variation_norms,
    variation_penalty,
)

__all__ = [
    "Denoiser",
    "DenoisingObjective",
    "Evenness",
    "Inverted",
    "Likeness",
    "NoiseSchedule",
    "SmoothnessRegularizer",
    "VariationProfile",
    "class_condition",
    "ddim_invert",
    "ddim_levels",
    "ddim_sample",
    "ddim_step",
    "denoiser",
    "evenness",
    "gaussian_variation",
    "guided",
    "likeness",
    "local_variation",
    "null_text_inversion",
    "reconstruct",
    "retimed",
    "round_trip",
    "running_level",
    "scaled_linear",
    "schedule_of",
    "slerp",
    "step_lengths",
    "switched",
    "twice_differentiable",
    "unit_directions",
    "variance_preserving",
    "variation",
    "variation_norms",
    "variation_penalty",
    "variation_profile",
    "walk",
]
