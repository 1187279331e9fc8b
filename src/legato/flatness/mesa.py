"""MESA: a loss that holds the outputs back near those of the moving average of the model itself."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from legato import errors
from legato.flatness.trajectory import (
    Ramp,
    Tally,
    check_epoch,
    check_tau,
    check_whole,
    is_number,
    trajectory_loss,
    warn,
)

LONGEST_HORIZON = 0.25
"""Share of a run above which the horizon of the average draws a warning."""
FEWEST_STEPS = 500
"""Steps of a run below which there is a warning."""
Forward = Callable[[nn.Module, Any], Tensor]


@final
class MESA:
    r"""The memory-efficient form of SAF: `loss = criterion(output, targets) + mesa(output, inputs)`, and `mesa.update()` after each step.

    mesa = weight(e) * trajectory_loss(output, teacher(inputs), tau), where weight is 0 up to epoch `start`, then rises to lam over `warmup`
    epochs. The teacher is the moving average of the model: v <- beta v + (1 - beta) w after each step, in eval mode, without gradients, and
    what it draws at random does not move the random numbers of the training. Floating point buffers, such as running statistics, are
    averaged with the weights; integer ones are copied. Call `begin_epoch(e)` before each epoch, or write `for epoch in mesa.epochs(90)`.

    beta is `decay`, or follows from a horizon in epochs: 1 - 1 / (horizon_epochs * steps_per_epoch), but at most (1 + t) / (10 + t)
    after t steps, so that the average forgets the start. Where steps_per_epoch is not given, the steps of the first epoch are counted, and
    until it is over (1 + t) / (10 + t) alone is used.

    A teacher costs one forward pass a step, and the memory of the weights once more.

    Args:
        model: a plain model, of which the teacher is a copy; or an AveragedModel of torch, which is used as it is and which you update, not
            `after_step`. Compiled and distributed wrappers are taken off. The average of another package is used as it is with copy=False.
        lam: >= 0.
        tau: > 0, the temperature.
        horizon_epochs: > 0; the average has a memory of about this many epochs.
        decay: beta in [0, 1], in place of the horizon; used from the first step on.
        start: the last epoch, counted from 0, without the term; -1 for none.
        steps_per_epoch: >= 1, steps of the optimizer in an epoch.
        warmup: epochs after `start` with a smaller lam.
        copy: None for what `model` says: no copy of an AveragedModel.
        forward: `(teacher, inputs) -> logits`; None for teacher(inputs).
    Raises: LegatoValueError for a number out of range, or weights shorter than float32, whose average would stand still.
    Source: Du et al. 2022, arXiv 2205.14083; lam=0.8, tau=5, start=5 as in its code, which fixes decay=0.9998. The horizon is ours.
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float = 0.8,
        tau: float = 5.0,
        horizon_epochs: float = 3.0,
        decay: float | None = None,
        start: int = 5,
        steps_per_epoch: int | None = None,
        *,
        warmup: int = 0,
        copy: bool | None = None,
        forward: Forward | None = None,
    ) -> None:
        check_tau(tau)
        self.ramp, self.tau, self.horizon_epochs, self.fixed_decay = (
            Ramp(lam, start, warmup),
            tau,
            horizon_epochs,
            decay,
        )
        if not (is_number(horizon_epochs) and horizon_epochs > 0):
            raise errors.argument("horizon_epochs", expected="a plain finite number > 0", got=horizon_epochs)
        if decay is not None and not (is_number(decay) and 0 <= decay <= 1):
            raise errors.argument(
                "decay", expected="a plain number in [0, 1]", got=decay, fix="leave it out and set horizon_epochs"
            )
        if steps_per_epoch is not None:
            check_whole("steps_per_epoch", steps_per_epoch, 1)
        if not isinstance(model, nn.Module):
            raise errors.argument_type("model", expected="a torch.nn.Module", got=type(model).__name__)
        self.steps_per_epoch = steps_per_epoch
        self.forward = forward
        self.owns = not isinstance(model, AveragedModel) if copy is None else copy
        self.model = _bare(model)
        self.teacher = _copied(self.model) if self.owns else model
        self.epoch, self.begun, self.steps, self.steps_before = 0, False, 0, 0
        self.planned: int | None = None
        self.warned: set[str] = set()
        self._tally = Tally()

    def __repr__(self) -> str:
        decay = f"horizon_epochs={self.horizon_epochs:g}" if self.fixed_decay is None else f"decay={self.fixed_decay:g}"
        return f"MESA(lam={self.ramp.lam:g}, tau={self.tau:g}, {decay}, start={self.ramp.start})"

    @property
    def weight(self) -> float:
        """The factor of the loss in this epoch."""
        return self.ramp(self.epoch)

    @property
    def decay(self) -> float:
        """beta at the next update."""
        if self.fixed_decay is not None:
            return self.fixed_decay
        early = (1 + self.steps) / (10 + self.steps)
        if self.steps_per_epoch is None:
            return early
        return min(early, max(0.0, 1 - 1 / (self.horizon_epochs * self.steps_per_epoch)))

    @property
    def stats(self) -> dict[str, float]:
        """This epoch so far: rows that were compared and their `mean_divergence`, in nats times tau^2; and `decay`. Waits for the device."""
        return self._tally.read() | {"decay": self.decay}

    def __call__(self, logits: Tensor, inputs: Any, targets: Tensor | None = None) -> Tensor:
        """The term of a batch, a scalar.

        Args:
            logits: [B, C] or [B, C, ...], what the criterion sees.
            inputs: what the model saw, mixed and augmented as it was.
            targets: only looked at, to warn when the term outweighs the cross-entropy.
        Returns: >= 0 up to rounding, float32 or float64; 0 without a graph where the weight is 0.
        Raises: LegatoTypeError or LegatoValueError for logits that are not floating point, or of another shape than the teacher's.
        """
        term = torch.compiler.disable(self._term) if torch.compiler.is_compiling() else self._term
        loss: Tensor = term(logits, inputs, targets)
        return loss

    def look(self, inputs: Any) -> Tensor:
        """What the teacher says, without a graph; modes and random numbers are left as they were."""
        with torch.no_grad(), _in_eval(self.teacher), _random_numbers_kept(self.teacher):
            output: Tensor = self.teacher(inputs) if self.forward is None else self.forward(self.teacher, inputs)
        if not isinstance(output, Tensor):
            raise errors.argument_type(
                "forward", expected="a tensor of logits from the teacher", got=type(output).__name__,
                fix="pass forward=lambda teacher, inputs: teacher(inputs).logits",
            )  # fmt: skip
        return output

    def penalty(self, output: Tensor, batch: tuple[Any, Any, Any]) -> Tensor:
        """The term of a batch (inputs, targets, index)."""
        term: Tensor = self(output, batch[0], batch[1] if isinstance(batch[1], Tensor) else None)
        return term

    def begin_epoch(self, epoch: int) -> None:
        """Say which epoch, counted from 0, is about to begin; the same one again changes nothing.

        Raises: LegatoValueError for an epoch before the present one.
        """
        check_epoch(epoch, self.epoch, self.begun)
        if epoch != self.epoch:
            self._look_back()
            self.epoch, self._tally, self.steps_before = epoch, Tally(), self.steps
        self.begun = True

    def set_epoch(self, epoch: int) -> None:
        """`begin_epoch`, under the name that torch's DistributedSampler has for it."""
        self.begin_epoch(epoch)

    def plan(self, epochs: int) -> None:
        """Say how long the run is, so that a horizon or a start that does not fit is warned of."""
        check_whole("epochs", epochs, 1)
        self.planned = epochs
        if self.ramp.start >= epochs - 1:
            self._warn_once("start", f"it never acts: start={self.ramp.start} is the last epoch without it, and there are {epochs}. Fix: start={int(0.3 * epochs)}")  # fmt: skip
        if self.fixed_decay is None and self.owns and self.horizon_epochs > LONGEST_HORIZON * epochs:
            self._warn_once("horizon", f"horizon_epochs={self.horizon_epochs:g} is more than a quarter of {epochs} epochs: the teacher stays immature. Fix: horizon_epochs={epochs / 10:g}")  # fmt: skip

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs 0 .. count - 1, or those that are left after `load_state_dict`, each begun."""
        self.plan(count)
        for epoch in range(self.epoch, count):
            self.begin_epoch(epoch)
            yield epoch

    def update(self, model: nn.Module | None = None) -> None:
        """Let the weights into the average, after a step of the optimizer. An AveragedModel that was handed in is updated by its own rule.

        Args:
            model: whose weights; None for the model that this object was made of, which an AveragedModel has not.
        """
        if not self.owns:
            if model is None or not isinstance(self.teacher, AveragedModel):
                raise errors.argument(
                    "model", expected="the model, for a teacher that is not ours", got=model, fix="update it yourself"
                )
            self.teacher.update_parameters(model)
        else:
            _average(self.teacher, self.model if model is None else _bare(model), self.decay)
        self.steps += 1

    def after_step(self, model: nn.Module) -> None:
        """`update`, but for an average that was handed in, which whoever owns it updates; it counts the step all the same."""
        if self.owns:
            self.update(model)
        else:
            self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Epoch, steps, and the teacher's own tensors, no copies, if it is ours."""
        state = {name: getattr(self, name) for name in ("epoch", "steps", "steps_before", "steps_per_epoch")}
        return state | ({"teacher": dict(self.teacher.state_dict())} if self.owns else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken. Without the key "teacher" the teacher stays as it is."""
        for name in ("epoch", "steps", "steps_before", "steps_per_epoch"):
            setattr(self, name, state[name])
        if self.owns and "teacher" in state:
            self.teacher.load_state_dict(state["teacher"])
        self.begun, self._tally = True, Tally()

    def _term(self, logits: Tensor, inputs: Any, targets: Tensor | None) -> Tensor:
        weight = self.weight
        if weight == 0:
            return logits.new_zeros((), dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
        loss = weight * trajectory_loss(logits, self.look(inputs), self.tau)
        rows = logits.numel() // max(1, logits.shape[1])
        self._tally.add(rows, rows, loss, weight)
        self._tally.compare(loss, logits, targets)
        return loss

    def _look_back(self) -> None:
        """At the epoch that is over."""
        taken = self.steps - self.steps_before
        if self.steps_per_epoch is None and taken:
            self.steps_per_epoch = taken
        fault = self._tally.fault(self.epoch, self.ramp.lam)
        if fault:
            self._warn_once("penalty", fault)
        if self.planned and self.steps_per_epoch and self.owns:
            self._look_at_steps(self.planned * self.steps_per_epoch)

    def _look_at_steps(self, steps: int) -> None:
        if steps < FEWEST_STEPS:
            self._warn_once("steps", f"{steps} steps are few: the average is immature and drags the model back. Fix: more epochs, smaller batches, a later start, or a small lam")  # fmt: skip
        if self.fixed_decay is not None and (1 - self.fixed_decay) * LONGEST_HORIZON * steps < 1:
            self._warn_once("horizon", f"decay={self.fixed_decay:g} remembers more than a quarter of {steps} steps: the teacher stays immature. Fix: decay={1 - 1 / max(1, 0.1 * steps):.4g}")  # fmt: skip

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            warn(f"MESA: {text}")


def _bare(model: nn.Module) -> nn.Module:
    """Without DistributedDataParallel and torch.compile."""
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or hasattr(model, "_orig_mod"):
        inner: Any = getattr(model, "_orig_mod", None) or model.module
        model = inner
    return model


def _copied(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise errors.argument(
                "model", expected="weights in float32 or float64", got=f"{parameter.dtype} in {name}",
                fix="keep the weights in float32 and train under torch.autocast: an average of short numbers stands still",
            )  # fmt: skip
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def _average(teacher: nn.Module, model: nn.Module, decay: float) -> None:
    """teacher <- decay * teacher + (1 - decay) * model; each tensor once, however often it is tied; integers are copied."""
    averages, news = [], []
    pairs = [
        *zip(teacher.parameters(), model.parameters(), strict=True),
        *zip(teacher.buffers(), model.buffers(), strict=True),
    ]
    for average, new in pairs:
        if average.is_floating_point():
            averages.append(average)
            news.append(new.detach())
        else:
            average.copy_(new)
    if averages:
        torch._foreach_lerp_(averages, news, 1 - decay)


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def _random_numbers_kept(module: nn.Module) -> Iterator[None]:
    """What is drawn inside comes from the global generators, which are afterwards where they were."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    state = None if accelerator is None else accelerator.get_rng_state(device)
    before = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(before)
        if accelerator is not None:
            accelerator.set_rng_state(state, device)
