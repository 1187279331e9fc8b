"""A data set made tiny, and the question whether it was worth it: students on it, on chosen real images and on all the data."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Generator

from legato import nets
from legato.data import Splits
from legato.distillation import (
    DistilledSet,
    Graded,
    Preprocessing,
    Recipe,
    Schooling,
    Settings,
    Told,
    distill,
    graded,
    herding_rows,
    kmeans_rows,
    random_rows,
)
from legato.distillation.experts import PLAIN
from legato.distillation.flat import NetFactory
from legato.distillation.rows import Rows
from legato.distillation.settings import MTT
from legato.distillation.students import SCHOOLING
from legato.nets.blocks import depth_of
from legato.studies import distil_nets

TINY, RANDOM, KMEANS, HERDING, FULL = "distilled", "random", "k-means", "herding", "all data"
SELECTIONS = (RANDOM, KMEANS, HERDING)
ARMS = (TINY, *SELECTIONS, FULL)
OTHERS = ("mlp", "wider", "deeper", "layer norm", "resnet")
"""Networks that the images were not made for."""
DRAWS_SEED = 7_000_003


@dataclass(frozen=True)
class Asked:
    """What is to be made and measured."""

    ipc: int = 1
    minutes: float | None = 5.0
    steps: int | None = None
    net: str = "auto"
    width: int = 16
    depth: int | None = None
    settings: Settings = MTT
    recipe: Recipe = PLAIN
    schooling: Schooling = SCHOOLING
    experts: int = 5
    zca: bool = False
    students: int = 5
    cross: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Made:
    """A distilled set and what was measured of it."""

    tiny: DistilledSet
    arms: Mapping[str, Graded]
    """`ARMS`, on the test set."""
    others: Mapping[str, Mapping[str, Graded]]
    """Network -> distilled and the selections; empty unless asked for."""
    minutes: float
    """Of the distillation, experts included; where a stopped run went on, since then."""
    minutes_judged: float
    peak_mib: float
    """Of the whole process so far; NaN where the system does not say."""


def make(splits: Splits, asked: Asked, folder: Path, log: Callable[[Told], None] | None = None) -> Made:
    """Distil in `folder`, where a stopped run goes on, and compare. Test rows are read at the end, once an arm."""
    began = time.perf_counter()
    train, val, test = ((p.inputs, p.targets) for p in (splits.train, splits.validation, splits.test))
    net = distil_nets.build(asked.net, splits.input_shape, splits.num_classes, asked.width, asked.depth)
    tiny = distill(
        train, val=val, net=net, ipc=asked.ipc, minutes=asked.minutes, steps=asked.steps, settings=asked.settings, recipe=asked.recipe,
        experts=asked.experts, schooling=asked.schooling, zca=asked.zca, class_names=splits.class_names, folder=folder,
        device=asked.device, log=log,
    )  # fmt: skip
    halfway = time.perf_counter()
    seen, held, unseen = (prepared(tiny.preprocessing, rows, asked.device) for rows in (train, val, test))
    sets = arm_sets(tiny, seen, asked.students, asked.settings.seed)
    arms: dict[str, Graded] = {}
    strangers = other_nets(splits, asked) if asked.cross else {}
    count = len(ARMS) + len(strangers) * (len(ARMS) - 1)
    for name, rows in sets.items():
        arms[name] = graded(net, rows, held, unseen, schooling=asked.schooling)
        tell(log, len(arms) / count, f"{name}: {100 * sum(arms[name].accuracies) / asked.students:.1f}%")
    others: dict[str, dict[str, Graded]] = {}
    for place, (word, factory) in enumerate(strangers.items()):
        others[word] = {
            a: graded(factory, sets[a], held, unseen, schooling=asked.schooling) for a in (TINY, *SELECTIONS)
        }
        tell(log, (len(ARMS) + (place + 1) * (len(ARMS) - 1)) / count, word)
    return Made(tiny, arms, others, (halfway - began) / 60, (time.perf_counter() - halfway) / 60, peak_mib())


def arm_sets(tiny: DistilledSet, seen: Rows, students: int, seed: int) -> dict[str, list[Rows]]:
    """Arm -> what each of its students is trained on; random images and k-means are drawn again for each."""
    inputs, targets = seen
    generator = Generator().manual_seed(DRAWS_SEED + seed)
    draws = {
        RANDOM: [random_rows(targets, tiny.ipc, generator=generator) for _ in range(students)],
        KMEANS: [kmeans_rows(inputs, targets, tiny.ipc, seed=k) for k in range(students)],
        HERDING: [herding_rows(inputs, targets, tiny.ipc)] * students,
    }
    chosen = {name: [(inputs[rows], targets[rows]) for rows in drawn] for name, drawn in draws.items()}
    own = tiny.images.to(inputs), tiny.labels.to(targets)
    return {TINY: [own] * students, **chosen, FULL: [seen] * students}


def other_nets(splits: Splits, asked: Asked) -> dict[str, NetFactory]:
    """Networks of other kinds for the same inputs; of vectors the mlp alone."""
    shape, classes = splits.input_shape, splits.num_classes
    found: dict[str, NetFactory] = {"mlp": distil_nets.build("mlp", shape, classes)}
    if len(shape) == 3:
        found |= {
            "wider": distil_nets.build("blocks", shape, classes, 2 * asked.width, asked.depth),
            "deeper": distil_nets.build("blocks", shape, classes, asked.width, 1 + (asked.depth or depth_of(shape))),
            "layer norm": partial(nets.blocks, shape, classes, width=asked.width, depth=asked.depth, norm="layer"),
            "resnet": distil_nets.build("resnet", shape, classes),
        }  # fmt: skip
    return found


def prepared(preprocessing: Preprocessing, rows: Rows, device: str) -> Rows:
    """Raw rows as the networks see them."""
    return preprocessing.to(device).apply(rows[0].to(device)), rows[1].to(device)


def tell(log: Callable[[Told], None] | None, done: float, words: str) -> None:
    """How far the comparison is."""
    if log is not None:
        log(Told("students", done, words))


def peak_mib() -> float:
    """The largest memory of this process so far."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return float("nan")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return getrusage(RUSAGE_SELF).ru_maxrss / unit
