"""A study whose trials take no time: importable by worker processes."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from legato.lab.trial import Outcome


@dataclass(frozen=True)
class Config:
    number: int
    seconds: float = 0.0
    fails: bool = False


def trial(config: Config, folder: Path) -> Outcome:
    with open(folder.parent.parent / "log.txt", "a") as log:
        log.write(f"{config.number} {os.getpid()}\n")
    time.sleep(config.seconds)
    if config.fails and not (folder.parent.parent / "mended").exists():
        raise RuntimeError("the model of the user broke")
    return Outcome({"square": config.number**2}, {"numbers": np.arange(config.number)})
