"""What a training said of each row on its way: losses, margins, forgotten answers, and which labels look wrong by them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato import errors

MEASURES = ("loss", "confidence", "margin", "forgetting")
"""What labels can be ranked by; see `Dynamics.suspicion`."""

_SUMS = ("seen", "loss", "probability", "margin", "right", "forgotten", "squares")
"""Columns of the table of running sums."""


@dataclass(frozen=True)
class Readings:
    """What one forward pass says of each row of a batch."""

    loss: Tensor
    """[B] cross-entropy of the given label, in nats, >= 0."""
    probability: Tensor
    """[B] probability of the given label."""
    margin: Tensor
    """[B] score of the given label minus the largest of the others."""
    right: Tensor
    """[B] bool, whether the given label has a larger score than any other; on a tie it has not."""
    probabilities: Tensor
    """[B, C] softmax of the scores."""


def readings(logits: Tensor, target: Tensor) -> Readings:
    """Loss, probability, margin and answer of each row; softmax and logarithm are computed once, and no value is read.

    loss = -log p[y],  probability = p[y],  margin = z[y] - max over j != y of z[j],  right = (margin > 0),  p = softmax(z).

    Args:
        logits: [B, C] floating point with C >= 2; types shorter than float32 are computed in float32.
        target: [B] int64, the given labels in 0 .. C-1.
    Returns: five tensors without a graph.
    Raises: LegatoTypeError for logits that are no floating point tensor; LegatoValueError for shapes that do not fit.
    """
    _check_logits(logits, None)
    _check_rows("target", target, logits.shape[0])
    return _readings(logits, target)


def _readings(logits: Tensor, target: Tensor) -> Readings:
    logits = logits.detach()
    logs = F.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
    column = target.unsqueeze(1)
    given = logs.gather(1, column).squeeze(1)
    margin = given - logs.scatter(1, column, -torch.inf).amax(
        1
    )  # what log_softmax subtracts is the same for all classes
    return Readings(-given, given.exp(), margin, margin > 0, logs.exp())


@final
class Dynamics:
    """Running sums over a training, from which the rows with suspicious labels are found.

    Of each row: mean cross-entropy, mean and deviation of the probability of the given label (confidence and variability),
    the share of right answers (correctness), the area under the margin, how often a right answer was forgotten, and the mean
    predicted probabilities, which suggest a label. In a loop of one's own, `dynamics.record(out, y, index)` before or after
    `backward()`; as a term, `Criterion(criterion, dynamics)`, whose penalty is exactly 0. Either way the training is the
    same in every bit: nothing is added to the graph and no random number is drawn.

    Nothing is read back while it records, so that no device is waited for; the table lives with the logits. It takes
    61 + 4 C bytes a row, or 61 without `probabilities`. Rows with index -1 or a target below 0 are padding and count nothing;
    rows whose loss or margin is not finite are counted in `unusable` alone.

    As a term it takes each row once an epoch: the second pass of a sharpness-aware method adds nothing. `record` takes what
    it is given. With several processes each keeps what it saw, so rows must stay with their process.

    Args:
        num_samples: N, rows of the training data; indices are 0 .. N-1.
        num_classes: C >= 2.
        probabilities: whether mean predicted probabilities are kept; without them no label is suggested.
    Raises: LegatoValueError for sizes out of range.
    Source: Swayamdipta et al. 2020, arXiv 2009.10795 (confidence, variability, correctness); Toneva et al. 2019,
        arXiv 1812.05159 (forgetting); Pleiss et al. 2020, arXiv 2001.10528 (area under the margin).
    """

    def __init__(self, num_samples: int, num_classes: int, *, probabilities: bool = True) -> None:
        for name, size, least in (("num_samples", num_samples, 1), ("num_classes", num_classes, 2)):
            if isinstance(size, bool) or not isinstance(size, int) or size < least:
                raise errors.argument(name, expected=f"a whole number >= {least}", got=size)
        self.num_samples, self.num_classes = num_samples, num_classes
        self.epoch: int | None = None
        # Row i stands at i + 2. What counts nothing goes to the two before, so that shapes never depend on values: padding, whose
        # index is -1, to 1, the unusable to 0.
        rows = num_samples + 2
        self._table: dict[str, Tensor] = {
            "sums": torch.zeros(rows, len(_SUMS), dtype=torch.float64),
            "right": torch.zeros(rows, dtype=torch.uint8),
            "epoch": torch.full((rows,), -1, dtype=torch.int32),
        }
        if probabilities:
            self._table["probabilities"] = torch.zeros(rows, num_classes)

    def __repr__(self) -> str:
        return f"Dynamics(num_samples={self.num_samples}, num_classes={self.num_classes})"

    @property
    def bytes(self) -> int:
        """Memory of the table."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._table.values())

    @torch.no_grad()
    def record(self, logits: Tensor, target: Tensor, index: Tensor) -> None:
        """Add one forward pass in training.

        Args:
            logits: [B, C] as the criterion sees them.
            target: [B] int64, the given labels.
            index: [B] int64, the rows of the training data.
        Raises: LegatoTypeError or LegatoValueError for types and shapes that do not fit, and, where the tensor lies on the
            CPU, for an index or target out of range.
        """
        self._check(logits, target, index)
        self._add(logits, target, index, None)

    def begin_epoch(self, epoch: int) -> None:
        """The epoch, from 0, that the next penalties belong to."""
        self.epoch = epoch

    @torch.no_grad()
    def penalty(self, output: Tensor, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Record the batch (inputs, target, index) and add nothing: a scalar 0 without a graph."""
        _, target, index = batch
        self._check(output, target, index)
        self._add(output, target, index, self.epoch)
        return output.new_zeros(())

    def after_step(self, model: nn.Module) -> None:
        """Nothing is done after a step."""

    def state_dict(self) -> dict[str, Any]:
        """The table; like a Module's, its tensors go on to change with the training."""
        return {"epoch": self.epoch, "table": dict(self._table)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` gave.

        Raises: LegatoValueError for the state of other data.
        """
        table = state["table"]
        for name, mine in self._table.items():
            got = list(table[name].shape) if name in table else "none"
            if got != list(mine.shape):
                raise errors.argument(
                    f"state, {name}", expected=f"shape {list(mine.shape)}", got=got,
                    fix=f"it must come from Dynamics({self.num_samples}, {self.num_classes})",
                )  # fmt: skip
        self.epoch = state["epoch"]
        self._table = {name: table[name].detach().to(mine).clone() for name, mine in self._table.items()}

    @property
    def unusable(self) -> int:
        """Readings that were left out because their loss or margin was not finite; waits for the device."""
        return int(self._table["sums"][0, _SUMS.index("seen")])

    @property
    def seen(self) -> Tensor:
        """[N] int64, how often each row was recorded; 0 makes all else of that row NaN."""
        return self._sum("seen").long()

    @property
    def loss(self) -> Tensor:
        """[N] mean cross-entropy of the given label, in nats."""
        return self._mean("loss")

    @property
    def confidence(self) -> Tensor:
        """[N] mean probability of the given label, in 0 .. 1."""
        return self._mean("probability")

    @property
    def variability(self) -> Tensor:
        """[N] standard deviation over time of that probability (divided by the number of readings), in 0 .. 0.5."""
        return (self._mean("squares") - self.confidence**2).clamp_min(0).sqrt()

    @property
    def correctness(self) -> Tensor:
        """[N] share of readings whose answer was the given label."""
        return self._mean("right")

    @property
    def margin(self) -> Tensor:
        """[N] mean margin, the area under the margin: score of the given label minus the largest of the others."""
        return self._mean("margin")

    @property
    def forgetting(self) -> Tensor:
        """[N] int64, how often a right answer was followed by a wrong one at the next reading of the row."""
        return self._sum("forgotten").long()

    @property
    def probabilities(self) -> Tensor:
        """[N, C] mean predicted probabilities.

        Raises: LegatoValueError where they were not kept.
        """
        if "probabilities" not in self._table:
            fix = f"Dynamics({self.num_samples}, {self.num_classes}, probabilities=True)"
            raise errors.argument("probabilities", expected="mean probabilities that were kept", got="none", fix=fix)
        return self._table["probabilities"][2:] / self._sum("seen").float()[:, None]

    def suggested(self) -> Tensor:
        """[N] int64, the class with the largest mean predicted probability, -1 for rows that were never recorded."""
        return self.probabilities.nan_to_num(-1).argmax(1).where(self.seen > 0, -1)

    def suspicion(self, measure: str = "loss") -> Tensor:
        """[N] how suspicious each label is: larger is more suspicious; NaN for rows that were never recorded.

        Args:
            measure: "loss": the mean cross-entropy. "confidence": 1 - the mean probability of the label. "margin": minus the
                area under the margin. "forgetting": the forgetting events; a row that was never right has as many as it has
                readings, which no other row can reach.
        Raises: LegatoValueError for another measure.
        """
        if measure == "loss":
            return self.loss
        if measure == "confidence":
            return 1 - self.confidence
        if measure == "margin":
            return -self.margin
        if measure == "forgetting":
            seen = self._sum("seen")
            events = self.forgetting.to(seen.dtype).where(self._sum("right") > 0, seen)
            return events.where(seen > 0, torch.nan)
        raise errors.choice("measure", str(measure), MEASURES)

    def _sum(self, name: str) -> Tensor:
        return self._table["sums"][2:, _SUMS.index(name)]

    def _mean(self, name: str) -> Tensor:
        return self._sum(name) / self._sum("seen")

    def _check(self, logits: Tensor, target: Tensor, index: Tensor) -> None:
        """Types and shapes, and values where to look at them is not to wait for a device."""
        _check_logits(logits, self.num_classes)
        rows = logits.shape[0]
        for name, tensor, low, high in (
            ("target", target, None, self.num_classes),
            ("index", index, -1, self.num_samples),
        ):
            _check_rows(name, tensor, rows)
            if rows and tensor.device.type == "cpu":
                _check_range(name, tensor, low, high)

    def _add(self, logits: Tensor, target: Tensor, index: Tensor, epoch: int | None) -> None:
        """With an epoch, only rows that it has not seen yet."""
        device = logits.device
        if self._table["sums"].device != device:
            self._table = {name: _placed(tensor, device) for name, tensor in self._table.items()}
        table, target = self._table, target.to(device)
        rows = (index.to(device) + 2).where(target >= 0, 1)
        if epoch is not None:
            rows = rows.where(table["epoch"][rows].ne(epoch), 1)
            table["epoch"].index_fill_(0, rows, epoch)
        read = _readings(logits, target.clamp_min(0))
        _add_sums(table, rows.where((read.loss + read.margin).isfinite(), 0), read)


def _add_sums(table: dict[str, Tensor], rows: Tensor, read: Readings) -> None:
    """A row that stands in the batch twice has two readings, both compared with the one before; it is right there if both are."""
    p, right = read.probability, read.right
    forgotten = table["right"][rows] > right
    table["right"].index_fill_(0, rows, 1)
    table["right"].scatter_reduce_(0, rows, right.to(torch.uint8), "amin")
    wide = torch.stack((torch.ones_like(p), read.loss, p, read.margin, right, forgotten, p), 1).to(table["sums"].dtype)
    wide[:, -1].square_()
    table["sums"].index_add_(0, rows, wide)
    if "probabilities" in table:
        table["probabilities"].index_add_(0, rows, read.probabilities.to(table["probabilities"].dtype))


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    """Sums are kept in float64 where the device has it."""
    return tensor.to(device, torch.float32 if device.type == "mps" and tensor.is_floating_point() else tensor.dtype)


def _check_logits(logits: Tensor, classes: int | None) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise errors.argument_type(
            "logits", expected="a floating point tensor", got=got, fix="pass the model's raw scores"
        )
    if logits.dim() != 2 or logits.shape[1] < 2 or classes not in (None, logits.shape[1]):
        raise errors.argument("logits", expected=f"shape [B, {classes or 'C >= 2'}]", got=f"shape {list(logits.shape)}")


def _check_rows(name: str, tensor: Tensor, rows: int) -> None:
    if not isinstance(tensor, Tensor):
        raise errors.argument_type(name, expected=f"an int64 tensor of shape [{rows}]", got=type(tensor).__name__)
    if tensor.dtype != torch.int64 or list(tensor.shape) != [rows]:
        got = f"{tensor.dtype} of shape {list(tensor.shape)}"
        raise errors.argument(name, expected=f"int64 of shape [{rows}], one number a row of the logits", got=got)


def _check_range(name: str, tensor: Tensor, low: int | None, high: int) -> None:
    least, most = (int(end) for end in tensor.aminmax())
    if most >= high or (low is not None and least < low):
        got = most if most >= high else least
        raise errors.argument(name, expected=f"{'0' if low is None else low} .. {high - 1}", got=got)
