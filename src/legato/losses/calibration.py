"""Probabilities from a model that was trained with a comp-sum loss."""

from torch import Tensor

from legato import errors
from legato.losses.arguments import check_logits, is_number


def recalibrate(logits: Tensor, tau: float) -> Tensor:
    """Logits whose softmax estimates the class probabilities, from those of a model that was trained with comp-sum tau.

    The minimiser of the comp-sum risk has softmax(h) proportional to q^(1/(2-tau)), q being the class probabilities, so that q is
    softmax(h)^(2-tau), normalised, which is softmax((2-tau) h): a temperature of 1/(2-tau) that needs no validation data. With tau = 1
    nothing changes. A model that is not the minimiser keeps its own errors; a fitted temperature mends those too, where there are data.

    The probabilities are those of the labels that the model was trained on, with their noise. Ours, not the paper's.

    Args:
        logits: [..., C], floating point, of a model trained at temperature 1; for another one, divide the logits by it first.
        tau: in [0, 2), the one of the end of the training.
    Returns: logits * (2 - tau), in the shape and dtype of logits, for softmax, cross-entropy or a further temperature.
    Raises: LegatoValueError for tau >= 2, where the minimiser only says which class is likeliest, and for a tau out of range.
    """
    check_logits(logits)
    if not (is_number(tau) and 0 <= tau < 2):
        beyond = is_number(tau) and tau >= 2
        fix = "the minimiser for tau >= 2 holds no probabilities: train with tau < 2, or fit a map on validation data"
        raise errors.argument("tau", expected="a plain number in [0, 2)", got=tau, fix=fix if beyond else "")
    return logits * (2 - tau)
