"""What the sharpness-aware methods share: one pass at the weights, another beside them, and everything put back as it was."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from legato import errors

Closure = Callable[[], Tensor]
"""Runs forward and backward over all rows of one optimizer step and returns their mean loss."""

Randomness = dict[torch.device, Tensor]
"""The state of torch's random numbers on each device."""


def check_radius(radius: float) -> None:
    """A plain finite number >= 0. Raises: LegatoValueError."""
    if not (isinstance(radius, Real) and 0 <= float(radius) < math.inf):
        fix = "radius=0.05 is the usual start for SAM; 0 is no perturbation"
        raise errors.argument("radius", expected="a plain finite number >= 0", got=radius, fix=fix)


def check_share(name: str, share: float) -> None:
    """A plain number in (0, 1]. Raises: LegatoValueError."""
    if not (isinstance(share, Real) and 0 < float(share) <= 1):
        raise errors.argument(name, expected="a plain number in (0, 1]", got=share, fix=f"{name}=1 takes all")


def check_model(model: nn.Module) -> None:
    """A Module with something to train, not sharded. Raises: LegatoTypeError, LegatoValueError."""
    if not isinstance(model, nn.Module):
        fix = "pass the model itself, not its parameters or its optimizer"
        raise errors.argument_type("model", expected="a torch.nn.Module", got=type(model).__name__, fix=fix)
    if not trainable(model):
        fix = "set requires_grad on the parameters that are to be trained"
        raise errors.argument("model", expected="trainable parameters", got="none", fix=fix)
    sharded = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if sharded or any(hasattr(weight, "device_mesh") for weight in model.parameters()):
        fix = "DistributedDataParallel, or one process"
        raise errors.argument(
            "model", expected="whole weights in every process", got="weights that are sharded", fix=fix
        )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, tied ones once; the names are those of the bare model, however it is wrapped."""
    if isinstance(model, DistributedDataParallel | DataParallel):
        return trainable(model.module)
    found = ((name.replace("_orig_mod.", ""), weight) for name, weight in model.named_parameters())
    return {name: weight for name, weight in found if weight.requires_grad}


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, [] on the device of the first, float64 if one of them is, else float32."""
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    norms = torch._foreach_norm(list(tensors), 2, wide)
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(tensors[0].device) for norm in norms]))
    return total


def inner_product(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Sum of the products of all elements, [] on the device of the first."""
    products = [(a * b).sum().to(one[0].device) for a, b in zip(one, other, strict=True)]
    return torch.stack(products).sum()


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """float16 and bfloat16 as float32; others as they are, without a copy."""
    return [tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor for tensor in tensors]


def times(tensors: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """Each tensor times one number [], which need not be on its device and does not change its type."""
    if len({tensor.device for tensor in [*tensors, factor]}) == 1:
        return list(torch._foreach_mul(list(tensors), factor))
    return [tensor * factor.to(tensor.device) for tensor in tensors]


def quotient(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where the denominator is 0 or NaN; no device is waited for."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def chosen(first: Tensor, one: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    """`one` where the truth value `first` [] is true, else `other`; decided on the device, unless that is the CPU."""
    if readable(first):
        return list(one if first else other)
    return [torch.where(first.to(a.device), a, b) for a, b in zip(one, other, strict=True)]


def readable(tensor: Tensor) -> bool:
    """Whether its value can be read without waiting for a device."""
    return tensor.device.type == "cpu"


@dataclass(frozen=True)
class Pass:
    """What is left of a pass at the weights themselves; the gradients stand in `.grad`."""

    model: nn.Module
    names: list[str]
    """Names of the weights that got a gradient."""
    weights: list[nn.Parameter]
    """The weights that got a gradient."""
    loss: Tensor
    """The mean loss [], detached."""
    randomness: Randomness
    """The random numbers before the pass."""

    @property
    def gradients(self) -> list[Tensor]:
        """What stands in `.grad`, in the order of the weights."""
        return [weight.grad for weight in self.weights if weight.grad is not None]


def first_pass(model: nn.Module, closure: Closure) -> Pass:
    """Call the closure and see what it has left.

    Gradients are cleared before, whether or not the closure does that too.

    Raises: LegatoTypeError for a closure that is none or returns no tensor; LegatoValueError for one that leaves no
        gradients, or sparse ones.
    """
    weights = trainable(model)
    randomness = random_states({weight.device for weight in weights.values()})
    loss = _called(closure, weights.values())
    found = {name: weight for name, weight in weights.items() if weight.grad is not None}
    if not found:
        fix = "call loss.backward() in it, on a loss that depends on the model's parameters"
        raise errors.argument("closure", expected="gradients in .grad of the model's parameters", got="none", fix=fix)
    sparse = [name for name, weight in found.items() if weight.grad is not None and weight.grad.layout != torch.strided]
    if sparse:
        fix = "sparse=False in its embedding"
        raise errors.argument("closure", expected="dense gradients", got=f"a sparse one for {sparse[0]}", fix=fix)
    return Pass(model, list(found), list(found.values()), loss, randomness)


def second_pass(first: Pass, offsets: list[Tensor], norm: Tensor, closure: Closure) -> None:
    """Leave the gradients at weights + offsets in `.grad`; weights, buffers and random numbers are as after the first pass.

    The second pass sees the random numbers of the first. Where `norm`, that of the first gradients, is not finite, the
    gradients that are left are not finite either, for a GradScaler to see: on the CPU those of the first pass, and the
    closure is not called; elsewhere those of the second, so that no device is waited for.

    Args:
        offsets: of the shapes of first.weights; emptied, to free their memory.
    """
    if readable(norm) and not norm.isfinite():
        return
    with moved(first.weights, offsets), buffers_kept(first.model), replayed(first.randomness):
        _called(closure, trainable(first.model).values())
    if not readable(norm):
        _spread(norm, first.gradients)


@contextmanager
def moved(weights: Sequence[Tensor], offsets: list[Tensor]) -> Iterator[None]:
    """Inside, the weights are weights + offsets; afterwards they are what they were, to the last bit.

    Args:
        offsets: of the shapes of the weights; emptied, to free their memory.
    """
    here = list(weights)
    if not here:
        yield
        return
    saved = [weight.detach().clone() for weight in here]
    try:
        with torch.no_grad():
            torch._foreach_add_(here, offsets)
        offsets.clear()
        torch.clear_autocast_cache()  # else an autocast around both passes goes on with its copies of the old weights
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(here, saved)
        torch.clear_autocast_cache()


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards all buffers, such as BatchNorm's running statistics, are what they were: the pass inside does not count."""
    owners = [(m, n, b) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    buffers = [buffer for _, _, buffer in owners]
    saved = [buffer.detach().clone() for buffer in buffers]
    try:
        yield
    finally:
        if buffers:
            with torch.no_grad():
                torch._foreach_copy_(buffers, saved)
        for module, name, buffer in owners:
            module._buffers[name] = buffer  # a module may have put another tensor in its place


def random_states(devices: set[torch.device]) -> Randomness:
    """The state of torch's random numbers on the CPU and on these devices."""
    here: Randomness = {torch.device("cpu"): torch.get_rng_state()}
    for device in devices - {torch.device("cpu")}:
        if device.type != "meta":
            here[device] = _generator(device).get_state()
    return here


@contextmanager
def replayed(states: Randomness) -> Iterator[None]:
    """Inside, the random numbers of `states` are drawn again; afterwards all goes on from where it was before."""
    before = random_states(set(states))
    try:
        _set_random_states(states)
        yield
    finally:
        _set_random_states(before)


def _set_random_states(states: Randomness) -> None:
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            _generator(device).set_state(state)


def _generator(device: torch.device) -> torch.Generator:
    """The global generator of an accelerator. Its state is kept on the host, so no device is waited for."""
    module: Any = torch.get_device_module(device)
    generators = getattr(module, "default_generators", None)
    if generators is not None:
        index = module.current_device() if device.index is None else device.index
        generator: torch.Generator = generators[index]
        return generator
    fallback: torch.Generator = module._get_default_mps_generator()
    return fallback


def _called(closure: Closure, weights: Any) -> Tensor:
    """The closure's loss, detached; gradients are cleared before."""
    if not callable(closure):
        fix = "pass a function that clears the gradients, runs forward and backward and returns the loss"
        raise errors.argument_type(
            "closure", expected="a function without arguments", got=type(closure).__name__, fix=fix
        )
    for weight in weights:
        weight.grad = None
    with torch.enable_grad():  # an optimizer's step may be around this
        loss = closure()
    if not isinstance(loss, Tensor):
        fix = "return the mean loss, after loss.backward()"
        raise errors.argument_type(
            "closure", expected="a function that returns a tensor", got=type(loss).__name__, fix=fix
        )
    return loss.detach()


def _spread(norm: Tensor, gradients: list[Tensor]) -> None:
    """Make one gradient NaN if the norm is not finite, and add 0 if it is."""
    for smallest in sorted(gradients, key=Tensor.numel)[:1]:
        smallest.add_((norm - norm).to(smallest.device))
