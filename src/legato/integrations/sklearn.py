"""EnsLoss, and the fixed losses beside it, as a classifier for scikit-learn."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from legato import errors
from legato.data.batches import Batches
from legato.losses.arguments import is_number
from legato.losses.ensloss import EnsLoss
from legato.losses.margin_losses import MarginLoss
from legato.training import Criterion, cosine, fit

Loss = Callable[[Tensor, Tensor], Tensor]


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary for one logit, else that of the softmax."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], target.to(logits.dtype))
    return F.cross_entropy(logits, target)


LOSSES: dict[str, Callable[[int], Loss]] = {
    "ensloss": lambda seed: EnsLoss(seed=seed),
    "ensloss-fixed": lambda seed: EnsLoss(random=False),
    "log-tail": lambda seed: MarginLoss("log-tail"),
    "bce": lambda seed: _cross_entropy,
    "hinge": lambda seed: MarginLoss("hinge"),
    "exponential": lambda seed: MarginLoss("exponential"),
}
"""What `loss` may be: how to make it from a seed."""


def _has_probabilities(estimator: "EnsLossClassifier") -> bool:
    if estimator.calibration is None:
        raise AttributeError(
            "predict_proba: the scores of this loss are not probabilities. "
            "Fix: calibration='sigmoid' or 'isotonic', which fits them on held-out rows."
        )
    return True


def _has_scores(estimator: "EnsLossClassifier") -> bool:
    if estimator.calibration is not None:
        raise AttributeError("decision_function: predictions go by probabilities with calibration. Fix: predict_proba.")
    return True


class EnsLossClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A multi-layer perceptron trained with EnsLoss, or with one of the fixed losses that belong beside it.

    Inputs are standardised; training is SGD with momentum .9 and a learning rate that falls like half a cosine. Two classes have one
    logit f and are told apart by its sign; C > 2 classes have C scores, and EnsLoss, hinge, log-tail and exponential loss see the
    margin of the label over the runner-up (a form that is ours; the paper is binary).

    Tune `learning_rate` for each `loss` by itself: they differ in the size of their gradients, and a comparison at one rate compares
    that. Scores are not probabilities: without `calibration` there is `decision_function` and no `predict_proba`. With it there is
    `predict_proba` and no `decision_function`: `calibration_share` of the rows are kept out of training, the probabilities are
    fitted to their scores, and `predict` goes by them.

    Args:
        hidden_layer_sizes: units of each hidden layer, ReLU between; () is a linear classifier.
        loss: "ensloss", "ensloss-fixed" (without randomness), "log-tail", "bce" (cross-entropy), "hinge" or "exponential".
        learning_rate: > 0, of the first step.
        epochs: >= 1.
        batch_size: rows of a step, >= 1; EnsLoss ranks within a batch, so that small ones coarsen it.
        weight_decay: >= 0, of SGD.
        calibration: None, "sigmoid" (Platt) or "isotonic".
        calibration_share: share of the rows, in (0, 1), that are held out for the calibration.
        random_state: seeds initial weights, order of rows, draws of EnsLoss, and the held-out rows.
        device: where to train; predictions are made on the CPU, in float64.

    Attributes: `classes_`, `n_features_in_`, `network_`, `scaler_`, `history_` (one dict an epoch).
    Source: Dai 2025, arXiv 2409.00908, for loss, optimizer and schedule; the defaults of learning rate, epochs and widths are ours.
    """

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (64, 64),
        *,
        loss: str = "ensloss",
        learning_rate: float = 0.01,
        epochs: int = 100,
        batch_size: int = 128,
        weight_decay: float = 5e-6,
        calibration: str | None = None,
        calibration_share: float = 0.2,
        random_state: Any = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.loss = loss
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.calibration = calibration
        self.calibration_share = calibration_share
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike) -> "EnsLossClassifier":
        """Train on X [N, D] and labels y [N] of any type.

        Raises: LegatoValueError for a parameter out of range, fewer than two classes, a class too rare to hold a row out, and a
            training that diverges; ValueError of scikit-learn for X or y that it refuses.
        """
        self._check_parameters()
        rows, given = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(given)
        self.classes_, labels = np.unique(given, return_inverse=True)
        if len(self.classes_) < 2:
            fix = "there is nothing to tell apart"
            raise errors.argument("y", expected="at least two classes", got="one class", fix=fix)
        random = check_random_state(self.random_state)
        if self.calibration is None:
            self._train(rows, labels, random)
            return self
        kept, held = self._split(labels, random)
        self._train(rows[kept], labels[kept], random)
        self._calibrate(rows[held], self.classes_[labels[held]])
        return self

    @available_if(_has_scores)  # type: ignore[untyped-decorator]
    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """The logit [N] for two classes, above 0 for `classes_[1]`; else the scores [N, C]. None with `calibration`."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=np.float64)
        with torch.no_grad():
            scores: NDArray[np.float64] = self.network_(torch.from_numpy(self.scaler_.transform(rows))).numpy()
        return scores[:, 0] if scores.shape[1] == 1 else scores

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probabilities [N, C]. None without `calibration`."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=np.float64)
        probabilities: NDArray[np.float64] = self.calibrated_.predict_proba(rows)
        return probabilities

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The label [N] with the highest score, or probability with `calibration`."""
        scores = self.decision_function(X) if self.calibration is None else self.predict_proba(X)
        winners = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        labels: NDArray[Any] = self.classes_[winners]
        return labels

    def _check_parameters(self) -> None:
        if self.loss not in LOSSES:
            raise errors.choice("loss", str(self.loss), LOSSES)
        if self.calibration not in (None, "sigmoid", "isotonic"):
            raise errors.choice("calibration", str(self.calibration), ("sigmoid", "isotonic", "None"))
        sizes = self.hidden_layer_sizes
        if not isinstance(sizes, Sequence) or not all(_is_count(size) for size in sizes):
            fix = "(64, 64) has two layers, (64,) has one"
            raise errors.argument("hidden_layer_sizes", expected="whole numbers >= 1 in a tuple", got=sizes, fix=fix)
        for name in ("epochs", "batch_size"):
            if not _is_count(getattr(self, name)):
                raise errors.argument(name, expected="a whole number >= 1", got=getattr(self, name))
        if not (is_number(self.learning_rate) and self.learning_rate > 0):
            raise errors.argument("learning_rate", expected="a number > 0", got=self.learning_rate)
        if not (is_number(self.weight_decay) and self.weight_decay >= 0):
            raise errors.argument("weight_decay", expected="a number >= 0", got=self.weight_decay)
        if not (is_number(self.calibration_share) and 0 < self.calibration_share < 1):
            raise errors.argument("calibration_share", expected="a number in (0, 1)", got=self.calibration_share)

    def _split(self, labels: NDArray[Any], random: np.random.RandomState) -> tuple[NDArray[Any], NDArray[Any]]:
        """Rows to train on and rows to calibrate on, each class in both."""
        try:
            kept, held = train_test_split(
                np.arange(len(labels)), test_size=self.calibration_share, stratify=labels, random_state=random
            )
        except ValueError as problem:
            raise self._too_rare(str(problem)) from problem
        if len(np.unique(labels[held])) < len(self.classes_):
            raise self._too_rare("a class without a held-out row")
        return kept, held

    def _calibrate(self, rows: NDArray[np.float64], labels: NDArray[Any]) -> None:
        everything = np.arange(len(labels))
        scores = copy.copy(self)
        scores.calibration = None
        scores.__dict__.pop("feature_names_in_", None)  # it is given arrays
        once = CalibratedClassifierCV(
            FrozenEstimator(scores), method=self.calibration, cv=[(everything, everything)], ensemble=True
        )
        self.calibrated_ = once.fit(rows, labels)

    def _too_rare(self, got: str) -> errors.LegatoValueError:
        expected = "rows of each class for training and for calibration"
        return errors.argument("y", expected=expected, got=got, fix="a larger calibration_share, or calibration=None")

    def _train(self, X: NDArray[np.float64], labels: NDArray[Any], random: np.random.RandomState) -> None:
        init, order, draws = (int(seed) for seed in random.randint(2**31 - 1, size=3))
        self.scaler_ = StandardScaler().fit(X)
        inputs = torch.from_numpy(self.scaler_.transform(X)).float().to(self.device)
        targets = torch.from_numpy(labels).long().to(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init)
            network = _network(X.shape[1], self.hidden_layer_sizes, len(self.classes_))
        optimizer = partial(torch.optim.SGD, lr=self.learning_rate, momentum=0.9, weight_decay=self.weight_decay)
        fitted = fit(
            network,
            Criterion(LOSSES[self.loss](draws)),
            Batches(inputs, targets, torch.arange(len(labels), device=inputs.device), self.batch_size, seed=order),
            epochs=self.epochs,
            optimizer=optimizer,
            schedule=cosine,
            device=self.device,
        )
        if fitted.diverged:
            fix = "a smaller learning rate"
            raise errors.argument("learning_rate", expected="a training that converges", got=fitted.diverged, fix=fix)
        self.network_ = network.cpu().double().eval()
        self.history_ = fitted.history


def _network(features: int, hidden: Sequence[int], classes: int) -> nn.Module:
    """Linear layers with ReLU between, and one logit for two classes."""
    widths = [features, *hidden]
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1 if classes == 2 else classes))


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and bool(value >= 1)
