"""What the adversarial objectives have in common: the attack, random numbers of its own, a look at the first batch, and a report."""

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from legato import errors
from legato.losses.arguments import check_range, num_classes
from legato.losses.attacks import Attack, Model, held_still, scores, unwrapped
from legato.losses.rows import reduce


class Outcome(NamedTuple):
    """What an adversarial loss computes for a batch."""

    losses: Tensor
    """[B], with a graph."""
    found: Tensor | None = None
    """[B], detached: the value that the attack has driven up, at x'; None where no attack was made."""
    wrong: Tensor | None = None
    """[B] bool: which attacked rows are misclassified."""

    def reduced(self, reduction: str) -> Tensor:
        """The losses after "none", "mean" or "sum"; a mean over nothing is 0."""
        return reduce(self.losses, torch.ones_like(self.losses), reduction)


@dataclass(frozen=True)
class Diagnostics:
    """The last batch of an adversarial objective, as detached tensors: reading one is what waits for the device."""

    found: Tensor
    """Mean over the rows of what the attack drives up, at its end: a shift of margins, a divergence, or a loss."""
    misclassified: Tensor
    """Share of the attacked rows that the model gets wrong, in training mode."""


@final
class Adversary:
    """The part of an adversarial objective that is not its formula.

    Args:
        attack: how x' is looked for.
        seed: of the random starts, which are drawn on the device of the inputs.
    """

    def __init__(self, attack: Attack, seed: int) -> None:
        if not isinstance(seed, int):
            raise errors.argument("seed", expected="a whole number", got=seed)
        self.attack, self.seed, self.calls = attack, seed, 0
        self.last: Diagnostics | None = None
        self._generator: torch.Generator | None = None
        self._saved: tuple[str, Tensor] | None = None  # a state to go on from, until the device is known

    def ready(self, model: Model, x: Tensor, y: Tensor) -> torch.Generator:
        """Check the batch, with its values at the first call on any device, and return the generator for its attack.

        Raises: LegatoValueError or LegatoTypeError for a batch that cannot be attacked.
        """
        first = self.calls == 0
        self.calls += 1
        self.attack.check(x, y, values=first)
        if first and len(x):
            network = unwrapped(model)
            with torch.no_grad(), held_still(network, "eval"):
                classes = num_classes(scores(network, x[:1]))
            check_range(y, classes, ignore_index=0)  # class 0 is in range: nothing is ignored
        return self._generator_on(x.device)

    def report(self, outcome: Outcome, reduction: str = "mean") -> Tensor:
        """Keep the diagnostics of a batch and return its loss."""
        if outcome.found is None or outcome.wrong is None:
            self.last = None
        else:
            share = outcome.found.new_tensor(1 / max(1, len(outcome.found)))
            self.last = Diagnostics(outcome.found.sum() * share, outcome.wrong.sum() * share)
        return outcome.reduced(reduction)

    def state_dict(self) -> dict[str, Any]:
        """How far the random numbers are, so that a resumed run has the same starts."""
        generator = self._generator
        saved = self._saved if generator is None else (generator.device.type, generator.get_state())
        return {"calls": self.calls, "seed": self.seed, "generator": saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; on another kind of device the random numbers begin anew from its seed."""
        self.calls, self.seed, self._saved, self._generator = state["calls"], state["seed"], state["generator"], None

    def _generator_on(self, device: torch.device) -> torch.Generator:
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
            if self._saved is not None and self._saved[0] == device.type:
                self._generator.set_state(self._saved[1])
            self._saved = None
        return self._generator
