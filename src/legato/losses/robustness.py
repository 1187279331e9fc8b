"""How many rows survive the worst of several attacks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from legato import errors
from legato.losses.attack_losses import ON_SCORES, own_scores, toward
from legato.losses.attacks import Attack, Model, held_still, scores
from legato.losses.ball import Bound

TARGETED = "targeted"
LOSSES = ("cross-entropy", "margin", TARGETED)


@dataclass(frozen=True, eq=False)
class WorstCase:
    """What `worst_case` found."""

    correct: Tensor
    """[N] bool: rows that the model classifies correctly as they are."""
    robust: Tensor
    """[N] bool: those of them that no attack has broken. A stronger attack can only find fewer: it is an upper bound of the truth."""
    broken_by: dict[str, int]
    """How many rows each loss has broken; a row counts for the first that did."""

    @property
    def clean_accuracy(self) -> float:
        """Share of correct rows in [0, 1]; NaN of no row."""
        return float(self.correct.double().mean())

    @property
    def accuracy(self) -> float:
        """Share of robust rows in [0, 1], the accuracy under attack; NaN of no row."""
        return float(self.robust.double().mean())


def worst_case(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    bounds: tuple[Bound, Bound],
    norm: str = "linf",
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 2,
    losses: Sequence[str] = LOSSES,
    targets: int = 3,
    batch_size: int = 256,
    seed: int = 0,
) -> WorstCase:
    """The rows that stay correct, in evaluation mode, under `pgd` with each of several losses and starts; the best of all steps counts.

    A row that is broken is not attacked again. The same call gives the same result: the starts come from a generator of its own.

    Args:
        model, x, y, radius, bounds, norm, steps, step_size: as in `pgd`.
        restarts: >= 1 starts for each loss.
        losses: of "cross-entropy", "margin", "dlr" and "targeted", in the order in which they are tried. "targeted" climbs h_t - h_y
            for one after the other of the wrong classes t with the largest clean scores.
        targets: >= 1, how many of them; C - 1 is all.
        batch_size: >= 1 rows at a time.
        seed: of the starts.
    Raises: as `pgd`, with values read on every device; LegatoValueError for an unknown loss, or none.
    """
    names = _checked(losses)
    for name, count in (("restarts", restarts), ("targets", targets), ("batch_size", batch_size)):
        if not (isinstance(count, int) and count >= 1):
            raise errors.argument(name, expected="a whole number >= 1", got=count)
    attack = Attack(radius, bounds, norm, steps, step_size, best_step=True)
    attack.check(x, y, values=True)
    generator = torch.Generator(x.device).manual_seed(seed)
    correct, robust = (torch.zeros_like(y, dtype=torch.bool) for _ in range(2))
    broken_by = dict.fromkeys(names, 0)
    for batch in torch.arange(len(x), device=x.device).split(batch_size):
        clean = _evaluated(model, x[batch])
        right = _right(clean, y[batch])
        correct[batch] = right
        left, rivals = batch[right], _rivals(clean[right], y[batch][right], targets)
        for name, place in _lineup(names, restarts, rivals.shape[1]):
            if len(left) == 0:
                break
            loss = toward(rivals[:, place]) if name == TARGETED else name
            kept = _right(_evaluated(model, attack.find(model, x[left], y[left], loss, generator)), y[left])
            broken_by[name] += int((~kept).sum())
            left, rivals = left[kept], rivals[kept]
        robust[left] = True
    return WorstCase(correct, robust, broken_by)


def survives(model: Model, x: Tensor, y: Tensor, *, batch_size: int = 256) -> Tensor:
    """[N] bool: which rows the model classifies correctly in evaluation mode, for inputs that any attack has made.

    On a tie the first of the largest scores is the prediction; a row with NaN among its scores is wrong.
    """
    return torch.cat(
        [
            _right(_evaluated(model, part), rows)
            for part, rows in zip(x.split(batch_size), y.split(batch_size), strict=True)
        ]
    )


def _evaluated(model: Model, x: Tensor) -> Tensor:
    with torch.no_grad(), held_still(model, "eval"):
        return scores(model, x)


def _right(h: Tensor, y: Tensor) -> Tensor:
    own_scores(h, y)  # names a class that does not fit
    return (h.argmax(1) == y) & ~h.isnan().any(1)


def _rivals(clean: Tensor, y: Tensor, targets: int) -> Tensor:
    """[B, T] wrong classes with the largest clean scores, T = min(targets, C - 1)."""
    return clean.scatter(1, y[:, None], -torch.inf).topk(min(targets, clean.shape[1] - 1), dim=1).indices


def _lineup(names: Sequence[str], restarts: int, rivals: int) -> list[tuple[str, int]]:
    """(loss, which rival) of each attack, in order; the rival counts for the targeted loss alone."""
    runs = [(name, place) for name in names for place in range(rivals if name == TARGETED else 1)]
    return [run for run in runs for _ in range(restarts)]


def _checked(losses: Sequence[str]) -> list[str]:
    names = [losses] if isinstance(losses, str) else list(losses)
    known = [*ON_SCORES, TARGETED]
    for name in names:
        if name not in known:
            raise errors.choice("losses", str(name), known)
    if not names:
        raise errors.argument("losses", expected="at least one attack loss", got="none", fix=f"losses={LOSSES}")
    return names
