"""name -> tensors, offline first.

The names below are loaded when they are first used, so that the table of data sets costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "BINARY_TABLES": "table",
    "Batches": "batches",
    "IndexedLoader": "batches",
    "Provenance": "splits",
    "Split": "splits",
    "Splits": "splits",
    "arrays_of": "arrays",
    "corrupt_labels": "noise",
    "crop_and_flip": "batches",
    "from_arrays": "registry",
    "from_dataset": "registry",
    "load": "registry",
    "moments": "scaling",
    "standardize": "scaling",
    "to_unit": "scaling",
}
__all__ = [
    "BINARY_TABLES", "Batches", "IndexedLoader", "Provenance", "Split", "Splits", "arrays_of", "corrupt_labels", "crop_and_flip",
    "from_arrays", "from_dataset", "load", "moments", "standardize", "to_unit",
]  # fmt: skip

if TYPE_CHECKING:
    from legato.data.arrays import arrays_of
    from legato.data.batches import Batches, IndexedLoader, crop_and_flip
    from legato.data.noise import corrupt_labels
    from legato.data.registry import from_arrays, from_dataset, load
    from legato.data.scaling import moments, standardize, to_unit
    from legato.data.splits import Provenance, Split, Splits
    from legato.data.table import BINARY_TABLES


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"legato.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'legato.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
