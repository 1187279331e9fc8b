"""The exact gradient of a training run with respect to its data: backwards through the run, with the graph of one step at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from legato import errors


class Part(NamedTuple):
    """Which rows of which step a loss is asked for."""

    step: int
    """Of the run, from 0."""
    start: int
    """Where in the step's batch the first of them stands; 0 but for micro-batches."""
    rows: int
    """Rows of the step's whole batch."""


StepLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor, Part], Tensor]
"""(weights [P], images [b, ...], labels [b, ...], part) -> mean loss over the b rows. It is called twice, and must say the same twice."""
OuterLoss: TypeAlias = Callable[[Tensor], Tensor]
"""Weights [P] -> scalar."""


@dataclass(frozen=True)
class Unrolled:
    """What `unrolled_grad` found; nothing in it has a graph."""

    loss: Tensor
    """[], the sum of all outer losses."""
    losses: dict[int, Tensor]
    """Step -> its outer loss, []."""
    images_grad: Tensor
    """d loss / d images, in their shape."""
    labels_grad: Tensor | None
    """d loss / d labels; None for labels without requires_grad."""
    alpha_grad: Tensor
    """d loss / d alpha, in the shape of alpha: [] or [N]."""
    theta_end: Tensor
    """[P], the weights after the last step."""


def unrolled_grad(
    step_loss: StepLoss,
    theta0: Tensor,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    outer: Mapping[int, OuterLoss],
    *,
    alpha: float | Tensor,
    momentum: float = 0.0,
    micro_batch: int | None = None,
    keep_every: int | None = None,
) -> Unrolled:
    r"""Differentiate L = sum over s of outer[s](theta_s) through N steps of SGD, with respect to images, labels and the step size.

        forward, i = 0 .. N-1, without a graph
            g_i = d step_loss(theta_i, images[b_i], labels[b_i]) / d theta,  v_i = momentum v_{i-1} + g_i,  theta_{i+1} = theta_i - alpha_i v_i
        backward, i = N-1 .. 0, from lam = mu = 0
            lam += d outer[i+1] / d theta_{i+1},   d alpha_i = -lam . v_i,   a = mu - alpha_i lam,   mu = momentum a
            d images[b_i] += (d g_i / d images)^T a,   d labels[b_i] += (d g_i / d labels)^T a,   lam += (d g_i / d theta)^T a

    Not an approximation: it equals autograd through all steps up to rounding, and costs one more forward and backward pass a step. It keeps
    N P numbers (2 N P with momentum) and the graph of one step, or of one micro-batch; autograd keeps the graphs of all steps. With
    `keep_every` = k it keeps (N / k + k) P in their place, for yet another pass; k near sqrt(N) is leanest.

    Args:
        step_loss: twice differentiable. What it draws, such as an augmentation, it has to draw again for an equal `part`.
        theta0: [P] floating point, where the run begins.
        images: [n, ...] floating point; any inputs.
        labels: [n, ...]; those with requires_grad are differentiated too.
        batches: N index tensors int64 [b] into the rows; a row may come again, in other batches and in its own.
        outer: step s in 1 .. N -> a function of theta_s.
        alpha: step size, [] for all steps or [N], one each; any sign.
        momentum: in [0, 1).
        micro_batch: rows that are differentiated at once, >= 1; None for whole batches. Exact, since step_loss is a mean over rows.
        keep_every: keep the weights of every k-th step, k >= 1, and compute those between again; None keeps all.
    Raises: LegatoValueError for shapes, types or numbers that do not fit. Weights that stop being finite raise nothing: look at the loss.
    Source: Maclaurin, Duvenaud, Adams 2015, arXiv 1502.03492, with the weights kept where they reverse the run.
    """
    _check(theta0, images, batches, outer, momentum, micro_batch, keep_every)
    rates = torch.as_tensor(alpha, dtype=theta0.dtype, device=theta0.device).detach()
    if rates.shape not in ((), (len(batches),)):
        raise errors.argument("alpha", expected=f"a number, or [{len(batches)}]", got=f"shape {list(rates.shape)}")
    run = _Run(step_loss, images.detach(), labels, batches, micro_batch)
    each = rates.expand(len(batches))
    end, lam, mu, d_each = theta0, torch.zeros_like(theta0), torch.zeros_like(theta0), torch.zeros_like(each)
    losses: dict[int, Tensor] = {}
    for i, theta, after, velocity in _backwards(run, theta0.detach(), each, momentum, keep_every or len(batches)):
        if i + 1 == len(batches):
            end = after
        if i + 1 in outer:
            losses[i + 1], gradient = _outer_gradient(outer[i + 1], after)
            lam = lam + gradient
        along = mu - each[i] * lam
        gradient, pulled = run.pull(theta, i, along)
        d_each[i] = -(lam @ (gradient if velocity is None else velocity))
        lam, mu = lam + pulled, momentum * along
    return Unrolled(
        loss=torch.stack(list(losses.values())).sum(),
        losses=losses,
        images_grad=run.images_grad,
        labels_grad=run.labels_grad,
        alpha_grad=d_each if rates.dim() else d_each.sum(),
        theta_end=end,
    )


class _Run:
    """The gradients of the steps, and what has been gathered for images and labels on the way back."""

    def __init__(
        self, step_loss: StepLoss, images: Tensor, labels: Tensor, batches: Sequence[Tensor], micro_batch: int | None
    ) -> None:
        self.step_loss, self.images, self.labels = step_loss, images, labels.detach()
        self.batches, self.micro_batch = batches, micro_batch
        self.images_grad = torch.zeros_like(images)
        self.labels_grad = torch.zeros_like(self.labels) if labels.requires_grad else None

    def gradient(self, theta: Tensor, step: int) -> Tensor:
        """g of a step, [P]."""
        gradient = torch.zeros_like(theta)
        for rows, part in self._parts(step):
            weights = theta.detach().requires_grad_()
            with torch.enable_grad():
                loss = self._loss(weights, self.images[rows], self.labels[rows], part)
            gradient += torch.autograd.grad(loss, weights)[0]
        return gradient

    def pull(self, theta: Tensor, step: int, along: Tensor) -> tuple[Tensor, Tensor]:
        """g of a step and (d g / d theta)^T along, both [P]; adds the same for images and labels to their gradients."""
        gradient, pulled = torch.zeros_like(theta), torch.zeros_like(theta)
        for rows, part in self._parts(step):
            weights, images = theta.detach().requires_grad_(), self.images[rows].requires_grad_()
            labels = self.labels[rows]
            inputs = [weights, images]
            if self.labels_grad is not None:
                inputs.append(labels.requires_grad_())
            with torch.enable_grad():
                loss = self._loss(weights, images, labels, part)
                (g,) = torch.autograd.grad(loss, weights, create_graph=True)
            back = torch.autograd.grad(g, inputs, along, allow_unused=True, materialize_grads=True)
            gradient += g.detach()
            pulled += back[0]
            self.images_grad.index_add_(0, rows, back[1])
            if self.labels_grad is not None:
                self.labels_grad.index_add_(0, rows, back[2])
        return gradient, pulled

    def _loss(self, weights: Tensor, images: Tensor, labels: Tensor, part: Part) -> Tensor:
        return self.step_loss(weights, images, labels, part) * (len(images) / part.rows)

    def _parts(self, step: int) -> Iterator[tuple[Tensor, Part]]:
        batch, start = self.batches[step].to(self.images.device), 0
        for rows in batch.split(self.micro_batch or len(batch)):
            yield rows, Part(step, start, len(batch))
            start += len(rows)


def _backwards(
    run: _Run, theta0: Tensor, rates: Tensor, momentum: float, every: int
) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
    """(i, theta_i, theta_{i+1}, v_i) for i = N-1 .. 0; without momentum v_i is the gradient, which comes again anyway: None.

    First the weights before each stretch of `every` steps, then, from the last stretch to the first, those within it.
    """

    def stepped(i: int, theta: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        velocity = momentum * velocity + run.gradient(theta, i)
        return theta - rates[i] * velocity, velocity

    starts = range(0, len(rates), every)
    kept = [(theta0, torch.zeros_like(theta0))]
    now = kept[0]
    for i in range(starts[-1]):
        now = stepped(i, *now)
        if i + 1 in starts:
            kept.append(now)
    for start in reversed(starts):
        theta, velocity = kept.pop()
        weights, velocities = [theta], list[Tensor | None]()
        stretch = range(start, min(start + every, len(rates)))
        for i in stretch:
            theta, velocity = stepped(i, theta, velocity)
            weights.append(theta)
            velocities.append(velocity if momentum else None)
        for i in reversed(stretch):
            after = weights.pop()
            yield i, weights[-1], after, velocities.pop()


def _outer_gradient(outer: OuterLoss, theta: Tensor) -> tuple[Tensor, Tensor]:
    weights = theta.detach().requires_grad_()
    with torch.enable_grad():
        loss = outer(weights)
    return loss.detach(), torch.autograd.grad(loss, weights)[0]


def _check(
    theta0: Tensor,
    images: Tensor,
    batches: Sequence[Tensor],
    outer: Mapping[int, OuterLoss],
    momentum: float,
    micro_batch: int | None,
    keep_every: int | None,
) -> None:
    if theta0.dim() != 1 or not theta0.is_floating_point():
        raise errors.argument(
            "theta0", expected="floating point weights of shape [P]", got=f"{theta0.dtype} of shape {list(theta0.shape)}",
            fix="FlatModel(model).weights()",
        )  # fmt: skip
    if not images.is_floating_point():
        raise errors.argument("images", expected="floating point", got=images.dtype)
    bad = [b for b in batches if b.dtype != torch.int64 or b.dim() != 1 or not len(b)]
    if not batches or bad:
        got = f"{bad[0].dtype} of shape {list(bad[0].shape)}" if bad else "no batch"
        raise errors.argument("batches", expected="at least one int64 tensor of rows, [b] with b >= 1", got=got)
    if not outer or not all(1 <= step <= len(batches) for step in outer):
        raise errors.argument("outer", expected=f"losses after steps in 1 .. {len(batches)}", got=sorted(outer))
    if not 0 <= momentum < 1:
        raise errors.argument("momentum", expected="a number in [0, 1)", got=momentum)
    for name, value in (("micro_batch", micro_batch), ("keep_every", keep_every)):
        if value is not None and value < 1:
            raise errors.argument(name, expected="a whole number >= 1, or None", got=value)
