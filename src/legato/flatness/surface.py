"""The mean loss over a data set as a function of the weights: what every instrument of sharpness stands on."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from legato import errors

Loss = Callable[[Any, Any], Tensor]
Product = Callable[[Tensor], Tensor]
MODES = ("eval", "train")


class _Slope(NamedTuple):
    """The gradients of one micro-batch with the graph that leads to them, and how many rows it has."""

    gradients: tuple[Tensor, ...]
    rows: int


@final
class Surface:
    """The mean loss of a model over a data set, as a function L(w) of its trainable weights, flattened to w [P].

    L(w) = sum over the micro-batches of rows * loss(model(inputs), targets) / sum of rows.

    A reading leaves no trace: modes, running statistics, `.grad`, random number generators and the weights are afterwards what
    they were, bit for bit. In mode "eval" dropout is off and batch normalisation uses its running statistics. In mode "train"
    each micro-batch is normalised by its own statistics, so the value depends on how rows are grouped, and dropout draws the
    same masks at every reading, for all random numbers follow from `seed`; so does the order of a DataLoader that shuffles.

    Each number costs one pass over the data, and memory for one micro-batch. A product with the Hessian is taken by double
    backward; fused attention and recurrent kernels, which have no second derivative, are left aside for as long as it takes.

    Args:
        model: any module. Compiled and distributed wrappers are taken off. Weights that are frozen are no part of w.
        loss: `loss(output, targets) -> []`, the mean over a micro-batch; any criterion.
        batches: a re-iterable of (inputs, targets, ...), the same rows each time: a list, or a DataLoader. Tensors are moved to the
            model's device; rows are counted along the first axis of the targets.
        mode: "eval" or "train".
        seed: of the random numbers of a reading.
        only: names of the weights that make up w, as in `model.named_parameters()`; None is all that are not frozen.
    Raises: LegatoValueError for an unknown mode, a model without trainable weights, or weights shorter than float32;
        LegatoTypeError for batches that can be iterated only once.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[Sequence[Any]],
        mode: str = "eval",
        *,
        seed: int = 0,
        only: Collection[str] | None = None,
    ) -> None:
        if mode not in MODES:
            raise errors.choice("mode", str(mode), MODES)
        if isinstance(batches, Iterator):
            raise errors.argument_type(
                "batches", expected="something to iterate over again and again", got=type(batches).__name__,
                fix="pass a list of (inputs, targets), or the DataLoader itself",
            )  # fmt: skip
        self.model, self.loss, self.batches, self.mode, self.seed = _unwrapped(model), loss, batches, mode, seed
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if only is not None:
            named = {name: named[name] if name in named else _unknown(name, named) for name in only}
        self.parameters = _checked(named)
        sizes = [p.numel() for p in self.parameters]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        self.blocks = {name: slice(end - size, end) for name, end, size in zip(named, ends, sizes, strict=True)}
        self.size = ends[-1]
        self._rows: int | None = None
        self._holding = False
        self._held: _Slope | None = None

    def __repr__(self) -> str:
        return f"Surface({type(self.model).__name__}, {self.size} weights, mode={self.mode!r})"

    @property
    def device(self) -> torch.device:
        """Where flat vectors live: with the first weight."""
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Of flat vectors: float64 if any weight is, else float32."""
        return torch.float64 if any(p.dtype == torch.float64 for p in self.parameters) else torch.float32

    @property
    def rows(self) -> int:
        """How many rows the data set has; the first time costs a pass over it, without the model."""
        if self._rows is None:
            with self._aside():
                self._rows = sum(_rows(batch) for batch in self.batches)
        return self._rows

    def restricted(self, only: Collection[str]) -> "Surface":
        """The same loss as a function of these weights alone: its Hessian is a diagonal block of ours.

        Raises: LegatoValueError for a name that is not among the trainable weights.
        """
        return Surface(self.model, self.loss, self.batches, self.mode, seed=self.seed, only=only)

    def weights(self) -> Tensor:
        """A flat copy [P] of the weights, in the order of `blocks`."""
        return self._flat(self.parameters)

    def value(self) -> float:
        """L(w), in the unit of the loss."""
        with self._reading(graph=False):
            means = [(rows, loss.detach()) for rows, loss in self._losses()]
            values = torch.stack([loss.to(self.device) for _, loss in means]).tolist()  # one wait for the device
        total = sum(rows for rows, _ in means)
        return math.fsum(rows * value for (rows, _), value in zip(means, values, strict=True)) / total

    def gradient(self) -> Tensor:
        """dL/dw [P]; 0 for a weight that the loss does not depend on."""
        with self._reading():
            return self._mean((rows, self._slope(loss, graph=False)) for rows, loss in self._losses())

    def product(self, v: Tensor) -> Tensor:
        """The Hessian of L at w, times v: [P] -> [P]; 0 for a weight that the loss does not depend on, or only linearly.

        Raises: LegatoValueError for a v of another shape.
        """
        pieces = self._pieces("v", v)
        with self._reading(), sdpa_kernel(SDPBackend.MATH):
            return self._mean((slope.rows, self._curvature(slope, pieces)) for slope in self._slopes())

    @contextmanager
    def held(self) -> Iterator[Product]:
        """Many products at one point: `with surface.held() as product`, where weights and data are promised not to change.

        When the data are a single micro-batch, its graph is kept between products, which saves a third to a half of their time.
        """
        outer, self._holding = self._holding, True
        try:
            yield self.product
        finally:
            self._holding = outer
            if not outer:
                self._held = None

    @contextmanager
    def at(self, offset: Tensor) -> Iterator[None]:
        """Inside, the model's weights are w + offset; afterwards they are w again, bit for bit.

        Args:
            offset: [P].
        Raises: LegatoValueError for an offset of another shape.
        """
        pieces = self._pieces("offset", offset)
        saved = [p.detach().clone() for p in self.parameters]
        self._held = None
        try:
            with torch.no_grad():
                for p, piece in zip(self.parameters, pieces, strict=True):
                    p.add_(piece)
            yield
        finally:
            self._held = None
            with torch.no_grad():
                for p, before in zip(self.parameters, saved, strict=True):
                    p.copy_(before)

    def _losses(self) -> Iterator[tuple[int, Tensor]]:
        """Rows and mean loss [] of each micro-batch that is not empty."""
        total = 0
        for batch in self.batches:
            rows = _rows(batch)
            if rows == 0:  # a mean over nothing may be NaN
                continue
            total += rows
            inputs, targets = (x.to(self.device) if isinstance(x, Tensor) else x for x in batch[:2])
            loss = self.loss(self._output(inputs), targets)
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise errors.argument("loss", expected="the mean of a batch, a tensor of shape []", got=got)
            yield rows, loss
        if total == 0:
            raise errors.argument("batches", expected="one row or more", got="none")

    def _output(self, inputs: Any) -> Any:
        """In mode "train" on copies of the buffers, so that running statistics go on in the copies."""
        if self.mode == "eval":
            return self.model(inputs)
        copies = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return torch.func.functional_call(self.model, copies, (inputs,))

    def _slope(self, loss: Tensor, *, graph: bool) -> tuple[Tensor, ...]:
        if not loss.requires_grad:
            return tuple(torch.zeros_like(p) for p in self.parameters)
        return torch.autograd.grad(loss, self.parameters, create_graph=graph, materialize_grads=True)

    def _slopes(self) -> Iterator[_Slope]:
        if self._held is not None:
            yield self._held
            return
        keep = self._holding and isinstance(self.batches, Sequence) and len(self.batches) == 1
        for rows, loss in self._losses():
            slope = _Slope(self._slope(loss, graph=True), rows)
            if keep:
                self._held = slope
            yield slope

    def _curvature(self, slope: _Slope, pieces: Sequence[Tensor]) -> tuple[Tensor, ...]:
        curved = [(g, v) for g, v in zip(slope.gradients, pieces, strict=True) if g.requires_grad]
        if not curved:
            return tuple(torch.zeros_like(p) for p in self.parameters)
        gradients, vectors = zip(*curved, strict=True)
        return torch.autograd.grad(
            gradients, self.parameters, vectors, retain_graph=slope is self._held, materialize_grads=True
        )

    def _mean(self, parts: Iterable[tuple[int, Sequence[Tensor]]]) -> Tensor:
        """The mean over rows, flat, of what each micro-batch gives for each weight."""
        total, mean = 0, torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for rows, part in parts:
            total += rows
            mean.add_(self._flat(part), alpha=rows)
        return mean / total

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.detach().reshape(-1).to(self.device, self.dtype) for t in tensors])

    def _pieces(self, name: str, flat: Tensor) -> list[Tensor]:
        if list(flat.shape) != [self.size]:
            raise errors.argument(
                name, expected=f"shape [{self.size}], one number a weight", got=f"shape {list(flat.shape)}"
            )
        blocks = zip(self.parameters, self.blocks.values(), strict=True)
        return [flat.detach()[block].view(p.shape).to(p.device, p.dtype) for p, block in blocks]

    @contextmanager
    def _reading(self, *, graph: bool = True) -> Iterator[None]:
        """The state in which the loss is computed, whatever the caller's is."""
        modes = [(module, module.training) for module in self.model.modules()]
        recurrent = any(isinstance(module, nn.RNNBase) for module, _ in modes)
        with ExitStack() as stack:
            stack.enter_context(self._aside())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(graph))
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            if recurrent:  # cuDNN's kernels have no backward in eval mode, and none twice
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            try:
                self.model.train(self.mode == "train")
                yield
            finally:
                for module, training in modes:
                    module.training = training

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Random numbers of our own, on the CPU and on every device of the weights; the global ones stay where they are."""
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.default_generator.manual_seed(self.seed)
            for device in {p.device for p in self.parameters if p.device.type != "cpu"}:
                stack.enter_context(_reseeded(device, self.seed))
            yield


@contextmanager
def _reseeded(device: torch.device, seed: int) -> Iterator[None]:
    """The generator of an accelerator begins at `seed`, and is put back afterwards."""
    module = torch.get_device_module(device)
    with torch.accelerator.device_index(device.index):
        state = module.get_rng_state()
        module.manual_seed(seed)
    try:
        yield
    finally:
        with torch.accelerator.device_index(device.index):
            module.set_rng_state(state)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Without DistributedDataParallel and torch.compile, through which no second derivative leads."""
    inner = getattr(model, "_orig_mod", None)
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        inner = model.module
    return model if inner is None else _unwrapped(inner)


def _unknown(name: str, named: dict[str, nn.Parameter]) -> nn.Parameter:
    raise errors.choice("only", name, named)


def _checked(named: dict[str, nn.Parameter]) -> list[nn.Parameter]:
    if not named:
        raise errors.argument("model", expected="weights with requires_grad=True", got="none")
    for name, p in named.items():
        if p.dtype not in (torch.float32, torch.float64):
            raise errors.argument(
                "model", expected="weights in float32 or float64", got=f"{p.dtype} in {name}",
                fix="measure a copy, copy.deepcopy(model).float(): curvature is lost in the rounding of shorter types",
            )  # fmt: skip
    return list(named.values())


def _rows(batch: Sequence[Any]) -> int:
    if not isinstance(batch, Sequence) or len(batch) < 2:
        raise errors.argument_type("batches", expected="pairs (inputs, targets)", got=type(batch).__name__)
    return len(batch[1])
