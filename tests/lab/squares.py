"""A study that takes no time, for the tests of the lab; as a program, a study that can be killed."""

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
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
PATIENCE = 60.0
"""Seconds after which something that should have happened never will."""


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
        case "hold":  # until somebody lets go
            wait_until((diary.parent / "go").exists)
        case "meet":  # until two processes take part
            wait_until(lambda: len({pid for _, pid in begun(diary)}) >= 2)
        case "fail":
            raise RuntimeError(f"number {config.number}\nis unlucky")
        case "complain":
            raise errors.argument("number", expected="a lucky number", got=config.number)
        case "leave":
            sys.exit("a usage text")
        case "die":
            os._exit(1)
        case "fill":
            raise OSError(errno.ENOSPC, "No space left on device")
    return Outcome({"square": config.number**2}, {"powers": np.arange(4) ** config.number})


def begun(diary: Path) -> list[tuple[int, int]]:
    """(number, process) of every trial that was begun."""
    lines = diary.read_text().splitlines() if diary.exists() else []
    return [(int(number), int(pid)) for number, pid in map(str.split, lines)]


def wait_until(done: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < until, "this never comes"
        time.sleep(0.01)


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
    """`FOLDER WORKERS BEHAVIOUR...`: one trial for each behaviour."""
    folder, workers, behaviours = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    configs = [Config(number, behaviour) for number, behaviour in enumerate(behaviours)]
    run(study(configs, folder.parent / "diary"), store(folder), workers=workers)


if __name__ == "__main__":
    main()
