"""The state of the global random numbers that dropout, augmentation and samplers draw from."""

import random
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def capture(device: torch.device) -> State:
    """torch's generator on the CPU and on `device`, numpy's and Python's global generators."""
    state = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - augmentations use the global generator
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: State, device: torch.device) -> None:
    """Go on where `capture` was."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
