"""The scikit-learn estimator: its conventions, what each loss learns, its probabilities, and what it refuses."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from legato.errors import LegatoError, LegatoValueError
from legato.integrations.sklearn import LOSSES, EnsLossClassifier


def small(**options):
    return EnsLossClassifier(
        **{"hidden_layer_sizes": (16,), "epochs": 20, "learning_rate": 0.05, "random_state": 0} | options
    )


@pytest.mark.slow
@pytest.mark.parametrize("calibration", [None, "sigmoid"])
def test_it_is_an_estimator(calibration):
    check_estimator(small(calibration=calibration, random_state=None), on_skip=None)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("data", [load_breast_cancer, load_iris])
def test_every_loss_learns_two_and_three_classes(loss, data):
    x, x_test, y, y_test = train_test_split(
        *data(return_X_y=True), test_size=0.4, random_state=0, stratify=data().target
    )
    rate = 0.005 if loss == "exponential" else 0.05  # its gradients have no bound
    made = small(loss=loss, learning_rate=rate, batch_size=16).fit(x, y)
    assert made.score(x_test, y_test) > 0.88
    scores = made.decision_function(x_test)
    assert scores.shape == ((len(x_test),) if data is load_breast_cancer else (len(x_test), 3))


def test_a_linear_classifier_with_cross_entropy_is_logistic_regression():
    x, y = make_classification(200, 4, n_redundant=0, flip_y=0.2, random_state=0)
    options = {"hidden_layer_sizes": (), "loss": "bce", "weight_decay": 0.0, "batch_size": 200}
    ours = small(**options, learning_rate=2.0, epochs=300).fit(x, y)
    theirs = LogisticRegression(C=np.inf, tol=1e-8).fit(StandardScaler().fit_transform(x), y)
    layer = ours.network_[0]
    np.testing.assert_allclose(layer.weight.detach().numpy(), theirs.coef_, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(layer.bias.detach().numpy(), theirs.intercept_, rtol=2e-3, atol=2e-3)


def test_labels_of_any_type_and_a_positive_score_for_the_second_class():
    x, y = load_breast_cancer(return_X_y=True)
    words = np.array(["malignant", "benign"])[y]
    made = small(epochs=3).fit(x, words)
    assert made.classes_.tolist() == ["benign", "malignant"]
    assert ((made.decision_function(x) > 0) == (made.predict(x) == "malignant")).all()
    assert made.score(x, words) > 0.85


def test_inputs_are_standardised_so_that_their_unit_does_not_matter():
    x, y = load_breast_cancer(return_X_y=True)
    a, b = small(epochs=3).fit(x, y), small(epochs=3).fit(x * 1e4 + 7, y)
    np.testing.assert_allclose(a.decision_function(x), b.decision_function(x * 1e4 + 7), rtol=1e-3, atol=1e-3)


def test_a_seed_repeats_everything_and_the_global_random_numbers_are_left_alone():
    x, y = load_iris(return_X_y=True)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fits = [small(epochs=3, random_state=seed, calibration="sigmoid").fit(x, y).predict_proba(x) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
    np.testing.assert_array_equal(fits[0], fits[1])
    assert (fits[0] != fits[2]).any()


def test_it_keeps_what_happened_in_each_epoch_and_predicts_in_float64_on_the_cpu():
    x, y = load_iris(return_X_y=True)
    made = small(epochs=4, device=torch.device("cpu")).fit(x, y)
    assert [entry["epoch"] for entry in made.history_] == [0, 1, 2, 3]
    assert {(p.dtype, p.device.type) for p in made.network_.parameters()} == {(torch.float64, "cpu")}
    assert made.decision_function(x).dtype == np.float64


def test_it_works_in_pipelines_and_searches():
    x, y = load_iris(return_X_y=True)
    search = GridSearchCV(
        make_pipeline(MinMaxScaler(), small(epochs=5)), {"enslossclassifier__learning_rate": [1e-9, 0.1]}, cv=2
    )
    assert search.fit(x, y).best_params_ == {"enslossclassifier__learning_rate": 0.1}


# probabilities


@pytest.mark.parametrize("calibration", ["sigmoid", "isotonic"])
@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_fitted_on_rows_that_training_does_not_see(calibration, classes):
    x, y = make_classification(600, 8, n_informative=5, n_classes=classes, flip_y=0.2, random_state=1)
    made = small(calibration=calibration, calibration_share=0.5).fit(x[:400], y[:400])
    assert made.scaler_.n_samples_seen_ == 200
    p = made.predict_proba(x[400:])
    np.testing.assert_allclose(p.sum(1), 1)
    assert (made.predict(x[400:]) == made.classes_[p.argmax(1)]).all()
    assert abs(p.mean(0) - np.bincount(y[400:], minlength=classes) / 200).max() < 0.08
    if calibration == "sigmoid":
        assert log_loss(y[400:], p) < 0.9 * np.log(classes)


def test_scores_and_probabilities_exclude_each_other():
    plain, calibrated = small(), small(calibration="isotonic")
    assert not hasattr(plain, "predict_proba")
    assert not hasattr(calibrated, "decision_function")
    with pytest.raises(AttributeError) as caught:
        plain.predict_proba([[0.0]])
    assert "calibration='sigmoid' or 'isotonic'" in str(caught.value.__cause__ or caught.value)


def test_names_of_features_are_kept_without_warnings(recwarn):
    data = load_iris(as_frame=True)
    made = small(epochs=2, calibration="sigmoid").fit(data.data, data.target)
    made.predict(data.data)
    assert made.feature_names_in_.tolist() == data.feature_names
    assert not [w for w in recwarn if "feature names" in str(w.message)]
    with pytest.raises(ValueError, match="feature names"):
        made.predict(pd.DataFrame(data.data.to_numpy(), columns=list("abcd")))


# bad input

BAD = [
    (
        {"loss": "ens"},
        "loss: expected one of bce, ensloss, ensloss-fixed, exponential, hinge, log-tail; got 'ens'. Did you mean 'ensloss'?",
    ),
    ({"calibration": "platt"}, "calibration: expected one of None, isotonic, sigmoid; got 'platt'"),
    (
        {"hidden_layer_sizes": 64},
        "hidden_layer_sizes: expected whole numbers >= 1 in a tuple; got 64. Fix: (64, 64) has two layers",
    ),
    ({"hidden_layer_sizes": (64, 0)}, "hidden_layer_sizes"),
    ({"epochs": 0}, "epochs: expected a whole number >= 1; got 0"),
    ({"batch_size": 2.5}, "batch_size"),
    ({"learning_rate": 0.0}, "learning_rate"),
    ({"weight_decay": -1.0}, "weight_decay"),
    ({"calibration": "sigmoid", "calibration_share": 1.0}, "calibration_share"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_parameters_out_of_range_are_named_when_fitting(options, words):
    x, y = load_iris(return_X_y=True)
    made = clone(small(**options))
    with pytest.raises(LegatoValueError) as caught:
        made.fit(x, y)
    assert words in str(caught.value)


def test_one_class_is_refused_and_a_class_too_rare_to_hold_out():
    x = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(LegatoValueError, match="y: expected at least two classes; got one class"):
        small().fit(x, np.zeros(20))
    with pytest.raises(LegatoValueError, match="y: expected rows of each class for training and for calibration"):
        small(calibration="sigmoid").fit(x, [0] * 19 + [1])
    with pytest.raises(LegatoValueError, match="a class without a held-out row"):
        small(calibration="sigmoid").fit(x, [0] * 18 + [1] * 2)


def test_a_training_that_diverges_says_so():
    x, y = load_breast_cancer(return_X_y=True)
    with pytest.raises(LegatoError, match=r"(?s)learning_rate.*Fix: a smaller learning rate"):
        small(loss="bce", learning_rate=1e30).fit(x, y)
