"""A study that takes no time, for the tests of the lab; as a program, a study that can be killed."""

import errno
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from legato import errors
from legato.lab.runner import Study, run
from legato.lab.store import Store
from legato.lab.trial import Outcome, Record

NAME, SCHEMA = "sample", 1


@dataclass(frozen=True)
class Config:
    number: int
    behaviour: str = "square"
    seconds: float = 0.0


def trial(config: Config, folder: Path, diary: Path) -> Outcome:
    with open(diary, "a") as file:
        file.write(f"{config.number} {os.getpid()}\n")
    time.sleep(config.seconds)
    match config.behaviour:
        case "fail":
            raise RuntimeError(f"number {config.number}\nis unlucky")
        case "complain":
            raise errors.argument("number", expected="a lucky number", got=config.number)
        case "die":
            os._exit(1)
        case "fill":
            raise OSError(errno.ENOSPC, "No space left on device")
    return Outcome({"square": config.number**2}, {"powers": np.arange(4) ** config.number})


def study(configs: Sequence[Config], diary: Path) -> Study:
    return Study(partial(trial, diary=diary), lambda records: configs)


def store(folder: Path) -> Store:
    return Store(folder, NAME, SCHEMA)


def contents(store: Store) -> list[tuple[str, Any, Any, dict[str, list[int]]]]:
    """Everything that two runs of the same study must agree on."""

    def lists(record: Record) -> dict[str, list[int]]:
        return {name: array.tolist() for name, array in store.arrays(record.key).items()}

    return [(r.key, r.config, r.metrics, lists(r)) for r in store.records()]


def main() -> None:
    """`FOLDER TRIALS SECONDS WORKERS`: each trial squares its number after a while."""
    folder, trials, seconds, workers = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    configs = [Config(n, seconds=seconds) for n in range(trials)]
    run(study(configs, folder.parent / "diary"), store(folder), workers=workers)


if __name__ == "__main__":
    main()
