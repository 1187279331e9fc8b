"""The one training loop: any module, any objective, in one process or many, resumable at any step."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from legato.training import checks, rng
from legato.training.checkpoint import Checkpoints
from legato.training.ema import moving_average
from legato.training.objective import Batch, EpochBatches, Objective
from legato.training.placement import Placement, place

LOOK_EVERY = 50
"""Steps between two looks at the loss; each look waits for the device."""


@dataclass
class Fitted:
    """A finished run. `history` has one plain dict an epoch; a value that is not finite stands there as None."""

    model: nn.Module
    """The trained model; its moving average if one was asked for."""
    history: list[dict[str, Any]] = field(default_factory=list)
    diverged: str | None = None
    """At which step and why the run was stopped."""
    steps: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = None
    """The epoch with the smallest validation metric."""


def fit(
    model: nn.Module,
    objective: Objective,
    batches: EpochBatches,
    *,
    epochs: int,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    best: str = "validation_error",
    device: str | torch.device = "cpu",
    autocast: Literal["bf16"] | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    folder: Path | None = None,
    checkpoint_seconds: float = 60.0,
    log: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = False,
    accelerator: Any = None,
) -> Fitted:
    """Train `model` to minimise `objective`.

    Args:
        model: trained in place.
        objective: `Criterion(loss)` for a plain loss function.
        batches: `legato.data.Batches` or `IndexedLoader`, or anything with `len()` and `.epoch(number)`.
        epochs: passes through the batches, >= 1.
        optimizer: makes the optimizer of the trainable parameters.
        schedule: makes the learning-rate schedule of (optimizer, total steps); stepped after each optimizer step.
        validate: called after each epoch with the model (its average, if any) in eval mode; returns numbers for the history.
        best: the number of `validate` whose smallest value marks the best epoch.
        accumulate: batches whose rows make one optimizer step, as if they were one batch.
        clip_norm: largest norm of the gradient.
        ema_decay: in [0, 1): keep, validate and return a moving average of the weights.
        folder: for checkpoints, at most one each `checkpoint_seconds`; a run found there is resumed, on the CPU to the last bit.
        log: called with each epoch's dict.
        progress: show a bar with the time left.
        accelerator: an accelerate.Accelerator, for several processes; each is given its own part of every batch.
    Returns: a `Fitted`. A run whose loss is not finite is stopped and said there; it is no exception.
    Raises: LegatoValueError and LegatoTypeError for arguments or a first batch that cannot be used; DeviceError when the processes
        are not those that were started; CheckpointError when every checkpoint in `folder` is damaged.
    """
    checks.check_numbers(
        epochs=epochs, accumulate=accumulate, clip_norm=clip_norm, ema_decay=ema_decay, checkpoint_seconds=checkpoint_seconds
    )  # fmt: skip
    checks.check_parts(objective, batches)
    placement = place(accelerator, device, autocast)
    model.to(placement.device)
    made = checks.make_optimizer(optimizer, model)
    steps_an_epoch = math.ceil(len(batches) / accumulate)
    rates = checks.make_schedule(schedule, made, epochs * steps_an_epoch)
    wrapped, stepped = placement.wrap(model, made)
    run = _Run(
        placement,
        objective,
        model,
        wrapped,
        stepped,
        rates,
        clip_norm,
        moving_average(model, ema_decay) if ema_decay is not None else None,
    )
    checkpoints = Checkpoints(Path(folder) / "checkpoints", checkpoint_seconds) if folder is not None else None
    if checkpoints and (state := checkpoints.load()):
        run.load_state(state)
    with _bar(epochs * steps_an_epoch, progress and placement.rank == 0) as advance:
        while run.epoch < epochs and run.diverged is None:
            for group in run.groups(batches, accumulate):
                run.step(group)
                advance(run.steps)
                if checkpoints and checkpoints.due() and placement.rank == 0:
                    checkpoints.save(run.state())
            row = run.end_epoch(validate, best)
            if log and placement.rank == 0:
                log(row)
    return Fitted(run.evaluated, run.history, run.diverged, run.steps, run.seconds, run.best)


class _Run:
    """Everything that changes while a run goes on, and so everything that a checkpoint holds."""

    def __init__(
        self,
        placement: Placement,
        objective: Objective,
        model: nn.Module,
        wrapped: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler | None,
        clip_norm: float | None,
        average: Any,
    ) -> None:
        self.placement, self.objective, self.clip_norm = placement, objective, clip_norm
        self.model, self.wrapped, self.optimizer, self.schedule, self.average = (
            model,
            wrapped,
            optimizer,
            schedule,
            average,
        )
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.epoch = self.steps = self.step_in_epoch = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.diverged: str | None = None
        self.total = torch.zeros((), device=placement.device)
        self.epoch_rng: rng.State = {}
        self.started = time.perf_counter()

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and returned."""
        return self.average.module if self.average is not None else self.model

    def groups(self, batches: EpochBatches, accumulate: int) -> Iterator[list[Batch]]:
        """The accumulation groups of this epoch that are not done yet, on the device."""
        resumed = self.step_in_epoch > 0
        now = rng.capture(self.placement.device)
        if resumed:  # the iterator must see the random numbers that it saw at the epoch's beginning
            rng.restore(self.epoch_rng, self.placement.device)
        else:
            self.epoch_rng = now
        self.objective.begin_epoch(self.epoch)
        self.wrapped.train()
        rows = iter(batches.epoch(self.epoch))
        for _ in islice(rows, self.step_in_epoch * accumulate):
            pass
        if resumed:
            rng.restore(now, self.placement.device)
        while self.diverged is None and (group := list(islice(rows, accumulate))):
            if self.steps == 0:
                for batch in group:
                    checks.check_batch(batch)
            yield [self._move(batch) for batch in group]

    def step(self, group: list[Batch]) -> None:
        """One optimizer step on the rows of a group."""
        loss = self.objective.gradients(lambda: self._gradients(group))
        if self.clip_norm is not None:
            self.placement.clip(self.parameters, self.clip_norm)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
            _copy_buffers(self.model, self.average.module)
        self.objective.after_step(self.model)
        self.total += loss
        self.steps += 1
        self.step_in_epoch += 1
        if self.steps % LOOK_EVERY == 0:
            self._look()

    def end_epoch(self, validate: Callable[[nn.Module], dict[str, float]] | None, best: str) -> dict[str, Any]:
        """Close the epoch's books: mean loss, validation, best epoch."""
        self._look()
        self.seconds += time.perf_counter() - self.started
        self.started = time.perf_counter()
        means = self.placement.gather(float(self.total) / max(1, self.step_in_epoch))
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.steps,
            "train_loss": _finite(sum(means) / len(means)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": self.seconds,
        }
        if validate is not None and self.diverged is None:
            was_training = self.evaluated.training
            row |= {key: _finite(value) for key, value in validate(self.evaluated.eval()).items()}
            self.evaluated.train(was_training)
            if row.get(best) is not None and (self.best is None or row[best] < self.best[best]):
                self.best = row
        self.history.append(row)
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.total.zero_()
        return row

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule is not None else None,
            "objective": self.objective.state_dict(),
            "rng": rng.capture(self.placement.device),
            "epoch_rng": self.epoch_rng,
            "total": self.total,
            **{
                name: getattr(self, name)
                for name in ("epoch", "steps", "step_in_epoch", "seconds", "history", "best", "diverged")
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        for name in ("epoch", "steps", "step_in_epoch", "seconds", "history", "best", "diverged", "epoch_rng"):
            setattr(self, name, state[name])
        self.total.copy_(state["total"])
        rng.restore(state["rng"], self.placement.device)

    def _gradients(self, group: list[Batch]) -> Tensor:
        """Gradients of the mean over all rows of a group, whatever the sizes of its batches, and over all processes."""
        self.optimizer.zero_grad(set_to_none=True)
        rows = sum(len(batch[1]) for batch in group)
        scale = self.placement.rank_scale(rows)
        mean = torch.zeros((), device=self.placement.device)
        for position, batch in enumerate(group):
            with self.placement.accumulating(self.wrapped, last=position == len(group) - 1):
                with self.placement.precision():
                    loss = self.objective.loss(self.wrapped, batch, self.steps)
                loss = loss if len(group) == 1 else loss * (len(batch[1]) / rows)
                loss = loss if scale is None else loss * scale
                loss.backward()
            mean += loss.detach()
        return mean

    def _look(self) -> None:
        """Stop a run whose loss is not finite. All processes decide alike."""
        if not all(self.placement.gather(bool(torch.isfinite(self.total)))):
            self.diverged = f"the loss is not finite; noticed at step {self.steps}"

    def _move(self, batch: Batch) -> Batch:
        inputs, targets, index = (part.to(self.placement.device, non_blocking=True) for part in batch)
        return inputs, targets, index


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    for old, new in zip(target.buffers(), source.buffers(), strict=True):
        old.copy_(new)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@contextmanager
def _bar(steps: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; gives a function that takes the number of steps done."""
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("steps", total=steps)
        yield lambda done: bar.update(task, completed=done)
