"""Step-wise variation: how much the one-step prediction of the clean sample moves with the noise, and the penalty that evens it out."""

from typing import Any, NamedTuple, final

import torch
from torch import Generator, Tensor

from legato import errors
from legato.diffusion.attention import twice_differentiable
from legato.diffusion.denoiser import NOTHING, Condition, Denoiser

ESTIMATORS = ("exact", "fd")
WEIGHTINGS = ("paper", "xt")
STEP = 1e-2
"""Of a finite difference, an element of the noise: its length is STEP * sqrt(d)."""


class Variation(NamedTuple):
    """Norms, and what the network said on the way."""

    norms: Tensor
    """[B], v of each row."""
    output: Tensor
    """[B, ...] the network's output at x_t with its graph, so that the base loss needs no pass of its own."""


def variation_norms(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, direction: Tensor, **options: Any
) -> Tensor:
    """The norms of `variation` alone, [B]; same arguments."""
    return variation(denoiser, x0, noise, t, direction, **options).norms


def variation(
    denoiser: Denoiser,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    direction: Tensor,
    *,
    condition: Condition = NOTHING,
    estimator: str = "exact",
    weighting: str = "paper",
    create_graph: bool = True,
) -> Variation:
    r"""How far the prediction x0_hat moves with the noise, along a direction u of its output, a number a row.

    exact  v = sigma |J^T u|,  J = d x0_hat / d noise through x_t and the network, by a second backward pass
    fd     v = sigma |x0_hat(noise + h u) - x0_hat(noise)| / h,  h = 0.01 sqrt(d): the forward twin sigma |J u|; J of an exact
           denoiser is symmetric, so both estimate the same

    weighting "paper" multiplies by sigma as above. "xt" divides by it: v = |J^T u| / sigma, the variation with x_t.
    For the posterior mean of the data, v ("paper") = alpha |Cov(x0 | x_t) u|.

    Args:
        denoiser: the network may be in float32 or float64; autocast is switched off here.
        x0: [B, ...] clean samples, pixels or latents.
        noise: [B, ...].
        t: int64 [B], levels.
        direction: u [B, ...], of unit length a row (`unit_directions`).
        condition: of the network.
        estimator: exact, or fd: no second derivatives, so fused attention, gradient checkpointing and several processes are fine with it;
            it needs a pass without dropout.
        weighting: paper or xt.
        create_graph: False where no gradient of v is asked for.
    Returns: (norms [B] >= 0, output [B, ...]).
    Raises: LegatoValueError for unknown words, unequal shapes, another type, a prediction that does not depend on the noise, or
        dropout with fd.
    Source: Guo et al. 2023, arXiv 2312.04410, Eqs. 9 and 10; the identity is derived in docs/methods/smooth-diffusion.md.
    """
    _check(denoiser, x0, noise, t, direction, estimator, weighting)
    with torch.autocast(x0.device.type, enabled=False):
        measure = _exact if estimator == "exact" else _finite
        moved, output = measure(denoiser, x0, noise, t, direction, condition, create_graph)
        sigma = denoiser.schedule.at(t, x0)[1].flatten()
        return Variation(moved * sigma**2 if weighting == "paper" else moved, output)


def unit_directions(like: Tensor, generator: Generator | None = None) -> Tensor:
    """Gaussian directions of unit length, a row each, in the shape, type and place of `like` [B, ...]; drawn where the generator is."""
    device = like.device if generator is None else generator.device
    drawn = torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)
    flat = drawn.flatten(1)
    unit: Tensor = (flat / flat.norm(dim=1, keepdim=True)).view_as(drawn)
    return unit


def variation_penalty(norms: Tensor, level: Tensor | float) -> Tensor:
    """mean over rows of (v - a)^2, a scalar; v = `norms` [B], a = `level`. Source: Eq. 9."""
    return (norms - level).square().mean()


def running_level(level: Tensor, norms: Tensor, decay: float = 0.01) -> Tensor:
    """a + decay (mean v - a): the running mean of the official code, a scalar."""
    return level + decay * (norms.mean() - level)


@final
class SmoothnessRegularizer:
    """lam * mean (v - a)^2 with the running mean a of v, to be added to the loss of a diffusion model.

    a is that of the first batch at first (the official code begins at 0), then moves as `running_level`; it takes no gradient, is
    the same in all processes of a group, and stands in `state_dict`. Directions come from a generator of its own, so the noise
    that the caller draws is the same with and without the term.

    Args:
        lam: weight, >= 0; at 0 nothing is computed and the loss is the plain one to the last bit.
        estimator, weighting: as in `variation`.
        every: with k > 1 acts in each k-th call only, k times as strong: about 1/k of the cost.
        share: in (0, 1], of the rows of a batch that it looks at, the first ones: as strong, noisier, and cheaper in proportion.
        decay: of the running mean, in (0, 1].
        warm: begin at the first batch's mean; False begins at 0.
        seed: of the directions; each process adds its rank.
    Raises: LegatoValueError for arguments out of range.
    """

    def __init__(
        self,
        lam: float = 1.0,
        *,
        estimator: str = "exact",
        weighting: str = "paper",
        every: int = 1,
        share: float = 1.0,
        decay: float = 0.01,
        warm: bool = True,
        seed: int = 0,
    ) -> None:
        if not 0 <= lam < float("inf"):
            raise errors.argument("lam", expected="a number >= 0", got=lam, fix="lam=1.0 is the paper's")
        if every < 1:
            raise errors.argument("every", expected="a whole number >= 1", got=every)
        if not 0 < share <= 1:
            raise errors.argument("share", expected="a number in (0, 1]", got=share)
        if not 0 < decay <= 1:
            raise errors.argument("decay", expected="a number in (0, 1]", got=decay, fix="0.01 is the official code's")
        _check_words(estimator, weighting)
        self.lam, self.estimator, self.weighting = lam, estimator, weighting
        self.every, self.share, self.decay = every, share, decay
        self.generator = Generator().manual_seed(seed + _rank())
        self.level: Tensor | None = None if warm else torch.zeros((), dtype=torch.float64)
        self.calls = 0
        self._norms: Tensor | None = None

    @property
    def stats(self) -> dict[str, float]:
        """Mean v of the last batch and the running mean a. v of data of unit variance is at most 0.385; waits for the device."""
        if self._norms is None or self.level is None:
            return {}
        return {"variation": float(self._norms.mean()), "level": float(self.level)}

    def due(self) -> bool:
        """Whether the next call acts."""
        return self.lam > 0 and self.calls % self.every == 0

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, condition: Condition = NOTHING
    ) -> tuple[Tensor, Tensor | None]:
        """(term, output): the weighted penalty, a scalar, and the network's output for the base loss; (0, None) where it does not act.

        Raises: LegatoValueError as `variation`, and for a v that is not finite; names the timestep.
        """
        acts = self.due()
        self.calls += 1
        if not acts:
            return x0.new_zeros(()), None
        norms, output = self._measured(denoiser, x0, noise, t, condition)
        self._norms = norms.detach()
        mean = _mean_of_group(self._norms)
        if self.level is None:
            self.level = mean
        self.level = running_level(self.level.to(mean.device), mean, self.decay)
        if not bool(self.level.isfinite()):
            raise _not_finite(self._norms, t[: len(norms)])
        return self.lam * self.every * variation_penalty(norms, self.level.to(norms)), output

    def _measured(
        self, denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """Norms of the first rows, and the output of all: the others have a plain pass."""
        rows = max(1, round(self.share * len(x0)))
        first, rest = (
            {name: part[where] for name, part in condition.items()} for where in (slice(rows), slice(rows, None))
        )
        looked_at = x0[:rows], noise[:rows], t[:rows]
        direction = unit_directions(x0[:rows], self.generator)
        norms, output = variation(
            denoiser, *looked_at, direction, condition=first, estimator=self.estimator, weighting=self.weighting
        )
        if rows < len(x0):
            others = denoiser.schedule.noisy(x0[rows:], noise[rows:], t[rows:])
            output = torch.cat([output, denoiser.output(others, t[rows:], rest).to(output)])
        return norms, output

    def state_dict(self) -> dict[str, Any]:
        """The running mean, the calls so far and the state of the generator."""
        return {"level": self.level, "calls": self.calls, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.level, self.calls = state["level"], state["calls"]
        self.generator.set_state(state["generator"].cpu())


def _exact(
    denoiser: Denoiser,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    direction: Tensor,
    condition: Condition,
    create_graph: bool,
) -> tuple[Tensor, Tensor]:
    """|d <x0_hat, u> / d x_t| of each row: the noise only acts through x_t = alpha x0 + sigma noise, so J = sigma times this."""
    with torch.enable_grad(), twice_differentiable(denoiser.model):
        x = denoiser.schedule.noisy(x0, noise, t).detach().requires_grad_(True)
        output = denoiser.output(x, t, condition)
        along = (denoiser.schedule.clean(x, output, t) * direction).sum()
        _check_type(output)
        gradient = (
            torch.autograd.grad(along, x, create_graph=create_graph, allow_unused=True)[0]
            if output.requires_grad
            else None
        )
        if gradient is None:
            raise errors.argument(
                "denoiser", expected="an x0_hat that depends on the noise", got="an output without a gradient",
                fix="leave no_grad, inference_mode and detach out of the network's forward",
            )  # fmt: skip
    return gradient.flatten(1).norm(dim=1), output


def _finite(
    denoiser: Denoiser,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    direction: Tensor,
    condition: Condition,
    create_graph: bool,
) -> tuple[Tensor, Tensor]:
    """The same by one pass of 2B rows, the second half with the noise moved by h u."""
    h = STEP * x0[0].numel() ** 0.5
    sigma = denoiser.schedule.at(t, x0)[1]
    x = denoiser.schedule.noisy(x0, noise, t)
    both, twice = torch.cat([x, x + sigma * h * direction]), torch.cat([t, t])
    with torch.set_grad_enabled(create_graph and torch.is_grad_enabled()):
        output = denoiser.output(both, twice, {name: torch.cat([value, value]) for name, value in condition.items()})
        _check_type(output)
        here, there = denoiser.schedule.clean(both, output, twice).chunk(2)
    return (there - here).flatten(1).norm(dim=1) / (h * sigma.flatten()), output.chunk(2)[0]


def _mean_of_group(norms: Tensor) -> Tensor:
    """The mean over the rows of all processes, float64; one all-reduce, no wait for the device."""
    told = torch.stack([norms.double().sum(), norms.new_tensor(len(norms), dtype=torch.float64)])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(told)
    return told[0] / told[1]


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0


def _check(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, direction: Tensor, estimator: str, weighting: str
) -> None:
    _check_words(estimator, weighting)
    for name, part in (("noise", noise), ("direction", direction)):
        if part.shape != x0.shape:
            raise errors.argument(name, expected=f"the shape of x0, {list(x0.shape)}", got=f"shape {list(part.shape)}")
    if t.dtype != torch.int64 or t.shape != x0.shape[:1]:
        raise errors.argument(
            "t", expected=f"int64 timesteps of shape [{len(x0)}]", got=f"{t.dtype} of shape {list(t.shape)}"
        )
    if estimator == "fd" and isinstance(denoiser.model, torch.nn.Module):
        noisy = [
            m
            for m in denoiser.model.modules()
            if isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.training and m.p
        ]
        if noisy:
            raise errors.argument(
                "estimator", expected="a network without dropout, for fd compares two passes", got=f"{len(noisy)} layers with dropout",
                fix="model.eval(), dropout 0, or estimator='exact'",
            )  # fmt: skip


def _check_words(estimator: str, weighting: str) -> None:
    for name, word, words in (("estimator", estimator, ESTIMATORS), ("weighting", weighting, WEIGHTINGS)):
        if word not in words:
            raise errors.choice(name, word, words)


def _check_type(output: Tensor) -> None:
    if output.dtype not in (torch.float32, torch.float64):
        raise errors.argument(
            "denoiser", expected="a network in float32 or float64: the derivative needs its digits", got=output.dtype,
            fix="keep the weights in float32, and use autocast='bf16' for the base loss",
        )  # fmt: skip


def _not_finite(norms: Tensor, t: Tensor) -> errors.LegatoValueError:
    bad = (~norms.isfinite()).nonzero()
    where = f"t = {int(t[bad[0, 0]])}" if len(bad) else "another process"
    return errors.argument(
        "variation", expected="finite norms", got=f"{len(bad)} of {len(norms)} that are not, the first at {where}",
        fix="check the scaling factor of the latents, the prediction type and the schedule",
    )  # fmt: skip
