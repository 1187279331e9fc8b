"""A paper's claims, written down before the confirming run, and the verdict that the measurement gives each."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from legato import errors
from legato.lab import statistics
from legato.lab.statistics import Estimate

NOT_TESTED = "not tested here"
WORDS = ("shows", "does not show", "undecided", NOT_TESTED)


@dataclass(frozen=True)
class Claim:
    """One claim, and the contrast that would show it. Without a study it is not tested, and `reason` says why."""

    id: str
    paper: str
    """arXiv number."""
    words: str
    """The abstract's words, or ours where the paper says it otherwise."""
    study: str = ""
    part: str = ""
    """The comparison of the study that is looked at; a pattern such as `table *` takes the mean over several."""
    arm: str = ""
    baseline: str = ""
    label_noise: float = 0.0
    metric: str = "accuracy"
    unit: str = "points"
    """What differences are shown in; a point is a hundredth of the metric's own unit, any other name is that unit's."""
    minimal_effect: float = 0.0
    """Smallest difference arm - baseline, in the metric's own unit, that is worth the name."""
    reason: str = ""

    def __post_init__(self) -> None:
        if bool(self.study) == bool(self.reason):
            raise errors.argument(
                f"claim {self.id}", expected="either a study or the reason why it is not tested", got=f"study={self.study!r}, reason={self.reason!r}"
            )  # fmt: skip

    def shown(self, value: float) -> float:
        """A difference in the unit that it is shown in."""
        return 100 * value if self.unit == "points" else value


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict; `difference` is None where nothing was measured."""

    claim: Claim
    verdict: str
    difference: Estimate | None = None
    p_value: float | None = None

    @property
    def told(self) -> str:
        """The difference with its interval and unit; empty where nothing was measured."""
        if self.difference is None:
            return ""
        points = self.claim.unit == "points"
        return self.difference.text(100, 1) if points else f"{self.difference.text(1, 2)} {self.claim.unit}"

    @property
    def needed(self) -> str:
        """The smallest difference that is worth the name; empty where nothing was measured."""
        return "" if self.difference is None else f"{self.claim.shown(self.claim.minimal_effect):g}"


def load(path: Path) -> tuple[Claim, ...]:
    """Read claims from a TOML file with one [[claim]] table each; an unknown key fails and names its nearest neighbour."""
    known = {field.name for field in fields(Claim)}
    tables: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["claim"]
    for table in tables:
        for key in table:
            if key not in known:
                raise errors.choice(f"claim {table.get('id', '?')}, key", key, known)
    return tuple(Claim(**table) for table in tables)


def judge(claims: Sequence[Claim], differences: Mapping[str, ArrayLike]) -> list[Judged]:
    """Give each claim its word.

    Args:
        claims: of one study, in any order.
        differences: claim id -> [S] arm minus baseline, one number a seed. Corrected by Holm over all of them together.
    """
    tested = [claim for claim in claims if claim.id in differences]
    p_values = [statistics.paired_p_value(differences[c.id], c.minimal_effect) for c in tested]
    levels, adjusted = statistics.holm_levels(p_values), statistics.holm(p_values)
    judged: dict[str, Judged] = {}
    for claim, level, p in zip(tested, levels, adjusted, strict=True):
        interval = statistics.t_interval(differences[claim.id], float(level))
        judged[claim.id] = Judged(
            claim, statistics.word(interval.low, interval.high, claim.minimal_effect), interval, float(p)
        )
    return [judged.get(claim.id, Judged(claim, NOT_TESTED)) for claim in claims]
