"""Where a run computes: one process in plain torch, or the processes of an Accelerator."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.training.plain import flatten, unflatten


class Placement(Protocol):
    """The few things that differ between one process and several."""

    device: torch.device
    processes: int
    rank: int

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to call in the steps."""
        ...

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Around the forward and backward pass of a micro-batch; gradients are averaged over processes in the last."""
        ...

    def rank_scale(self, rows: int) -> Tensor | None:
        """processes * rows / rows of all processes: turns the average over processes into one over rows."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The plain value of each process, by rank; all processes wait for each other."""
        ...


@final
class OneProcess:
    """Plain torch on one device."""

    processes = 1
    rank = 0

    def __init__(self, device: str | torch.device) -> None:
        self.device = _usable(device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it is."""
        return model

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Nothing to do."""
        return nullcontext()

    def rank_scale(self, rows: int) -> Tensor | None:
        """None: nothing to scale."""
        return None

    def gather(self, value: Any) -> list[Any]:
        """The value of the only process."""
        return [value]


@final
class ManyProcesses:
    """Accelerate's distributed data parallel, in as many processes as were started (by torchrun)."""

    def __init__(self, accelerator: Any) -> None:
        _check_accelerator(accelerator)
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.processes: int = accelerator.num_processes
        self.rank: int = accelerator.process_index

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as Accelerate prepares it. The optimizer needs none of that: its parameters stay the same objects."""
        wrapped: nn.Module = self.accelerator.prepare_model(model)
        return wrapped

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """No traffic between processes before the last micro-batch."""
        context: AbstractContextManager[Any] = nullcontext() if last else self.accelerator.no_sync(model)
        return context

    def rank_scale(self, rows: int) -> Tensor | None:
        """One all-reduce of one number, without waiting for the device; float64, but a scalar makes no loss wider."""
        if self.processes == 1:
            return None
        total = torch.full((), rows, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return (self.processes * rows) / total

    def gather(self, value: Any) -> list[Any]:
        """all_gather_object; tensors travel as safetensors, since pickle knows not all of their types, and stay on the CPU."""
        if self.processes == 1:
            return [value]
        from safetensors.torch import load, save

        tensors: dict[str, Tensor] = {}
        tree = flatten(value, "process", tensors)
        everyone: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(everyone, (tree, save(tensors)))
        return [unflatten(its_tree, load(packed)) for its_tree, packed in everyone]


def place(accelerator: Any, device: str | torch.device) -> Placement:
    """The placement that was asked for. Raises: DeviceError where the device or the processes are not there."""
    if accelerator is not None:
        return ManyProcesses(accelerator)
    started = _started()
    if started > 1:
        fix = "accelerator=Accelerator(), with batches that give each process its own rows"
        raise _mismatch("an Accelerator, for several processes were started", f"None with WORLD_SIZE={started}", fix)
    return OneProcess(device)


def _started() -> int:
    """How many processes torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _usable(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as problem:
        raise errors.DeviceError(f"device: {device} cannot be used: {str(problem).splitlines()[0]}") from problem
    return found


def _mismatch(expected: str, got: str, fix: str) -> errors.DeviceError:
    return errors.DeviceError(errors.message("accelerator", expected=expected, got=got, fix=fix))


def _check_accelerator(accelerator: Any) -> None:
    """Accelerate falls back silently; compare what was started and asked with what is there."""
    started, there = _started(), accelerator.num_processes
    if there != started:
        fix = "start with: python -m torch.distributed.run --nproc_per_node N, and make one Accelerator"
        raise _mismatch(f"{started} processes, as WORLD_SIZE says", there, fix)
    kind = str(accelerator.distributed_type.value)
    copies = kind == "NO" or kind.startswith("MULTI_")  # a copy of the model in each process
    if copies and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        kind, copies = f"FSDP asked for, which has become {kind}", False
    if not copies:
        fix = "make the Accelerator without plugins, and unset ACCELERATE_USE_FSDP"
        raise _mismatch("plain data parallel training", kind, fix)
    if accelerator.gradient_accumulation_steps != 1:
        got = f"gradient_accumulation_steps={accelerator.gradient_accumulation_steps}"
        raise _mismatch("no accumulation of its own", got, "pass accumulate= to fit")
    if accelerator.mixed_precision != "no":
        # Accelerate would patch the forward of the user's model, for validation and for good.
        got, fix = f"mixed_precision={accelerator.mixed_precision!r}", "pass autocast='bf16' to fit instead"
        raise _mismatch("no mixed precision of its own", got, fix)
