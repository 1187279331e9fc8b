"""Two lines in anybody's training script: what attention, gradients, weights and logits do, without changing a bit of the run."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, final

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from legato import errors
from legato.stability.attention import Values, log_sum_exp_interval
from legato.stability.readings import Reading, output_logits
from legato.stability.rules import Alarm, Thresholds, alarms
from legato.stability.watched_step import Options, WatchedStep, parts_of

WAYS = ("scaled_dot_product_attention", "multi_head_attention_forward", "softmax")
"""Of looking for attention; see `Interception`."""


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    every: int = 20,
    exact_every: int = 10,
    log: Callable[[dict[str, float], int], object] | None = None,
    entropy: bool = True,
    updates: bool = True,
    logits: Callable[[Any], Tensor | None] | None = output_logits,
    blocks: Mapping[str, nn.Module] | None = None,
    thresholds: Thresholds | None = None,
    start: int = 0,
    keep: int = 100,
    reduce: bool = True,
    group: Any = None,
) -> "Watcher":
    """Watch the training of a model from inside a `with` statement: `with watch(model, optimizer) as watcher:`.

    Steps are those of the optimizer, counted by its own hooks. Steps 0, every, 2 * every ... are watched: forward passes of the model
    with gradients on are seen, the gradients as the optimizer finds them, and what it adds to the weights. Forward passes
    without gradients (validation) are left out; with gradient accumulation all those of the step count. On other steps
    nothing of ours but two counting hooks of the optimizer is in place. Compiled models run eagerly on watched steps.

    Over several processes all must watch, and all get the same readings; the first alone logs and warns.

    Args:
        model: bare, compiled, in DistributedDataParallel or fully sharded; its `__call__` must be what trains.
        optimizer: one, or several that step once each in a step.
        every: >= 1, optimizer steps.
        exact_every: every so many watched steps is an exact one, where attention logits are made again by blocks; 0: none.
        log: called after each watched step with `Reading.metrics()` and the step: `print`, `accelerator.log`, `wandb.log`.
        entropy: False leaves out the entropies that cost another pass of the kernel, except on exact steps.
        updates: False leaves out the updates, which need one more copy of the weights during a watched step of the optimizer.
        logits: takes the logits [..., V] out of what the model returns; None: they are not looked at.
        blocks: modules whose outputs are measured; by default those of each nn.ModuleList or nn.Sequential of one kind.
        thresholds: of the early warnings.
        start: how many optimizer steps were done before, in a run that goes on.
        keep: how many readings are kept, and looked back at by the early warnings.
        reduce: False: each process has readings of its own.
        group: of processes; by default all.
    Returns: the watcher, which begins when `with` does.
    Raises: LegatoTypeError or LegatoValueError for arguments that cannot be used, an optimizer without a weight of the model included.
    """
    options = Options(every, exact_every, log, entropy, updates, logits, blocks, thresholds, start, keep, reduce, group)
    return Watcher(model, optimizer, options)


@final
class Watcher:
    """What `watch` returns.

    `readings` holds the last readings, `latest` the last one, `alarms` the early warnings, each once a rule and place.

    Args:
        model, optimizer: as in `watch`.
        options: the others of its arguments.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], options: Options | None = None
    ) -> None:
        self.options = options or Options()
        self.parts = parts_of(model, _optimizers(model, optimizer), self.options.blocks)
        if not any(self.parts.weights):
            raise errors.argument(
                "optimizer", expected="one that trains parameters of the model", got="none of them",
                fix="pass the optimizer made from model.parameters()",
            )  # fmt: skip
        self.step = self.options.start
        self.readings: list[Reading] = []
        self.alarms: list[Alarm] = []
        self.seen: Counter[str] = Counter()
        self._handles: list[Any] = []
        self._now: WatchedStep | None = None
        self._watched = 0
        self._stepped: set[int] = set()

    @property
    def latest(self) -> Reading | None:
        """The last reading."""
        return self.readings[-1] if self.readings else None

    def __enter__(self) -> Self:
        if self._handles:
            raise errors.argument("watcher", expected="one that is not watching yet", got="one inside its `with`")
        for place, optimizer in enumerate(self.parts.optimizers):
            self._handles.append(optimizer.register_step_pre_hook(lambda *_, place=place: self._before(place)))
            self._handles.append(optimizer.register_step_post_hook(lambda *_, place=place: self._after(place)))
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None and not self.readings:
            warnings.warn(
                "watch: the optimizer did not step, so there is no reading", errors.LegatoWarning, stacklevel=2
            )

    def close(self) -> None:
        """Take every hook away; `with` does so at its end."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._now is not None:
            self._now.leave()
        self._now = None

    def observe(
        self, name: str, log_sum_exp: Tensor, counts: Tensor | None = None, *, largest: Tensor | None = None
    ) -> None:
        """Hand in what an attention that cannot be seen returns: FlexAttention, or a package with kernels of its own.

        Nothing is done on steps that are not watched, and in forward passes without gradients.

        Args:
            name: of the layer.
            log_sum_exp: [B, H, T], in nats.
            counts: broadcasts to [B, H, T], how many keys each row looks at; by default T, which leaves the interval right but wide.
            largest: [B, H, T], the exact largest logit of each row, as `max_scores` of FlexAttention where the device has it.
        """
        if self._now is None or not torch.is_grad_enabled():
            return
        with torch.no_grad():
            lse = log_sum_exp.detach()
            counts = torch.full((), lse.shape[-1], device=lse.device) if counts is None else counts
            gone = counts.expand_as(lse) == 0
            lower, upper = log_sum_exp_interval(lse, counts)
            top = None if largest is None else largest.detach().masked_fill(gone, -math.inf).amax((0, 2))
            self._now.receive(name, Values(lower, upper, None, (~gone).sum((0, 2)), maximum=top), "given")

    def nothing_seen(self) -> str:
        """What each way of looking for attention has seen, in words."""
        if not self.seen["forward"]:
            return (
                "watch: the model was not called with gradients on in a watched step. "
                "Fix: pass the module that the training loop calls"
            )
        counts = ", ".join(f"{name}: {self.seen[name]} calls" for name in WAYS)
        return (
            f"watch: no attention was seen in {self.seen['forward']} forward passes ({counts}). The fast path of nn.MultiheadAttention, "
            "FlexAttention and kernels of other packages are not seen. Fix: hand in their log-sum-exp with watcher.observe(...)"
        )

    def _begin(self) -> None:
        """Put the hooks of a watched step in place, if this is one."""
        if self.step % self.options.every == 0:
            exact = self.options.exact_every > 0 and self._watched % self.options.exact_every == 0
            self._now = WatchedStep(self.parts, self.options, exact=exact)
            self._watched += 1

    def _before(self, place: int) -> None:
        if self._now is not None and place not in self._stepped:
            self._now.before(place)

    def _after(self, place: int) -> None:
        now = self._now
        if now is not None and place not in self._stepped:
            now.after(place)
        self._stepped.add(place)
        if len(self._stepped) < len(self.parts.optimizers):
            return
        self._stepped.clear()
        reading, self._now = None, None
        if now is not None:
            now.leave()
            self.seen.update(now.seen)
            reading = now.reading(self.step, self.processes(), check=self.latest is None)
        self.step += 1
        self._begin()
        if reading is not None:
            self._tell(reading)

    def _tell(self, reading: Reading) -> None:
        first = self._watched <= 2 and not self.readings
        self.readings.append(reading)
        del self.readings[: -self.options.keep]
        known = {(alarm.rule, alarm.where) for alarm in self.alarms}
        found = alarms(self.readings, self.options.thresholds)
        fresh = [alarm for alarm in found if (alarm.rule, alarm.where) not in known]
        self.alarms.extend(fresh)
        if self.processes() is not None and distributed.get_rank(self.options.group) != 0:
            return
        texts = [self.nothing_seen()] if first and not reading.attention else []
        for text in [*texts, *map(str, fresh)]:
            warnings.warn(text, errors.LegatoWarning, stacklevel=2)
        if self.options.log is not None:
            self.options.log(reading.metrics(), reading.step)

    def processes(self) -> Any:
        """The group of processes that readings are reduced over; None where there is one process."""
        if not (self.options.reduce and distributed.is_available() and distributed.is_initialized()):
            return None
        group = distributed.group.WORLD if self.options.group is None else self.options.group
        return None if distributed.get_world_size(group) == 1 else group


def _optimizers(model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """The optimizers whose hooks are used: the inner ones of wrappers."""
    if not isinstance(model, nn.Module):
        raise errors.argument_type("model", expected="a torch.nn.Module", got=type(model).__name__)
    given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    inner: list[Any] = [getattr(one, "optimizer", one) for one in given]
    wrong = next((one for one in inner if not isinstance(one, Optimizer)), None)
    if wrong is not None or not inner:
        got = "none" if wrong is None else type(wrong).__name__
        raise errors.argument_type("optimizer", expected="a torch.optim.Optimizer, or several", got=got)
    return inner
