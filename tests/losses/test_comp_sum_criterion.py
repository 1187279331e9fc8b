"""CompSumLoss: the schedule, what it looks at, what it warns of, what it shows."""

import warnings

import pytest
import torch

from legato.errors import LegatoValueError, LegatoWarning
from legato.losses import CompSumLoss, FocalLoss, Warmup, comp_sum_loss, gce, mae, sum_exponential

TARGET = torch.zeros(4, dtype=torch.int64)


def margin(size):
    """Logits in which the target's, of class 0, leads by `size`."""
    return torch.tensor([[size, 0.0, 0.0]]).expand(4, 3)


def test_tau_climbs_over_the_first_epochs():
    loss = CompSumLoss(Warmup(start=1.0, end=1.7, epochs=7))
    taus = []
    for epoch in range(9):
        loss.begin_epoch(epoch)
        taus.append(loss.tau)
        assert torch.equal(loss(margin(1.0), TARGET), comp_sum_loss(margin(1.0), TARGET, loss.tau))
    assert taus == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.7])


def test_a_plain_tau_does_not_move():
    loss = CompSumLoss(1.7)
    assert loss.tau == 1.7
    loss.begin_epoch(3)
    assert loss.tau == 1.7


def test_a_resumed_schedule_goes_on_where_it_was():
    first, second = (CompSumLoss(Warmup(end=1.7, epochs=7)) for _ in range(2))
    first.begin_epoch(3)
    second.load_state_dict(first.state_dict())
    assert second.tau == first.tau != 1.0


def test_it_warns_once_that_gradients_vanish():
    loss = mae()
    with pytest.warns(
        LegatoWarning, match=r"gradients vanish: at tau=2 .* 4\.7e-14.*Warmup\(end=2, epochs=5\)"
    ) as caught:
        loss(margin(-30.0), TARGET)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(margin(-100.0), TARGET)
        mae()(margin(-5.0), TARGET)
        mae()(margin(-100.0), torch.full((4,), -100))
        CompSumLoss(Warmup(end=2.0, epochs=5))(margin(-100.0), TARGET)


def test_ignored_rows_do_not_hide_vanishing_gradients():
    with pytest.warns(LegatoWarning, match="vanish"):
        mae()(margin(-100.0), torch.tensor([0, -100, -100, -100]))


def test_it_warns_once_of_an_overflow_below_tau_one():
    loss = sum_exponential()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(margin(1.0), TARGET)
        loss(margin(1.0), TARGET)
        loss(margin(-100.0), TARGET)  # call 3 is not looked at
    with pytest.warns(LegatoWarning, match="infinite or NaN: tau=0 overflows") as caught:
        loss(margin(-100.0), TARGET)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(8):
            loss(margin(-100.0), TARGET)


def test_above_tau_one_an_infinite_input_is_no_overflow():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CompSumLoss(1.0)(margin(-1e30), TARGET)


def test_what_it_shows():
    assert repr(CompSumLoss(1.7)) == "CompSumLoss(tau=1.7)"
    assert repr(gce(0.5, label_smoothing=0.1)) == "CompSumLoss(tau=1.5, label_smoothing=0.1)"
    assert repr(CompSumLoss(Warmup(end=1.7, epochs=5), weight=torch.ones(3))) == (
        "CompSumLoss(tau=Warmup(end=1.7, epochs=5, start=1.0), weight=[3])"
    )
    assert repr(FocalLoss(2.0)) == "FocalLoss(gamma=2)"


@pytest.mark.parametrize(
    "make",
    [
        lambda: CompSumLoss(-1.0),
        lambda: CompSumLoss(Warmup(end=-1.0, epochs=5)),
        lambda: CompSumLoss(Warmup(end=1.7, start=-1.0, epochs=5)),
        lambda: Warmup(end=1.7, epochs=-1),
        lambda: Warmup(end=1.7, epochs=2.5),
        lambda: CompSumLoss(1.7, temperature=0.0),
        lambda: CompSumLoss(1.7, reduction="average"),
        lambda: gce(-1.5),
        lambda: FocalLoss(-2.0),
        lambda: FocalLoss(2.0, reduction="average"),
    ],
)
def test_an_object_refuses_bad_numbers_when_it_is_made(make):
    with pytest.raises(LegatoValueError):
        make()
