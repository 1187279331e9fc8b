"""name -> tensors, offline first."""

from legato.data.batches import Batches, IndexedLoader, crop_and_flip
from legato.data.noise import corrupt_labels
from legato.data.registry import from_arrays, from_dataset, load
from legato.data.scaling import moments, standardize, to_unit
from legato.data.splits import Provenance, Split, Splits

__all__ = [
    "Batches", "IndexedLoader", "Provenance", "Split", "Splits", "corrupt_labels", "crop_and_flip", "from_arrays", "from_dataset", "load",
    "moments", "standardize", "to_unit",
]  # fmt: skip
