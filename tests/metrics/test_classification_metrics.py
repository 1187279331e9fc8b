"""Error rate and confusions."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from legato.errors import LegatoValueError
from legato.metrics import confusion, error_rate, expected_calibration_error, nll, top_confused


def test_error_rate_by_hand():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [5.0, 5.0]])  # a tie goes to the first class
    assert error_rate(logits, torch.tensor([0, 0, 1, 0])) == 0.5


def test_a_nan_row_is_no_right_answer():
    logits = torch.tensor([[math.nan, 1.0], [0.0, 3.0]])
    assert math.isnan(error_rate(logits, torch.tensor([0, 1])))
    assert math.isnan(nll(logits, torch.tensor([0, 1])))
    assert math.isnan(expected_calibration_error(logits, torch.tensor([0, 1])))


def test_confusion_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    true, guessed = rng.integers(5, size=200), rng.integers(5, size=200)
    assert (confusion(guessed, true, 6) == confusion_matrix(true, guessed, labels=range(6))).all()
    assert (confusion(torch.tensor(guessed), torch.tensor(true), 6) == confusion(guessed, true, 6)).all()
    assert confusion([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_the_most_frequent_mistakes_come_first():
    counts = [[50, 0, 3], [7, 40, 0], [3, 1, 30]]
    names = ("ant", "bee", "cow")
    assert top_confused(counts, names, 3) == [("bee", "ant", 7), ("ant", "cow", 3), ("cow", "ant", 3)]
    assert len(top_confused(counts, names, 10)) == 4
    assert top_confused(np.diag([3, 3, 3]), names, 5) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: error_rate(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)), "N >= 1"),
        (lambda: error_rate(torch.zeros(2), torch.zeros(2, dtype=torch.int64)), "logits"),
        (lambda: error_rate(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)), r"shape \[2\]"),
        (lambda: error_rate(torch.zeros(2, 3), torch.zeros(2)), "int64"),
        (lambda: error_rate(torch.zeros(2, 3), torch.tensor([0, 3])), r"0 \.\. 2; got classes in 0 \.\. 3"),
        (lambda: confusion([0, 3], [0, 1], 3), "prediction"),
        (lambda: confusion([0, 1], [0, -1], 3), "target"),
        (lambda: confusion([0, 1], [0], 3), "shape"),
        (lambda: top_confused([[1, 2], [3, 4]], ("a",), 1), "expected 2 names; got 1 names"),
    ],
)
def test_bad_rows_are_named(call, words):
    with pytest.raises(LegatoValueError, match=words):
        call()
