"""Denoiser -> smoother, more obedient denoiser."""

from legato.diffusion.attention import twice_differentiable
from legato.diffusion.controlled import ConcatenatedControl, ControlledUNet
from legato.diffusion.controls import canny_magnitude, line_art, luminance, silhouette, soft_canny, soft_edges, usable
from legato.diffusion.ddim import ddim_invert, ddim_levels, ddim_sample, ddim_step, switched
from legato.diffusion.denoiser import Denoiser, denoiser, guided
from legato.diffusion.interpolation import retimed, slerp, walk
from legato.diffusion.inversion import Inverted, null_text_inversion, reconstruct, round_trip
from legato.diffusion.istd import Evenness, evenness, local_variation, step_lengths
from legato.diffusion.objective import DenoisingObjective, class_condition
from legato.diffusion.pairs import check_pairs, condition_errors, denoising_errors, image_errors, mean_squared_errors
from legato.diffusion.preference import (
    ConditionPreference,
    condition_preference_loss,
    diffusion_dpo_loss,
    gate_margin,
    share_beyond,
)
from legato.diffusion.preference_bins import GapBin, gap_by_timestep
from legato.diffusion.preference_objective import ConditionPreferenceObjective
from legato.diffusion.profile import VariationProfile, gaussian_variation, variation_profile
from legato.diffusion.reference import ReferenceErrors, adapters_off
from legato.diffusion.reward import ConsistencyReward, consistency_loss, squared_distance, unit_range
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
    "ConcatenatedControl",
    "ConditionPreference",
    "ConditionPreferenceObjective",
    "ConsistencyReward",
    "ControlledUNet",
    "Denoiser",
    "DenoisingObjective",
    "Evenness",
    "GapBin",
    "Inverted",
    "Likeness",
    "NoiseSchedule",
    "ReferenceErrors",
    "SmoothnessRegularizer",
    "VariationProfile",
    "adapters_off",
    "canny_magnitude",
    "check_pairs",
    "class_condition",
    "condition_errors",
    "condition_preference_loss",
    "consistency_loss",
    "ddim_invert",
    "ddim_levels",
    "ddim_sample",
    "ddim_step",
    "denoiser",
    "denoising_errors",
    "diffusion_dpo_loss",
    "evenness",
    "gap_by_timestep",
    "gate_margin",
    "gaussian_variation",
    "guided",
    "image_errors",
    "likeness",
    "line_art",
    "local_variation",
    "luminance",
    "mean_squared_errors",
    "null_text_inversion",
    "reconstruct",
    "retimed",
    "round_trip",
    "running_level",
    "scaled_linear",
    "schedule_of",
    "share_beyond",
    "silhouette",
    "slerp",
    "soft_canny",
    "soft_edges",
    "squared_distance",
    "step_lengths",
    "switched",
    "twice_differentiable",
    "unit_directions",
    "unit_range",
    "usable",
    "variance_preserving",
    "variation",
    "variation_norms",
    "variation_penalty",
    "variation_profile",
    "walk",
]
