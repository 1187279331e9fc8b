"""The matching loss and AST's parts against their formulas and published values."""

import math

import pytest
import torch
from torch import nn

from legato.distillation import FlatModel, Match, balance, mid_points, perturbed
from legato.errors import LegatoValueError


def test_the_match_is_zero_at_the_target_and_its_weight_at_the_start():
    start, target = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0])
    match = Match(target, start, weight=0.5)
    assert float(match(target)) == 0
    assert float(match(start)) == 0.5
    assert float(match(torch.tensor([4.0, 1.0]))) == pytest.approx(0.5 * 25 / 25)


def test_an_expert_that_did_not_move_or_went_to_nan_is_no_target():
    start = torch.ones(3)
    for target in (start, start * math.nan):
        with pytest.raises(LegatoValueError, match="the expert did not move"):
            Match(target, start)
    with pytest.raises(LegatoValueError, match=r"target: expected shape \[3\]"):
        Match(torch.ones(2), start)


def test_mid_points_stand_where_the_official_code_has_them():
    assert mid_points(20, 2, "equal") == {10: (1, 1.0)}
    assert mid_points(20, 3, "adaptive") == {6: (1, 1 / 3), 12: (2, 2 / 3)}
    assert mid_points(20, 1, "equal") == mid_points(20, 3, None) == {}
    assert mid_points(4, 4, "equal") == {1: (1, 1.0), 2: (2, 1.0)}  # step N-1 is as good as the end
    for steps, epochs in ((2, 3), (5, 0)):
        with pytest.raises(LegatoValueError, match="expert_epochs: expected 1 <= expert_epochs <= student_steps"):
            mid_points(steps, epochs, None)
    with pytest.raises(LegatoValueError, match="Did you mean 'equal'"):
        mid_points(4, 2, "equals")


def test_the_balance_is_the_official_codes_with_its_jump():
    found = [balance(t, 20) for t in (0, 9, 10, 19)]
    assert found == pytest.approx([0.5568, 0.7325, 1.2920, 1.7604], abs=5e-5)
    assert found[2] / found[1] == pytest.approx(1.764, abs=5e-4)
    assert balance(4, 9) * math.log(5) == pytest.approx(math.log(8))  # an odd span: h = 4


@pytest.mark.parametrize("shape", [(16, 1, 3, 3), (128, 3, 3, 3)])
def test_the_perturbation_has_the_size_that_is_said_of_it(shape):
    numbers = torch.Generator().manual_seed(0)
    weights = {"conv": torch.randn(shape, generator=numbers), "linear": torch.randn(5, 4)}
    sizes = []
    for _ in range(50):
        after = perturbed(weights, 2.0, generator=numbers)
        assert after["linear"] is weights["linear"]
        sizes.append(float((after["conv"] - weights["conv"]).square().sum() / weights["conv"].square().sum()))
    assert math.sqrt(sum(sizes) / 50) == pytest.approx(2 / math.sqrt(math.prod(shape)), rel=0.05)
    assert torch.equal(perturbed(weights, 0.0)["conv"], weights["conv"])
    with pytest.raises(LegatoValueError, match="perturb: expected a number >= 0"):
        perturbed(weights, -1.0)


def test_a_flat_model_is_the_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.GroupNorm(3, 3), nn.Flatten(), nn.Linear(12, 2))
    flat, x = FlatModel(model), torch.randn(5, 1, 4, 4)
    theta = flat.weights()
    assert torch.equal(flat(theta, x), model(x))
    before = model(x)
    flat.load_(theta * 2)
    assert not torch.equal(model(x), before)
    assert torch.equal(flat.weights(), theta * 2)
    assert torch.equal(flat(theta, x), before)
    assert theta.data_ptr() != flat.weights().data_ptr()


def test_the_weights_are_a_copy_also_of_a_single_parameter():
    model = nn.Linear(3, 1, bias=False)
    theta = FlatModel(model).weights()
    with torch.no_grad():
        model.weight.add_(1)
    assert not torch.equal(theta, model.weight.flatten())


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.BatchNorm1d(4), "running statistics.*BatchNorm1d"),
        (nn.InstanceNorm1d(4, track_running_stats=True), "running statistics"),
        (nn.Dropout(0.1), "dropout.*Dropout"),
        (nn.LSTM(4, 4, 2, dropout=0.1), "dropout.*LSTM"),
    ],
)
def test_layers_that_are_no_function_of_their_weights_are_refused(layer, word):
    with pytest.raises(LegatoValueError, match=word):
        FlatModel(nn.Sequential(nn.Linear(4, 4), layer))
    FlatModel(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.InstanceNorm1d(4)))
    with pytest.raises(LegatoValueError, match="a network with parameters"):
        FlatModel(nn.ReLU())
