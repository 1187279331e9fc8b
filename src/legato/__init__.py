"""legato: training objectives that are smooth, calibrated and stable, each with its evidence.

The names below are loaded when they are first used, so that `import legato` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "compare": "legato.studies.compare",
    "comp_sum_loss": "legato.losses",
    "CompSumLoss": "legato.losses",
    "EnsLoss": "legato.losses",
    "ens_loss": "legato.losses",
    "focal_loss": "legato.losses",
    "fused_linear_comp_sum": "legato.losses",
    "fit": "legato.training",
    "MESA": "legato.flatness",
    "SAF": "legato.flatness",
    "SAM": "legato.flatness",
    "load": "legato.data",
}
__all__ = [
    "MESA",
    "SAF",
    "SAM",
    "CompSumLoss",
    "EnsLoss",
    "__version__",
    "comp_sum_loss",
    "compare",
    "ens_loss",
    "fit",
    "focal_loss",
    "fused_linear_comp_sum",
    "load",
]

if TYPE_CHECKING:
    from legato.data import load
    from legato.flatness import MESA, SAF, SAM
    from legato.losses import CompSumLoss, EnsLoss, comp_sum_loss, ens_loss, focal_loss, fused_linear_comp_sum
    from legato.studies.compare import compare
    from legato.training import fit


_ROOMS = ("data", "diffusion", "distillation", "flatness", "losses", "online", "stability", "training")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"legato.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'legato' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
