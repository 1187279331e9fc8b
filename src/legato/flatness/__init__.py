"""Trajectory -> loss; model -> how sharp."""

from legato.flatness.density import Density, spectral_density
from legato.flatness.dynamics import Dynamics
from legato.flatness.ensembling import TemporalEnsembling
from legato.flatness.esam import ESAM
from legato.flatness.lanczos import Eigenpairs, lanczos
from legato.flatness.landscape import Landscape, Path, landscape, path_between
from legato.flatness.looksam import LookSAM
from legato.flatness.mesa import MESA
from legato.flatness.msam import MSAM
from legato.flatness.saf import SAF
from legato.flatness.sam import ASAM, SAM, sam_perturbation
from legato.flatness.sampler import TrajectorySampler
from legato.flatness.sharpness import GroupSharpness, Sharpness, m_sharpness, sam_sharpness
from legato.flatness.spectrum import block_eigenvalues, extreme_eigenvalues, top_eigenvalues
from legato.flatness.surface import Surface
from legato.flatness.trace import TraceEstimate, hessian_trace
from legato.flatness.trajectory import trajectory_loss

__all__ = [
    "ASAM",
    "ESAM",
    "MESA",
    "MSAM",
    "SAF",
    "SAM",
    "Density",
    "Dynamics",
    "Eigenpairs",
    "GroupSharpness",
    "Landscape",
    "LookSAM",
    "Path",
    "Sharpness",
    "Surface",
    "TemporalEnsembling",
    "TraceEstimate",
    "TrajectorySampler",
    "block_eigenvalues",
    "extreme_eigenvalues",
    "hessian_trace",
    "lanczos",
    "landscape",
    "m_sharpness",
    "path_between",
    "sam_perturbation",
    "sam_sharpness",
    "spectral_density",
    "top_eigenvalues",
    "trajectory_loss",
]
