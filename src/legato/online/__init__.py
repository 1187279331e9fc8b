"""Decisions under losses that change: steps on the simplex, learners with regret bounds, and a selector that trains with them."""

from typing import Any

from legato.online.adversaries import BaitAndSwitch, Constant, Drift, Replay, Sinusoid, Switching, Tables
from legato.online.baselines import BestResponse, Exp3, Hedge, Uniform
from legato.online.covariance import (
    averaged_inverse,
    averaging_samples,
    feature_covariance,
    matrix_geometric_resampling,
    regularised_inverse,
    resampling_length,
)
from legato.online.estimators import (
    exact_offset,
    importance_weighted,
    magnitude_reduced,
    plain_estimate,
    sampled_offset,
)
from legato.online.experimental import SimulatorFree
from legato.online.ftrl import FTRL, RegretBound, tuned_bound, tuned_rate
from legato.online.large import LazyLogBarrier
from legato.online.mdp import LinearMDP, best_policy, random_linear_mdp
from legato.online.readers import (
    CostProblem,
    cost_problem,
    from_arrays,
    from_gymnasium,
    read_costs,
    read_model,
    read_problem,
)
from legato.online.regret import Run, report, run
from legato.online.selector import Selector
from legato.online.simplex import divergence, entropy_step, log_barrier_step, losses_of, stability, tsallis_step

__all__ = [
    "FTRL", "BaitAndSwitch", "BestResponse", "Constant", "CostProblem", "Drift", "Exp3", "Hedge", "LazyLogBarrier", "LinearMDP", "RegretBound", "Replay", "Run",
    "SelectedLoss", "Selector", "SimulatorFree", "Sinusoid", "Switching", "Tables", "Uniform", "averaged_inverse", "averaging_samples", "best_policy", "cost_problem", "divergence", "entropy_step", "exact_offset",
    "feature_covariance", "from_arrays", "from_gymnasium", "importance_weighted", "log_barrier_step", "losses_of", "magnitude_reduced",
    "matrix_geometric_resampling", "plain_estimate", "random_linear_mdp", "read_costs", "read_model", "read_problem", "regularised_inverse", "report",
    "resampling_length", "run", "sampled_offset", "stability", "tsallis_step", "tuned_bound", "tuned_rate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """`SelectedLoss`, when it is asked for: it needs torch, and the rest of the room does not."""
    if name == "SelectedLoss":
        from legato.online.selected_loss import SelectedLoss

        return SelectedLoss
    raise AttributeError(f"module 'legato.online' has no attribute {name!r}")
