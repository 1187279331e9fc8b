"""One run while it goes on: its parts, how far it is, and how it is written down and taken up again."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from legato import errors
from legato.training import rng
from legato.training.checkpoint import Checkpoints
from legato.training.checks import check_batch, check_loss, check_metrics, check_own_rows
from legato.training.fitted import KeepBest, Metrics, plain_number
from legato.training.losses import EpochLosses
from legato.training.objective import Batch, EpochBatches, Objective
from legato.training.placement import Placement
from legato.training.plain import flatten
from legato.training.progress import ProgressBar

LOOK_EVERY = 50
"""Steps between two looks at the losses; only then, and at the end of an epoch, does the loop wait for the device."""

SHOWN = 3
"""Differences to another run's checkpoint that its error names."""


@dataclass(frozen=True)
class Plan:
    """What must be equal for a checkpoint to be taken up."""

    epochs: int
    batches: int
    accumulate: int
    processes: int

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * math.ceil(self.batches / self.accumulate)


@dataclass(kw_only=True)
class Run:
    """The parts of a run, and how far it is."""

    plan: Plan
    placement: Placement
    objective: Objective
    batches: EpochBatches
    called: nn.Module  # what the objective calls: the model, compiled or wrapped for several processes
    model: nn.Module  # the same model, bare
    optimizer: Optimizer
    schedule: LRScheduler | None
    average: AveragedModel | None
    autocast: str | None
    clip_norm: float | None
    validate: Callable[[nn.Module], Mapping[str, float]] | None
    evaluated: nn.Module
    stop: Callable[[Sequence[Metrics]], str | None] | None
    keep_best: KeepBest
    checkpoints: Checkpoints | None
    log: Callable[[Metrics], None] | None

    epoch: int = 0
    position: int = 0  # batches of this epoch that are done
    step: int = 0
    learning_rate: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    history: list[Metrics] = field(default_factory=list)
    losses: EpochLosses = field(default_factory=EpochLosses)
    diverged: str | None = None
    epoch_rng: rng.State | None = None  # random numbers at the start of this epoch
    interrupted: Metrics | None = None  # this process's state in the middle of an epoch, until it is taken up
    parameters: list[nn.Parameter] = field(init=False)
    bar: ProgressBar | None = None
    checked: bool = False

    def __post_init__(self) -> None:
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def train(self) -> None:
        """All epochs that are left."""
        while self.epoch < self.plan.epochs and self.diverged is None:
            began = time.perf_counter() - self.epoch_seconds
            stream = self._open_epoch()
            while self.diverged is None and (group := list(islice(stream, self.plan.accumulate))):
                self._take_step(group)
                self.position += len(group)
                self.epoch_seconds = time.perf_counter() - began
                self._look_sometimes()
            self._close_epoch(began)

    def _open_epoch(self) -> Iterator[Batch]:
        if self.checkpoints is not None and self.interrupted is None:
            self.epoch_rng = rng.capture(self.placement.device)
        self.objective.begin_epoch(self.epoch)
        stream = iter(self.batches.epoch(self.epoch))
        if self.interrupted is not None:
            deque(islice(stream, self.position), maxlen=0)  # the skipped batches draw what they drew before
            self._take_up(self.interrupted)
            self.interrupted = None
        return stream

    def _take_step(self, group: list[Batch]) -> None:
        if not self.checked:
            check_batch(group[0])
            check_own_rows(self.placement.gather(group[0][2]))
        device = self.placement.device
        here: list[Batch] = [_moved(batch, device) for batch in group]
        rows = sum(len(targets) for _, targets, _ in here)
        scale = self.placement.rank_scale(rows)
        loss = self.objective.gradients(partial(self._gradients_of_mean, here, rows, scale))
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.objective.after_step(self.model)
        self.losses.add(loss, rows)
        self.step += 1

    def _gradients_of_mean(self, group: list[Batch], rows: int, scale: Tensor | None) -> Tensor:
        """The closure of `Objective.gradients`: gradients of the group's mean loss over rows, and that loss."""
        self.optimizer.zero_grad(set_to_none=True)
        mean: Tensor | None = None
        for i, batch in enumerate(group, start=1):
            with self.placement.accumulating(self.called, last=i == len(group)):
                with self._precision():
                    loss = self.objective.loss(self.called, batch, self.step)
                if not self.checked:
                    check_loss(loss)
                    self.checked = True
                if len(group) > 1:
                    loss = loss * (len(batch[1]) / rows)
                (loss if scale is None else loss * scale).backward()
            mean = loss.detach() if mean is None else mean + loss.detach()
        assert mean is not None  # a group has at least one batch
        return mean

    def _precision(self) -> AbstractContextManager[Any]:
        """Around each forward pass: torch.autocast in bfloat16, or nothing."""
        return torch.autocast(self.placement.device.type, torch.bfloat16) if self.autocast else nullcontext()

    def _look_sometimes(self) -> None:
        """Each LOOK_EVERY steps all processes look at the losses and the clock; one alone keeps time at every step."""
        if self.bar is not None:
            self.bar.show(self.step)
        alone = self.placement.processes == 1
        if self.step % LOOK_EVERY == 0 or (alone and self._checkpoint_due()):
            due = self._look()
            if due and self.diverged is None and self.position < self.plan.batches:
                self._checkpoint()

    def _look(self) -> bool:
        """Read the losses, agree on whether the run has diverged, and return whether a checkpoint is due."""
        self.losses.read(self.step)
        reports = self.placement.gather((self.losses.first_bad, self._checkpoint_due()))
        bad = [first for first, _ in reports if first is not None]
        if bad:
            step, value = min(bad)
            self.diverged = f"the loss is not finite: {value} at step {step}, in epoch {self.epoch}"
        due: bool = reports[0][1]
        return due

    def _close_epoch(self, began: float) -> None:
        due = self._look()
        if self.diverged is None and self.position != self.plan.batches:
            expected = f"{self.plan.batches} batches in epoch {self.epoch}, as len(batches) says"
            raise errors.argument("batches", expected=expected, got=self.position)
        sums = self.placement.gather((self.losses.total, self.losses.rows))
        mean = sum(total for total, _ in sums) / max(1, sum(rows for _, rows in sums))
        entry: Metrics = {
            "epoch": self.epoch,
            "step": self.step,
            "train_loss": plain_number(mean),
            "learning_rate": plain_number(self.learning_rate),
        }
        if self.diverged is None and self.validate is not None:
            metrics = check_metrics(self._validation(self.validate), entry.keys() | {"seconds"})
            self.keep_best.look(metrics, self.epoch, getattr(self.evaluated, "_orig_mod", self.evaluated))
            entry |= metrics
        entry["seconds"] = time.perf_counter() - began
        self.seconds += entry["seconds"]
        self.history.append(entry)
        self.epoch, self.position, self.epoch_seconds, self.losses = self.epoch + 1, 0, 0.0, EpochLosses()
        if self.log is not None:
            self.log(dict(entry))
        if self.stop is not None and self.diverged is None:
            self.diverged = self.stop(self.history)
        if due and self.diverged is None:
            self._checkpoint()

    def _validation(self, validate: Callable[[nn.Module], Mapping[str, float]]) -> Mapping[str, float]:
        modes = [(module, module.training) for module in self.evaluated.modules()]
        self.evaluated.eval()
        try:
            return validate(self.evaluated)
        finally:
            for module, training in modes:
                module.training = training

    def _checkpoint_due(self) -> bool:
        """By the clock; and at the end of a run that has written checkpoints."""
        if self.checkpoints is None:
            return False
        at_end = self.position == self.plan.batches and self.epoch + 1 == self.plan.epochs
        return self.checkpoints.due() or (at_end and self.checkpoints.any())

    def _checkpoint(self) -> None:
        """Write the best weights, then the checkpoint; every process hands its own part to the first."""
        assert self.checkpoints is not None
        mine = {
            "objective": self.objective.state_dict(),
            "rng": rng.capture(self.placement.device),
            "epoch_rng": self.epoch_rng if self.position else None,
            "losses": (self.losses.total, self.losses.rows),
        }
        everyone = self.placement.gather(mine)
        if self.placement.rank == 0:
            self.keep_best.write()
            names = ("epoch", "position", "step", "learning_rate", "seconds", "epoch_seconds", "history")
            self.checkpoints.save(
                {
                    "plan": asdict(self.plan),
                    "parts": self._kinds(),
                    "progress": {name: getattr(self, name) for name in names},
                    **{name: part.state_dict() for name, part in self._stateful().items()},
                    "processes": everyone,
                }
            )

    def resume(self) -> None:
        """Go on where the newest checkpoint stands, if there is one; see at once that this run can write one."""
        state = None
        if self.checkpoints is not None:
            self.checkpoints.check_place()
            parts: dict[str, Any] = {
                "objective": self.objective,
                "optimizer": self.optimizer,
                "schedule": self.schedule,
            }
            flatten({name: part.state_dict() for name, part in parts.items() if part is not None}, "run", {})
            state = self.checkpoints.load()
        steps = self.placement.gather(None if state is None else state["progress"]["step"])
        if len(set(steps)) > 1:
            fix = "put the folder on a disk that all processes share"
            text = errors.message("folder", expected="one checkpoint for all processes", got=f"steps {steps}", fix=fix)
            raise errors.CheckpointError(text)
        if state is not None:
            self._go_on_from(state)

    def _go_on_from(self, state: Metrics) -> None:
        self._check_same_run(state)
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        for name, value in state["progress"].items():
            setattr(self, name, value)
        self.keep_best.resume()
        mine = state["processes"][self.placement.rank]
        if self.position:
            self.interrupted, self.epoch_rng = mine, mine["epoch_rng"]
            rng.restore(mine["epoch_rng"], self.placement.device)
        else:
            self._take_up(mine)

    def _check_same_run(self, state: Metrics) -> None:
        """The checkpoint must be of this run: same plan, same kinds of parts, same weights by name, type and shape."""
        was = state["plan"] | state.get("parts", {}) | _outline(state["model"])
        now = asdict(self.plan) | self._kinds() | _outline(self.model.state_dict())
        differ = [name for name in was | now if was.get(name) != now.get(name)]
        if differ:
            expected, got = ({name: side.get(name) for name in differ[:SHOWN]} for side in (now, was))
            fix = "use another folder, or empty this one to start again"
            text = errors.message("folder", expected=f"a checkpoint of this run, with {expected}", got=got, fix=fix)
            raise errors.CheckpointError(text)

    def _kinds(self) -> dict[str, str]:
        """Names of classes of what has a state, such as {"model": "Sequential", "optimizer": "SGD"}."""
        return {name: type(part).__name__ for name, part in self._stateful().items()}

    def _take_up(self, mine: Metrics) -> None:
        self.objective.load_state_dict(mine["objective"])
        self.losses.total, self.losses.rows = mine["losses"]
        rng.restore(mine["rng"], self.placement.device)

    def _stateful(self) -> dict[str, Any]:
        parts = {"model": self.model, "average": self.average, "optimizer": self.optimizer, "schedule": self.schedule}
        return {name: part for name, part in parts.items() if part is not None}


def _outline(state: Mapping[str, Any]) -> dict[str, str]:
    """What a model's state is made of, such as {"weight 0.bias": "float32[10]"}."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {f"weight {name}": f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for name, t in tensors.items()}


def _moved(batch: Batch, device: torch.device) -> Batch:
    inputs, targets, index = batch
    return (
        inputs.to(device, non_blocking=True),
        targets.to(device, non_blocking=True),
        index.to(device, non_blocking=True),
    )
