"""Where a run computes: one process in plain torch, or the processes of an Accelerator."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from legato import errors
from legato.training.plain import flatten, unflatten


class Placement(Protocol):
    """The few things that differ between one process and several."""

    device: torch.device
    processes: int
    rank: int

    def wrap(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """The model and optimizer to call in the steps."""
        ...

    def precision(self) -> AbstractContextManager[Any]:
        """Around each forward pass: autocast, or nothing."""
        ...

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Around the forward and backward pass of a micro-batch; gradients are averaged over processes in the last."""
        ...

    def rank_scale(self, rows: int) -> Tensor | None:
        """processes * rows / rows of all processes: turns the average over processes into one over rows."""
        ...

    def clip(self, parameters: list[nn.Parameter], norm: float) -> None:
        """Scale the gradients so that their common norm is at most `norm`."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The plain value of each process, by rank; all processes wait for each other."""
        ...


@final
class OneProcess:
    """Plain torch on one device."""

    processes = 1
    rank = 0

    def __init__(self, device: str | torch.device, autocast: str | None) -> None:
        self.device = _usable(device)
        self.autocast = autocast

    def wrap(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Both as they are."""
        return model, optimizer

    def precision(self) -> AbstractContextManager[Any]:
        """torch.autocast in bfloat16 where asked."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.autocast else nullcontext()

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Nothing to do."""
        return nullcontext()

    def rank_scale(self, rows: int) -> Tensor | None:
        """None: nothing to scale."""
        return None

    def clip(self, parameters: list[nn.Parameter], norm: float) -> None:
        """torch's clip_grad_norm_."""
        nn.utils.clip_grad_norm_(parameters, norm)

    def gather(self, value: Any) -> list[Any]:
        """The value of the only process."""
        return [value]


@final
class ManyProcesses:
    """Accelerate's distributed data parallel, in as many processes as were started (by torchrun)."""

    def __init__(self, accelerator: Any, autocast: str | None) -> None:
        _check_accelerator(accelerator, autocast)
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.processes: int = accelerator.num_processes
        self.rank: int = accelerator.process_index

    def wrap(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Both as Accelerate prepares them."""
        wrapped: tuple[nn.Module, Optimizer] = self.accelerator.prepare(model, optimizer)
        return wrapped

    def precision(self) -> AbstractContextManager[Any]:
        """Accelerate's autocast."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """No traffic between processes before the last micro-batch."""
        context: AbstractContextManager[Any] = nullcontext() if last else self.accelerator.no_sync(model)
        return context

    def rank_scale(self, rows: int) -> Tensor | None:
        """One all-reduce of one number, without waiting for the device."""
        if self.processes == 1:
            return None
        total = torch.full((), rows, dtype=torch.float32, device=self.device)
        torch.distributed.all_reduce(total)
        return (self.processes * rows) / total

    def clip(self, parameters: list[nn.Parameter], norm: float) -> None:
        """Accelerate's clip_grad_norm_."""
        self.accelerator.clip_grad_norm_(parameters, norm)

    def gather(self, value: Any) -> list[Any]:
        """all_gather_object, with tensors on the CPU on the way and afterwards."""
        if self.processes == 1:
            return [value]
        tensors: dict[str, Tensor] = {}
        mine = (flatten(value, "process", tensors), tensors)
        everyone: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(everyone, mine)
        return [unflatten(tree, its_tensors) for tree, its_tensors in everyone]


def place(accelerator: Any, device: str | torch.device, autocast: str | None) -> Placement:
    """The placement that was asked for.

    Raises: LegatoValueError for an unknown `autocast`; DeviceError where the device or processes are not there.
    """
    if autocast not in (None, "bf16"):
        raise errors.argument("autocast", expected="None or 'bf16'", got=autocast)
    if accelerator is not None:
        return ManyProcesses(accelerator, autocast)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1:
        raise _mismatch("one process without an accelerator", f"WORLD_SIZE={started}", "accelerator=Accelerator()")
    return OneProcess(device, autocast)


def _usable(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as problem:
        raise errors.DeviceError(f"device: {device} cannot be used: {str(problem).splitlines()[0]}") from problem
    return found


def _mismatch(expected: str, got: str, fix: str) -> errors.DeviceError:
    return errors.DeviceError(errors.message("accelerator", expected=expected, got=got, fix=fix))


def _check_accelerator(accelerator: Any, autocast: str | None) -> None:
    """Accelerate falls back silently; compare what was started and asked with what is there."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        fix = "start with: python -m torch.distributed.run --nproc_per_node N, and make one Accelerator"
        raise _mismatch(f"{started} processes (WORLD_SIZE)", f"{accelerator.num_processes}", fix)
    kind = str(accelerator.distributed_type.value)
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        asked = "FSDP" if os.environ.get("ACCELERATE_USE_FSDP") else kind
        fix = "make the Accelerator without plugins; only data parallel runs are supported"
        raise _mismatch("distributed_type NO, MULTI_CPU or MULTI_GPU", f"{asked} asked for, {kind} there", fix)
    if accelerator.gradient_accumulation_steps != 1:
        got = f"gradient_accumulation_steps={accelerator.gradient_accumulation_steps}"
        raise _mismatch("no accumulation of its own", got, "pass accumulate= to fit")
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise _mismatch("mixed_precision 'no' or 'bf16'", repr(accelerator.mixed_precision), "use 'bf16'")
    if autocast == "bf16" and accelerator.mixed_precision != "bf16":
        raise _mismatch("mixed_precision 'bf16', as autocast", "'no'", "Accelerator(mixed_precision='bf16')")
