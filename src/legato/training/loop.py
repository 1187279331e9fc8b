"""The one training loop: any model, any objective, one process or several, stopped and taken up at any step."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from legato.training.checkpoint import Checkpoints
from legato.training.checks import check_options, check_parts, check_shares, make_optimizer, make_schedule
from legato.training.ema import moving_average
from legato.training.fitted import Fitted, KeepBest, Metrics
from legato.training.objective import EpochBatches, Objective
from legato.training.placement import place
from legato.training.progress import ProgressBar
from legato.training.run import Plan, Run


def fit(
    model: nn.Module,
    objective: Objective,
    batches: EpochBatches,
    *,
    epochs: int,
    optimizer: Callable[[list[nn.Parameter]], Optimizer],
    schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    best: str = "validation_error",
    stop: Callable[[Sequence[Metrics]], str | None] | None = None,
    device: str | torch.device = "cpu",
    autocast: str | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    folder: Path | None = None,
    checkpoint_seconds: float = 60.0,
    log: Callable[[Metrics], None] | None = None,
    progress: bool = False,
    accelerator: Any = None,
) -> Fitted:
    """Train `model` in place for `epochs` epochs and say how it went.

    Each optimizer step uses the gradient of the mean loss over all rows of its group: `accumulate` batches in every
    process. Micro-batches of other sizes weigh by their rows, and the last group of an epoch may be shorter; groups do
    not reach over epochs. Global random numbers are drawn from, never seeded; a resumed run restores them.

    Args:
        model: any Module, also a compiled one; moved to the device and left in training mode.
        objective: `Criterion(loss)` for a loss function.
        batches: gives (inputs, targets, index) of each epoch; with several processes, this process's share.
        epochs: >= 1.
        optimizer: makes the optimizer of the list of trainable parameters.
        schedule: makes a schedule from (optimizer, total_steps), stepped after each optimizer step; None = constant.
        validate: called after each epoch, in every process, with the model (the averaged one with `ema_decay`) in
            eval mode; autograd is left on.
        best: the metric of `validate` whose minimum marks the best weights.
        stop: called with the history after each epoch, in every process; words end the run, as `Fitted.diverged`.
        device: a torch device; with an accelerator, its device counts instead.
        autocast: "bf16" for forward passes in bfloat16 where torch deems it safe.
        accumulate: batches an optimizer step, >= 1.
        clip_norm: largest norm of the gradient, > 0.
        ema_decay: decay of an average of the weights, in [0, 1).
        folder: where checkpoints and `best.safetensors` stand; a run found there is taken up at its last checkpoint
            and becomes, on a CPU, equal in every bit to one that was never stopped. None writes nothing.
        checkpoint_seconds: seconds between checkpoints, >= 0; a run that is shorter writes nothing, a longer one also
            writes when it ends.
        log: called with each entry of the history, in the first process.
        progress: a progress bar on stderr, in the first process.
        accelerator: an `accelerate.Accelerator` for several processes (start with torchrun), without precision,
            accumulation or plugins of its own; None is plain torch.
    Raises: LegatoValueError or LegatoTypeError for an argument or first batch that cannot work; CheckpointError for
        a folder that holds another run or only damaged checkpoints, or that cannot be written; DeviceError for a device
        or processes that are not there. A loss that stops being finite raises nothing: see `Fitted.diverged`.
    """
    check_options(epochs, accumulate, clip_norm, ema_decay, checkpoint_seconds, autocast)
    check_parts(objective, batches)
    placement = place(accelerator, device)
    check_shares(placement.gather(len(batches)))
    model.to(placement.device).train()
    bare = getattr(model, "_orig_mod", model)  # what torch.compile was given
    made = make_optimizer(optimizer, model)
    plan = Plan(epochs, len(batches), accumulate, placement.processes)
    average = None if ema_decay is None else moving_average(bare, ema_decay)
    run = Run(
        plan=plan,
        placement=placement,
        objective=objective,
        batches=batches,
        called=placement.wrap(model),
        model=bare,
        optimizer=made,
        schedule=make_schedule(schedule, made, plan.total_steps),
        average=average,
        autocast=autocast,
        clip_norm=clip_norm,
        validate=validate,
        evaluated=model if average is None else average.module,
        stop=stop,
        keep_best=KeepBest(best, folder, writes=placement.rank == 0),
        checkpoints=None if folder is None else Checkpoints(folder, checkpoint_seconds),
        log=log if placement.rank == 0 else None,
    )
    run.resume()
    shown = progress and placement.rank == 0
    with ProgressBar(plan.total_steps, run.step, str(folder or "")) if shown else nullcontext() as run.bar:
        run.train()
    return Fitted(run.history, run.diverged, run.step, run.seconds, run.evaluated, run.keep_best.best)
