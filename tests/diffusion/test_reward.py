"""The one-step reward: exact where the network is right, its window, and detectors that would be silent constants."""

import pytest
import torch
from known import generator, randn, schedule_for

from legato.diffusion import ConsistencyReward, consistency_loss, soft_edges, squared_distance, unit_range
from legato.errors import LegatoValueError

PREDICTIONS = ["epsilon", "v_prediction", "sample", "flow"]


def identity(x):
    return x


def sample(prediction="epsilon", t=(0, 200, 201, 999), rows=4):
    schedule, level = schedule_for(prediction), torch.tensor(t)
    x0, noise = randn(rows, 1, 6, 6) * 0.3, randn(rows, 1, 6, 6, seed=1)
    return schedule, schedule.noisy(x0, noise, level), schedule.target(x0, noise, level), level, x0


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_where_the_network_is_right_one_step_gives_the_sample_back(prediction):
    schedule, x, target, t, x0 = sample(prediction)
    assert float(consistency_loss(schedule, x, target, t, x0, identity, picture=identity)) < 1e-20
    moved = consistency_loss(schedule, x, target, t, x0 + 0.5, identity, picture=identity)
    assert float(moved) == pytest.approx(0.25)


def test_the_window_has_both_ends_and_the_mean_is_over_its_rows():
    schedule, x, target, t, x0 = sample()
    asked = x0 + torch.tensor([1.0, 2.0, 100.0, 100.0]).view(4, 1, 1, 1)
    assert float(consistency_loss(schedule, x, target, t, asked, identity, picture=identity)) == pytest.approx(2.5)
    narrow = consistency_loss(schedule, x, target, t, asked, identity, picture=identity, window=(200, 201))
    assert float(narrow) == pytest.approx((4 + 10000) / 2)


def test_no_row_in_the_window_costs_nothing_and_detects_nothing():
    schedule, x, target, t, x0 = sample(t=(201, 500, 700, 999))

    def never(pictures):
        raise AssertionError

    assert float(consistency_loss(schedule, x, target.requires_grad_(), t, x0, never)) == 0


def test_only_rows_in_the_window_are_detected_and_have_a_gradient():
    schedule, x, target, t, x0 = sample()
    output, seen = (target + 0.1).requires_grad_(), []

    def detector(pictures):
        seen.append(pictures.shape)
        return pictures**2

    consistency_loss(schedule, x, output, t, x0, detector).backward()
    assert seen == [(2, 1, 6, 6)]
    assert [bool(row.any()) for row in output.grad] == [True, True, False, False]


def test_the_gradient_goes_through_step_picture_and_detector():
    schedule, x, target, t, _ = sample(t=(5, 50, 100, 150))
    control = soft_edges(torch.rand(4, 1, 6, 6, dtype=torch.float64, generator=generator(3)))
    assert torch.autograd.gradcheck(
        lambda output: consistency_loss(schedule, x, output, t, control, soft_edges), (target + 0.01).requires_grad_()
    )


def test_pictures_are_clamped():
    assert torch.equal(unit_range(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])), torch.tensor([0, 0, 0.5, 1, 1]))


def test_other_distances_such_as_the_cross_entropy_of_masks():
    schedule, x, target, t, _ = sample(t=(0, 0, 0, 0))
    control = torch.randint(2, (4, 6, 6), generator=generator())

    def detector(pictures):
        return torch.cat([pictures, -pictures], 1)

    def distance(detected, asked):
        return torch.nn.functional.cross_entropy(detected, asked, reduction="none").flatten(1).mean(1)

    found = consistency_loss(schedule, x, target, t, control, detector, distance=distance)
    clean = unit_range(schedule.clean(x, target, t))
    assert float(found) == pytest.approx(float(distance(detector(clean), control).mean()))


def test_the_object_is_the_function_times_its_weight():
    schedule, x, target, t, x0 = sample()
    output, control = target + 0.1, soft_edges(unit_range(x0))
    reward = ConsistencyReward(soft_edges, weight=0.5, window=(0, 500), distance=squared_distance)
    want = 0.5 * consistency_loss(schedule, x, output, t, control, soft_edges, window=(0, 500))
    assert torch.equal(reward(schedule, x, output, t, control), want)
    assert float(want) > 0


@pytest.mark.parametrize(
    "detector",
    [
        lambda p: (p > 0.5).double(),
        lambda p: (p * 255).byte() / 255,
        lambda p: torch.tensor(p.detach().numpy()),
        lambda p: p.detach(),
    ],
    ids=["threshold", "bytes", "numpy", "detach"],
)
def test_a_detector_without_a_gradient_is_an_error(detector):
    schedule, x, target, t, x0 = sample()
    with pytest.raises(LegatoValueError, match=r"silent constant.*ConditionPreference"):
        consistency_loss(schedule, x, target.requires_grad_(), t, x0, detector)
    with torch.no_grad():  # to look at the reward it need not have one
        assert consistency_loss(schedule, x, target, t, x0, detector).isfinite()


def test_arguments_that_do_not_fit():
    schedule, x, target, t, x0 = sample()
    for options, word in (({"window": (5, 4)}, "window"), ({"window": (-1, 4)}, "window"),
                          ({"distance": lambda a, b: (a - b).mean()}, r"shape \[2\]; got shape \[\]")):  # fmt: skip
        with pytest.raises(LegatoValueError, match=word):
            consistency_loss(schedule, x, target, t, x0, identity, **options)
    with pytest.raises(LegatoValueError, match="weight"):
        ConsistencyReward(identity, weight=-1.0)
