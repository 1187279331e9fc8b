"""What the objectives of a task are ranked by: a number, its unit, which way is better, and the words for it."""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from legato.data.text import Text
from legato.lab.statistics import Estimate

Numbers = TypeVar("Numbers", float, NDArray[np.float64])


@dataclass(frozen=True)
class Score:
    """How the arms of a comparison are ranked. A trial stores a number of which less is better, an error or a loss."""

    name: str
    """Also what `Result.table` calls it."""
    key: str
    """Of the stored number, behind `test_` and `validation_`."""
    curve: str
    """Of the stored number at each check of a training."""
    sign: int
    """1: one minus the stored number is shown, and more is better. -1: the stored number is shown, and less is better."""
    scale: int
    """From the shown number's own unit to that of tables and figures."""
    digits: int
    lost: float
    """The stored number of a check that a run did not reach."""
    heading: str
    """Of its column."""
    gain: str
    """Heading of the difference to the baseline, which is above 0 where an arm is better."""
    unit: str
    """Of differences."""
    reached: str
    """The words behind the number, for a baseline without rivals."""
    margin: str
    """... and behind a difference, before the baseline's name."""
    told: str
    """Name and unit, after the word validation."""
    truth: str
    """What probabilities are held against."""
    check: str
    """What passes between two points of a learning curve."""
    clean: str
    """The words for data as it came."""

    def value(self, stored: Numbers) -> Numbers:
        """The number that is shown, of the number that a trial stores."""
        return 1 - stored if self.sign > 0 else stored

    def items(self, arrays: dict[str, NDArray[np.generic]]) -> NDArray[np.float64]:
        """[N] the number that is shown, for each test item: 1 where the prediction is the true label, or the loss."""
        found = arrays["prediction"] == arrays["true"] if self.sign > 0 else arrays[self.key]
        return found.astype(np.float64)

    def text(self, estimate: Estimate) -> str:
        """A mean or a difference with its interval, in the unit of tables."""
        return estimate.text(self.scale, self.digits)


ACCURACY = Score(
    name="accuracy", key="error", curve="validation_error", sign=1, scale=100, digits=1, lost=1.0,
    heading="accuracy %", gain="difference", unit="points", reached="% accuracy", margin="points of test accuracy more than",
    told="accuracy in percent", truth="test labels with the noise of training", check="epoch", clean="on the labels as they are",
)  # fmt: skip
LOSS = Score(
    name="loss", key="nll_scaled", curve="validation_loss", sign=-1, scale=1, digits=3, lost=math.log(Text.vocabulary),
    heading="nats a byte", gain="fewer nats", unit="nats a byte", reached="nats a byte", margin="nats a byte of test loss less than",
    told="loss in nats a byte", truth="the next bytes of test text", check="check", clean="on this text",
)  # fmt: skip
