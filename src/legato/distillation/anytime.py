"""A data set made tiny within a budget: the best set so far, by validation data, is always at hand."""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from legato import errors
from legato.distillation.distilled import DistilledSet
from legato.distillation.experts import PLAIN, Expert, Recipe, train_expert
from legato.distillation.flat import FlatModel, NetFactory, fresh
from legato.distillation.outer_loop import NotFiniteError, OuterLoop
from legato.distillation.preprocessing import Preprocessing
from legato.distillation.rows import Rows, check_rows, digest
from legato.distillation.selection import kmeans_rows, random_rows
from legato.distillation.settings import MTT, Settings
from legato.distillation.students import SCHOOLING, Schooling, student_accuracy
from legato.training.checkpoint import Checkpoints

EXPERTS_SHARE = 1 / 3
"""Of the minutes that experts may take; there is at least one."""
LOOKED_AT = 60
"""Outer steps over which a mean matching loss above 1 is no accident."""


@dataclass(frozen=True)
class Told:
    """How far a run is."""

    phase: str
    """experts or images."""
    done: float
    """Share of the phase, 0 .. 1."""
    words: str


def distill(
    train: Rows,
    *,
    val: Rows,
    net: NetFactory,
    ipc: int = 1,
    minutes: float | None = 5.0,
    steps: int | None = None,
    settings: Settings = MTT,
    recipe: Recipe = PLAIN,
    experts: int = 5,
    schooling: Schooling = SCHOOLING,
    zca: bool = False,
    evaluate_every: int = 30,
    class_names: Sequence[str] = (),
    folder: str | Path | None = None,
    device: str = "cpu",
    log: Callable[[Told], None] | None = None,
) -> DistilledSet:
    """Learn `ipc` inputs a class, such that training on them alone comes close to training on all.

    Experts are trained on all rows; then images and a step size are moved by the exact gradient of the trajectory matching loss. Every
    `evaluate_every` steps a student is trained on the images and judged on `val`; the set with the best student is returned, the
    real images it began with included. No test data is asked for.

    Args:
        train, val: raw rows (inputs, targets): images [N, C, H, W] as uint8 or floats in 0 .. 1, or vectors [N, D]; int64 [N].
        net: makes a network for them, without running statistics and dropout; torch's global random numbers are seeded for it and put back.
        ipc: images a class, >= 1.
        minutes, steps: of the whole run, and outer steps; the first limit that is reached ends it; one of them is needed.
        settings, recipe, schooling: of the matching, the experts and the students.
        experts: how many, >= 1; within `minutes` as many as fit in a third of them.
        zca: white images, as is usual for coloured ones.
        class_names: kept with the result.
        folder: experts and the state of the run stand there, and the same call goes on from them. A run of `steps` that was stopped ends in
            the same images as one that was not.
        device: of torch.
        log: told how far it is.
    Raises: LegatoValueError for arguments or rows that cannot work; CheckpointError for a folder of another run.
    Warns: LegatoWarning where the students move away from their targets, and where the run ended at numbers that are not finite.
    Source: Cazenavette et al. 2022, arXiv 2203.11932; parts of Shen, Yang, Lam 2023, arXiv 2310.10541.
    """
    began = time.perf_counter()
    _check(ipc, minutes, steps, experts, evaluate_every)
    num_classes = check_rows("train", train)
    check_rows("val", val, num_classes)
    settings.check(recipe)
    prepared = Preprocessing.fit(train[0], zca=zca).to(device)
    seen, held = ((prepared.apply(x.to(device)), y.to(device)) for x, y in (train, val))
    clock = Clock(began, minutes, steps, log)
    known = gather_experts(
        net, seen, held, recipe, settings, experts, None if folder is None else Path(folder) / "experts", clock
    )
    flat = FlatModel(fresh(net, settings.seed).to(device))
    rows = first_rows(flat, known, seen, ipc, settings)
    job = _Job(OuterLoop(flat, known, rows, settings), net, held, schooling, evaluate_every, clock)
    about = {
        "training data": digest(*train), "preprocessing": prepared.digest(), "network": str(flat.model), "ipc": str(ipc),
        "settings": json.dumps(asdict(settings)), "recipe": json.dumps(asdict(recipe)),
    }  # fmt: skip
    job.run(None if folder is None else Checkpoints(Path(folder) / "state", 30.0), about)
    provenance = {
        "ipc": ipc, "settings": asdict(settings), "recipe": asdict(recipe), "schooling": asdict(schooling), "experts": len(known),
        "expert_errors": [expert.errors[-1] for expert in known], "training_data": about["training data"],
        "history": job.history,
    }  # fmt: skip
    best = job.best
    return DistilledSet(
        best["images"].cpu(), rows[1].cpu(), float(best["alpha"]), prepared.to("cpu"), float(best["validation"]), int(best["step"]),
        tuple(class_names), job.stopped, provenance,
    )  # fmt: skip


class Clock:
    """The budget, and who is told of it."""

    def __init__(
        self, began: float, minutes: float | None, steps: int | None, log: Callable[[Told], None] | None
    ) -> None:
        self.began, self.limit, self.steps = began, None if minutes is None else 60 * minutes, steps
        self._log = log

    def seconds(self) -> float:
        """Since the start, those of earlier processes included."""
        return time.perf_counter() - self.began

    def share(self, step: int) -> float:
        """How much of the budget is spent, by time or by steps; 1 ends the run."""
        by_time = 0.0 if self.limit is None else self.seconds() / self.limit
        return max(by_time, 0.0 if self.steps is None else step / self.steps)

    def tell(self, phase: str, done: float, words: str) -> None:
        """Pass it on."""
        if self._log is not None:
            self._log(Told(phase, min(1.0, done), words))


def gather_experts(
    net: NetFactory,
    train: Rows,
    val: Rows,
    recipe: Recipe,
    settings: Settings,
    count: int,
    folder: Path | None,
    clock: Clock,
) -> list[Expert]:
    """Up to `count` experts of seeds that follow from the settings' one."""
    found: list[Expert] = []
    keep = settings.max_start - 1 + settings.expert_epochs
    for i in range(count):
        found.append(train_expert(net, train, val, recipe, seed=1000 * settings.seed + i, keep=keep, folder=folder))
        clock.tell("experts", (i + 1) / count, f"{i + 1} of {count}, validation error {found[-1].errors[-1]:.3f}")
        if clock.limit is not None and clock.seconds() > EXPERTS_SHARE * clock.limit:
            break
    return found


def first_rows(flat: FlatModel, experts: Sequence[Expert], train: Rows, ipc: int, settings: Settings) -> Rows:
    """What the images begin as: real ones, or noise of unit variance."""
    inputs, targets = train
    generator = Generator().manual_seed(settings.seed)
    rows = random_rows(targets, ipc, generator=generator)  # also the check that there are enough
    if settings.init == "noise":
        noise = torch.randn((len(rows), *inputs.shape[1:]), generator=generator)
        return noise.to(inputs), targets[rows]
    if settings.init == "kmeans-pixel":
        rows = kmeans_rows(inputs, targets, ipc, seed=settings.seed)
    elif settings.init == "kmeans-logit":
        rows = kmeans_rows(logits(flat, experts[0], inputs), targets, ipc, seed=settings.seed)
    return inputs[rows], targets[rows]


@torch.no_grad()
def logits(flat: FlatModel, expert: Expert, inputs: Tensor) -> Tensor:
    """What the finished expert says of inputs, [N, C]."""
    theta = expert.final.to(inputs)
    return torch.cat([flat(theta, part) for part in inputs.split(2048)])


class _Job:
    """The outer loop with its budget, its best set and its checkpoints."""

    def __init__(
        self, loop: OuterLoop, net: NetFactory, held: Rows, schooling: Schooling, every: int, clock: Clock
    ) -> None:
        self.loop, self.net, self.held, self.schooling, self.every, self.clock = (
            loop,
            net,
            held,
            schooling,
            every,
            clock,
        )
        self.history: list[dict[str, float]] = []
        self.recent: list[float] = []
        self.best: dict[str, Any] = {}
        self.stopped = ""
        self.warned = False

    def run(self, checkpoints: Checkpoints | None, about: Mapping[str, str]) -> None:
        """Until the budget is spent; `about` is what must be equal for a run to go on."""
        self._resume(checkpoints, about)
        if not self.history:
            self._evaluate()
        while not self.stopped and self.clock.share(self.loop.taken) < 1:
            try:
                self.recent.append(self.loop.step())
            except NotFiniteError as problem:
                self.stopped = str(problem)
                warnings.warn(f"{problem} The best set before it is kept.", errors.LegatoWarning, stacklevel=3)
                break
            self._watch()
            if self.loop.taken % self.every == 0:
                self._evaluate()
                if checkpoints is not None and checkpoints.due():
                    checkpoints.save(self._state(about))
        if self.history[-1]["step"] != self.loop.taken and not self.stopped:
            self._evaluate()
        if checkpoints is not None:
            checkpoints.save(self._state(about))

    def _evaluate(self) -> None:
        loop, seed = self.loop, self.loop.settings.seed
        found = student_accuracy(self.net, (loop.images, loop.labels), self.held, loop.alpha, self.schooling, seed=seed)
        loss = sum(self.recent[-self.every :]) / max(1, len(self.recent[-self.every :]))
        self.history.append({"step": loop.taken, "loss": loss, "alpha": loop.alpha, "validation": found})
        if not self.best or found > self.best["validation"]:
            self.best = {"images": loop.images.clone(), "alpha": loop.alpha, "validation": found, "step": loop.taken}
        words = (
            f"step {loop.taken}, matching loss {loss:.3f}, validation {found:.3f}, best {self.best['validation']:.3f}"
        )
        self.clock.tell("images", self.clock.share(loop.taken), words)

    def _watch(self) -> None:
        self.recent = self.recent[-max(LOOKED_AT, self.every) :]
        if not self.warned and len(self.recent) >= LOOKED_AT and sum(self.recent[-LOOKED_AT:]) > LOOKED_AT:
            self.warned = True
            text = (
                f"the matching loss has been above 1 for {LOOKED_AT} steps: students end further from their targets than they began. "
                "Fix: a lower alpha or lr_pixels, or more student_steps"
            )
            warnings.warn(text, errors.LegatoWarning, stacklevel=4)

    def _state(self, about: Mapping[str, str]) -> dict[str, Any]:
        return {
            "about": dict(about), "loop": self.loop.state_dict(), "history": self.history, "recent": self.recent, "best": self.best,
            "seconds": self.clock.seconds(), "stopped": self.stopped,
        }  # fmt: skip

    def _resume(self, checkpoints: Checkpoints | None, about: Mapping[str, str]) -> None:
        state = None if checkpoints is None else checkpoints.load()
        if state is None or checkpoints is None:
            return
        differs = [name for name in about if state["about"][name] != about[name]]
        if differs:
            raise errors.CheckpointError(
                f"{checkpoints.folder} holds another run: its {', '.join(differs)} differ. Fix: choose another folder."
            )
        self.loop.load_state_dict(state["loop"])
        self.history, self.recent, self.best, self.stopped = (
            state[k] for k in ("history", "recent", "best", "stopped")
        )
        self.best["images"] = self.best["images"].to(self.loop.images)
        self.clock.began -= state["seconds"]


def _check(ipc: int, minutes: float | None, steps: int | None, experts: int, evaluate_every: int) -> None:
    for name, value in (("ipc", ipc), ("experts", experts), ("evaluate_every", evaluate_every), ("steps", steps)):
        if value is not None and value < 1:
            raise errors.argument(name, expected="a whole number >= 1", got=value)
    if minutes is None and steps is None:
        raise errors.argument("minutes, steps", expected="at least one limit", got="none")
    if minutes is not None and not minutes > 0:
        raise errors.argument("minutes", expected="a number > 0", got=minutes)
