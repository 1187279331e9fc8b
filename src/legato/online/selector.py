"""A selector that learns, while a model trains, which of a few options to go on with: objectives, data sources, learning rates."""

from collections.abc import Hashable, Sequence
from typing import Any, final

import numpy as np

from legato import errors
from legato.online.ftrl import FTRL
from legato.online.simplex import Regulariser

MEMORY = 300
"""Reports after which the past has faded to 1/e; set by hand on a source of data that changes once in 3,000 steps."""


@final
class Selector:
    """Picks one of a few options again and again, from signals of progress: `name = choose()`, train with it, `report(progress)`.

    Progress is any number that is larger when things go better, such as the fall of a held-out loss: it may have any sign, unit and
    size, and become smaller as training goes on. What counts is how it differs from the mean of the reports before. Underneath is
    `FTRL` with one arm seen a round, its rate falling by itself, and with a discount.

    What is not promised. A learner without a discount (memory=None) has no regret against the best single option, and therefore
    locks in: after the best option has changed for good it stays with the old one for about as long as that was the best, which can
    be worse than picking blindly. With a discount it forgets, and never stops trying the others. And no guarantee covers policy
    regret: what a model would have become, had one option been used all along, is nowhere seen, since each report depends on the model
    that earlier choices have made. Only the reports as they came are compared.

    Args:
        names: the options, at least one, hashable, different and not None.
        memory: > 1, in reports: the discount is 1 - 1/memory. None never forgets.
        regulariser: "log-barrier", which needs neither a range of the signals nor forced exploration; "entropy" or "tsallis".
        eta: > 0, a fixed rate in 1 over the unit of progress; None lets it fall by itself, whatever the unit.
        share: in [0, 1), as in `FTRL`.
        boldness: > 0, a factor of the falling rate.
        seed: of the choices.
    Raises: LegatoValueError for no names, equal ones, or a number out of range.
    """

    def __init__(
        self,
        names: Sequence[Hashable],
        *,
        memory: float | None = MEMORY,
        regulariser: Regulariser = "log-barrier",
        eta: float | None = None,
        share: float = 0.0,
        boldness: float = 1.0,
        seed: int | np.random.Generator = 0,
    ) -> None:
        options = tuple(names)
        if not options:
            raise errors.argument("names", expected="at least one option", got=list(options))
        if memory is not None and not 1 < memory < np.inf:
            raise errors.argument("memory", expected="a finite number > 1 of reports, or None", got=memory)
        self.learner = FTRL(
            regulariser, len(options), eta, discount=1.0 if memory is None else 1 - 1 / memory, share=share,
            boldness=boldness, names=options, seed=seed,
        )  # fmt: skip
        self.picks: dict[Hashable, int] = dict.fromkeys(options, 0)
        """How often each option has been reported on."""
        self._pending: tuple[int, float] | None = None  # the option chosen, and with which probability
        self._sum = self._weight = 0.0  # of the reports so far, discounted

    @property
    def names(self) -> tuple[Hashable, ...]:
        """The options."""
        return self.learner.names

    def probs(self) -> dict[Hashable, float]:
        """The probability of each option at the next choice."""
        return dict(zip(self.names, self.learner.probs().tolist(), strict=True))

    def choose(self) -> Any:
        """The option to go on with; the same one until it is reported on."""
        if self._pending is None:
            place = self.names.index(self.learner.sample())
            self._pending = (place, float(self.learner.probs()[place]))
        return self.names[self._pending[0]]

    def report(self, progress: float) -> None:
        """How much better things have become with the option that was chosen last.

        Args:
            progress: any finite number, larger is better; a number or a scalar tensor.
        Raises: LegatoValueError without a choice before it, or for a NaN or an infinity; the choice then stands, and another
            report can follow.
        """
        if self._pending is None:
            raise errors.argument(
                "report",
                expected="a choice before it",
                got="none",
                fix="name = selector.choose(); ...; selector.report(progress)",
            )
        value = float(progress)
        if not abs(value) < np.inf:
            fix = "leave this report out, or report the worst progress that can be"
            raise errors.argument("progress", expected="a finite number", got=value, fix=fix)
        place, prob = self._pending
        name = self.names[place]
        if self._weight:  # the first report only says where zero is: a mean that does not depend on the choice keeps the weights unbiased
            self.learner.update(name, self._sum / self._weight - value, prob)
        keep = self.learner.discount
        self._sum, self._weight = keep * (self._sum + value), keep * (self._weight + 1)
        self.picks[name] += 1
        self._pending = None

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts of these, also between a choice and its report."""
        return {
            "learner": self.learner.state_dict(), "picks": list(self.picks.values()), "pending": self._pending,
            "sum": self._sum, "weight": self._weight,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was, with the same choices.

        Raises: LegatoValueError for the state of a selector with other options or another regulariser.
        """
        self.learner.load_state_dict(state["learner"])
        self.picks = dict(zip(self.names, state["picks"], strict=True))
        self._pending = None if state["pending"] is None else (int(state["pending"][0]), float(state["pending"][1]))
        self._sum, self._weight = state["sum"], state["weight"]
