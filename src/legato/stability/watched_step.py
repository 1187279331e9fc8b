"""One watched step: the hooks that are in place while it lasts, what they see, and the reading that comes of it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from legato import errors
from legato.stability.attention import Interception, Values, combined
from legato.stability.readings import (
    Ledger,
    Reading,
    attention_reading,
    enter,
    find_blocks,
    local,
    logit_parts,
    logit_reading,
    output_logits,
    parameter_names,
    plain_name,
    roots,
    sizes,
    sums_of_squares,
)
from legato.stability.rules import Thresholds


@dataclass(frozen=True)
class Options:
    """What `watch` is told; it explains them."""

    every: int = 20
    exact_every: int = 10
    log: Callable[[dict[str, float], int], object] | None = None
    entropy: bool = True
    updates: bool = True
    logits: Callable[[Any], Tensor | None] | None = output_logits
    blocks: Mapping[str, nn.Module] | None = None
    thresholds: Thresholds | None = None
    start: int = 0
    keep: int = 100
    reduce: bool = True
    group: Any = None

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("exact_every", 0), ("start", 0), ("keep", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise errors.argument(name, expected=f"a whole number >= {least}", got=value)
        for name in ("log", "logits"):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise errors.argument_type(
                    name, expected="a callable or None", got=type(getattr(self, name)).__name__, fix="log=print"
                )


@dataclass(frozen=True)
class Parts:
    """What of a model and its optimizers is looked at."""

    model: nn.Module
    optimizers: Sequence[Optimizer]
    weights: Sequence[Mapping[str, Tensor]]
    """The parameters of each optimizer, by name."""
    blocks: Mapping[str, nn.Module]
    """Modules whose outputs are measured, by name."""
    places: Mapping[str, nn.Module]
    """Modules that attention is named after, by name."""
    compiled: bool
    """Whether torch.compile has a part in it."""


def parts_of(model: nn.Module, optimizers: Sequence[Optimizer], blocks: Mapping[str, nn.Module] | None) -> Parts:
    """Find them; `blocks` as in `watch`."""
    places = {
        plain_name(name) or "model": module
        for name, module in model.named_modules()
        if module is not model and _may_attend(module)
    }
    compiled = any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    weights = [parameter_names(model, optimizer) for optimizer in optimizers]
    return Parts(model, optimizers, weights, find_blocks(model) if blocks is None else dict(blocks), places, compiled)


@final
class WatchedStep:
    """One watched step: hooks in place from its beginning to `leave`, and what they have seen."""

    def __init__(self, parts: Parts, options: Options, *, exact: bool) -> None:
        self.parts, self.options = parts, options
        self.seen: Counter[str] = Counter()
        self.ledger = Ledger()
        self.attention: dict[str, tuple[Values, str]] = {}
        self.squares: dict[str, list[Tensor]] = {}
        self.counts: Counter[str] = Counter()
        self.logit_parts: list[tuple[Tensor, Tensor]] = []
        self.copies: dict[int, list[Tensor]] = {}
        self.settings: dict[str, dict[str, float]] = {"eps": {}, "lr": {}}
        self.running: list[tuple[str, Counter[str]]] = []
        self.passes: list[bool] = []
        self.mode = Interception(self._receive_here, exact=exact, entropy=self.options.entropy)
        self.whole, self.forward = ExitStack(), ExitStack()
        # What runs in a compiled graph cannot be seen.
        self.whole.enter_context(torch.compiler.set_stance("force_eager") if parts.compiled else nullcontext())
        self.handles = list(self._hooks())

    def _hooks(self) -> Iterator[Any]:
        model = self.parts.model
        yield model.register_forward_pre_hook(self._enter)
        for name, module in self.parts.places.items():
            yield module.register_forward_pre_hook(lambda *_, name=name: self._push(name))
            yield module.register_forward_hook(lambda *_: self._pop(), always_call=True)
        for name, block in self.parts.blocks.items():
            yield block.register_forward_hook(lambda module, inputs, output, name=name: self._block(name, output))
        yield model.register_forward_hook(self._exit, always_call=True)

    def leave(self) -> None:
        """Take the hooks of this step away."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.whole.close()
        self.forward.close()  # open still if a forward pass was interrupted
        self.passes.clear()

    def _enter(self, *_: Any) -> None:
        self.passes.append(torch.is_grad_enabled() and not any(self.passes))
        if self.passes[-1]:
            self.running = [("model", Counter())]
            self.seen["forward"] += 1
            self.forward.enter_context(self.mode)

    def _exit(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not (self.passes and self.passes.pop()):
            return
        self.forward.close()
        self.seen.update(self.mode.seen)
        self.mode.seen.clear()
        found = None if output is None or self.options.logits is None else self.options.logits(output)
        if found is not None and found.numel():
            with torch.no_grad():
                self.logit_parts.append(logit_parts(found))

    def _push(self, name: str) -> None:
        self.running.append((name, Counter()))

    def _pop(self) -> None:
        if len(self.running) > 1:
            self.running.pop()

    def _receive_here(self, values: Values, source: str) -> None:
        """Name what was seen after the module that is running; a second attention of one module is NAME#1."""
        name, count = self.running[-1]
        count["attention"] += 1
        number = count["attention"] - 1
        self.receive(f"{name}#{number}" if number else name, values, source)

    def receive(self, name: str, values: Values, source: str) -> None:
        """Keep the values of an attention, together with those that the same layer had before in this step."""
        self.seen["attention"] += 1
        if name in self.attention:
            values = combined(self.attention[name][0], values)
        self.attention[name] = values, source

    def _block(self, name: str, output: Any) -> None:
        output = output[0] if isinstance(output, tuple | list) and output else output
        if any(self.passes) and isinstance(output, Tensor) and output.is_floating_point() and output.numel():
            with torch.no_grad():
                self.squares.setdefault(name, []).append(sums_of_squares([output]))
            self.counts[name] += sizes([output])[0]

    @torch.no_grad()
    def before(self, place: int) -> None:
        """Look at the gradients as the optimizer finds them, and at the weights."""
        optimizer, named = self.parts.optimizers[place], self.parts.weights[place]
        gradients = {name: weight.grad for name, weight in named.items() if weight.grad is not None}
        # A fused optimizer divides by the GradScaler's factor itself.
        self._sums("gradient", place, gradients, getattr(optimizer, "grad_scale", None))
        self._sums("parameter", place, named)
        if self.options.updates:
            self.copies[place] = [local(weight.detach()).clone() for weight in named.values()]
        names = {id(weight): name for name, weight in named.items()}
        for group in optimizer.param_groups:
            own = [names[id(weight)] for weight in group["params"] if id(weight) in names]
            for key, table in self.settings.items():
                if isinstance(group.get(key), int | float):
                    table.update(dict.fromkeys(own, float(group[key])))

    @torch.no_grad()
    def after(self, place: int) -> None:
        """Look at what the optimizer has added."""
        copies = self.copies.pop(place, [])
        named = self.parts.weights[place]
        if copies:
            torch._foreach_sub_(copies, [local(weight.detach()) for weight in named.values()])
            self._sums("update", place, dict(zip(named, copies, strict=True)))

    def _sums(self, kind: str, place: int, named: Mapping[str, Tensor], scale: Tensor | None = None) -> None:
        if named:
            squares = sums_of_squares(list(named.values()))
            squares = squares if scale is None else squares / scale.to(squares.dtype).square()
            self.ledger.total((kind, place, tuple(named)), squares)
            self.ledger.total(("counts", kind, place), [float(size) for size in sizes(list(named.values()))])

    def reading(self, step: int, group: Any, *, check: bool) -> Reading:
        """Everything that was seen, in one copy from the device.

        Args:
            step: its number.
            group: of processes whose numbers are put together, or None.
            check: whether they first compare what they have seen.
        """
        ledger = self.ledger
        for name, (values, _) in self.attention.items():
            enter(ledger, name, values)
        for name, squares in self.squares.items():
            ledger.total(("block", name), torch.cat(squares).sum()[None])
            ledger.total(("counts", "block", name), [float(self.counts[name])])
        if self.logit_parts:
            sums, ends = (torch.stack(parts) for parts in zip(*self.logit_parts, strict=True))
            ledger.total(("logits", "sums"), sums.sum(0))
            ledger.largest(("logits", "ends"), ends.amax(0))
        if group is not None and check:
            _check_layout(ledger, group)
        table = ledger.read(group)
        tensors: dict[str, dict[str, float]] = {"gradient": {}, "parameter": {}, "update": {}, "block": {}}
        for key, numbers in table.items():
            if key[0] == "block":
                tensors["block"][key[1]] = roots(numbers, table["counts", *key])[0]
            elif key[0] in tensors:
                tensors[key[0]] |= dict(zip(key[2], roots(numbers, table["counts", *key[:2]]), strict=True))
        return Reading(
            step=step,
            attention={name: attention_reading(table, name, source) for name, (_, source) in self.attention.items()},
            logits=logit_reading(table["logits", "sums"], table["logits", "ends"]) if self.logit_parts else None,
            block_rms=tensors["block"], gradient_rms=tensors["gradient"], parameter_rms=tensors["parameter"],
            update_rms=tensors["update"], eps=self.settings["eps"], learning_rate=self.settings["lr"],
        )  # fmt: skip


def _may_attend(module: nn.Module) -> bool:
    """Whether attention may run in this module: it has parts, or is not one of torch's own."""
    return any(True for _ in module.children()) or not type(module).__module__.startswith("torch.nn.modules")


def _check_layout(ledger: Ledger, group: Any) -> None:
    """All processes must have seen the same, or their numbers cannot be put together."""
    layouts: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(layouts, ledger.layout(), group)
    if any(layout != layouts[0] for layout in layouts):
        counts = [len(layout) for layout in layouts]
        raise errors.argument(
            "model", expected="the same attention, gradients and blocks in all processes", got=f"{counts} kinds of values",
            fix="reduce=False gives each process readings of its own",
        )  # fmt: skip
