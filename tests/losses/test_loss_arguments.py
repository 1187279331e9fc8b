"""What the losses refuse, and the words in which they do."""

import math

import numpy as np
import pytest
import torch

from legato.errors import LegatoTypeError, LegatoValueError
from legato.losses import comp_sum_loss, focal_loss

LOGITS, TARGET = torch.zeros(7, 5), torch.arange(7) % 5
ONE_HOT_TEXT = (
    "target: expected int64 class indices of shape [7]; got torch.int64 of shape [7, 5]. "
    "Fix: for one-hot rows, pass target.argmax(-1)."
)
OUT_OF_RANGE = "target: expected classes in 0 .. 4, for 5 logits a row; got class 5."

BOTH = [
    ({"reduction": "men"}, LegatoValueError, "Did you mean 'mean'"),
    ({"reduction": None}, LegatoValueError, "reduction"),
    ({"logits": torch.zeros(7, 5, dtype=torch.int64)}, LegatoTypeError, "got torch.int64. Fix: pass the model's raw scores"),
    ({"logits": [[0.0]]}, LegatoTypeError, "got list"),
    ({"logits": torch.tensor(0.0)}, LegatoValueError, "got a scalar"),
    ({"target": torch.zeros(7, 5, dtype=torch.int64)}, LegatoValueError, ONE_HOT_TEXT),
    ({"target": TARGET.int()}, LegatoValueError, "pass target.long()"),
    ({"target": TARGET.bool()}, LegatoValueError, "got torch.bool of shape [7]"),
    ({"target": TARGET[:6]}, LegatoValueError, "shape [7]; got torch.int64 of shape [6]"),
    ({"target": TARGET[:, None]}, LegatoValueError, "shape [7]; got torch.int64 of shape [7, 1]"),
    ({"target": torch.full((7,), 5)}, LegatoValueError, OUT_OF_RANGE),
    ({"target": torch.full((7,), -1)}, LegatoValueError, "got class -1"),
    ({"weight": torch.ones(4)}, LegatoValueError, "weight: expected shape [5]; got shape [4]"),
    ({"weight": torch.ones(5, 1)}, LegatoValueError, "weight"),
]  # fmt: skip
COMP_SUM = [
    ({"tau": -0.1}, LegatoValueError, "tau: expected a plain finite number >= 0; got -0.1. Fix: tau=1.0 is cross-entropy."),
    ({"tau": math.nan}, LegatoValueError, "tau"),
    ({"tau": math.inf}, LegatoValueError, "tau"),
    ({"tau": torch.tensor(1.0)}, LegatoValueError, "plain"),
    ({"tau": "1.7"}, LegatoValueError, "got 1.7"),
    ({"temperature": 0.0}, LegatoValueError, "temperature"),
    ({"temperature": -1.0}, LegatoValueError, "temperature"),
    ({"temperature": math.nan}, LegatoValueError, "temperature"),
    ({"label_smoothing": 1.1}, LegatoValueError, "label_smoothing"),
    ({"label_smoothing": -0.1}, LegatoValueError, "label_smoothing"),
    ({"target": torch.zeros(7, 4)}, LegatoValueError, "probabilities of shape [7, 5]; got torch.float32 of shape [7, 4]"),
    ({"target": torch.zeros(7)}, LegatoValueError, "Fix: class indices must be int64"),
    ({"target": torch.full((7,), 5), "label_smoothing": 0.1}, LegatoValueError, OUT_OF_RANGE),
    ({"target": torch.full((7,), 5), "weight": torch.ones(5)}, LegatoValueError, OUT_OF_RANGE),
]  # fmt: skip
FOCAL = [
    ({"gamma": -1.0}, LegatoValueError, "gamma: expected a plain finite number >= 0; got -1.0"),
    ({"gamma": math.nan}, LegatoValueError, "gamma"),
    ({"gamma": torch.tensor(2.0)}, LegatoValueError, "gamma"),
    ({"target": torch.zeros(7, 5)}, LegatoValueError, "for one-hot rows, pass target.argmax(-1)"),
]
TABLE = [(loss, *row) for loss in (comp_sum_loss, focal_loss) for row in BOTH]
TABLE += [(comp_sum_loss, *row) for row in COMP_SUM] + [(focal_loss, *row) for row in FOCAL]


@pytest.mark.parametrize(("loss", "change", "error", "words"), TABLE)
def test_bad_input(loss, change, error, words):
    arguments = {"logits": LOGITS, "target": TARGET} | change
    with pytest.raises(error) as caught:
        loss(**arguments)
    assert words in str(caught.value)


def test_a_class_out_of_range_in_a_picture_is_named():
    with pytest.raises(LegatoValueError, match="got class 9"):
        comp_sum_loss(torch.zeros(2, 5, 3), torch.tensor([[0, 1, 2], [0, 9, 2]]), 1.7)


@pytest.mark.parametrize("tau", [1, np.float32(1.5), np.float64(1.5), np.int64(2)])
def test_any_plain_number_will_do(tau):
    assert comp_sum_loss(LOGITS, TARGET, tau) == comp_sum_loss(LOGITS, TARGET, float(tau))
