"""Efficient SAM: against SAM where both are the same, against a twin where they are not."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato import training
from legato.errors import LegatoValueError
from legato.flatness.esam import ESAM, sharpest_rows
from legato.flatness.sam import SAM, sam_perturbation
from legato.losses import CompSumLoss, Warmup

D = torch.float64
EACH_ROW = partial(F.cross_entropy, reduction="none")


def mean_of_rows(output, targets):
    """torch's own mean sums in another order."""
    return EACH_ROW(output, targets).mean()


def sample(rows=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(rows, 6, generator=generator), torch.randint(4, (rows,), generator=generator)
    return x.to(dtype), y, torch.arange(rows)


def noisy_net(dropout=0.5):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 4))


def smooth_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def step_of(objective, net, *batches):
    """A closure over a group of batches of the same length."""

    def closure():
        net.zero_grad()
        total = 0
        for batch in batches:
            loss = objective.loss(net, batch, 0) / len(batches)
            loss.backward()
            total += loss.detach()
        return total

    return closure


def grads(net):
    return [weight.grad.clone() for weight in net.parameters()]


class Rows:
    """The same batches in every epoch."""

    def __init__(self, batch, size):
        self.cut = list(zip(*(part.split(size) for part in batch), strict=True))

    def __len__(self):
        return len(self.cut)

    def epoch(self, epoch):
        return iter(self.cut)


def test_the_sharpest_rows_by_hand():
    before = torch.tensor([1.0, 5.0, 2.0, 0.0, 3.0])
    after = torch.tensor([1.1, 5.0, 4.0, 1.0, 2.0])
    assert sharpest_rows(before, after, 0.6).tolist() == [0, 2, 3]
    assert sharpest_rows(before, after, 0.1).tolist() == [2, 3], "two at least"
    assert sharpest_rows(before, after, 1).tolist() == [0, 1, 2, 3, 4]
    assert sharpest_rows(before[:1], after[:1], 0.1).tolist() == [0]


def test_with_all_weights_and_all_rows_it_is_sam_to_the_last_bit():
    ends = []
    for kind in ("esam", "sam"):
        net = noisy_net()
        if kind == "esam":
            objective = ESAM(EACH_ROW, net, 0.2, weight_share=1, data_share=1)
        else:
            objective = training.WithGradients(training.Criterion(mean_of_rows), SAM(net, 0.2))
        torch.manual_seed(8)
        options = {"optimizer": partial(torch.optim.SGD, lr=0.3), "accumulate": 2, "clip_norm": 0.5}
        fitted = training.fit(net, objective, Rows(sample(22), 6), epochs=2, **options)
        ends.append([*net.state_dict().values(), torch.tensor([entry["train_loss"] for entry in fitted.history])])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_step_is_that_of_a_twin():
    """Oracle: the same choice of weights and rows, written with torch.func, in float64; a group of two micro-batches."""
    net = smooth_net()
    x, y, index = sample(16, D)
    batches = [(x[:8], y[:8], index[:8]), (x[8:], y[8:], index[8:])]
    objective = ESAM(EACH_ROW, net, 0.4, weight_share=0.5, data_share=0.5, seed=7)
    loss = objective.gradients(step_of(objective, net, *batches))

    moves = torch.rand(4, generator=torch.Generator().manual_seed(7)) < 0.5
    assert 0 < moves.sum() < 4
    weights = {name: weight.detach().clone() for name, weight in net.named_parameters()}

    def rows(weights, x, y):
        return EACH_ROW(torch.func.functional_call(net, weights, (x,)), y)

    g, value = torch.func.grad_and_value(lambda w: rows(w, x, y).mean())(weights)
    length = torch.cat([part.flatten() for part in g.values()]).norm()
    there = {n: weights[n] + 0.4 * g[n] / length / 0.5 * move for (n, move) in zip(weights, moves, strict=True)}
    rise = rows(there, x, y) - rows(weights, x, y)
    kept = torch.cat([i + rise[i : i + 8].argsort(descending=True)[:4] for i in (0, 8)])
    want = torch.func.grad(lambda w: rows(w, x[kept], y[kept]).mean())(there)
    assert float(loss) == pytest.approx(float(value), rel=1e-12)
    torch.testing.assert_close(grads(net), list(want.values()), rtol=1e-12, atol=1e-14)


def test_the_mean_offset_is_that_of_sam():
    net = smooth_net()
    x, y, index = sample(8, D)
    objective = ESAM(EACH_ROW, net, 0.4, weight_share=0.25, data_share=1, seed=1)
    start = [weight.detach().clone() for weight in net.parameters()]
    seen = []

    def closure():
        seen.append([(w.detach() - s) for w, s in zip(net.parameters(), start, strict=True)])
        loss = objective.loss(net, (x, y, index), 0)
        loss.backward()
        return loss

    for _ in range(100):
        objective.gradients(closure)
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    sam = sam_perturbation(start, grads(net), 0.4)
    for i, offset in enumerate(sam):
        shares = [float((found[i] * offset).sum() / offset.square().sum()) for found in seen[1::2]]
        assert {round(share, 9) for share in shares} == {0.0, 4.0}
        assert sum(shares) / 100 == pytest.approx(1, abs=0.5)  # 2.9 standard errors


def test_dropout_is_the_same_where_losses_are_compared_also_in_later_micro_batches():
    """With a radius of 0 nothing moves, so a loss that changes could only come from other dropout."""
    net = noisy_net()
    batch = sample(16)
    losses = []

    def criterion(output, targets):
        losses.append(EACH_ROW(output, targets))
        return losses[-1]

    objective = ESAM(criterion, net, 0.0, data_share=0.5)
    halves = [tuple(part[:8] for part in batch), tuple(part[8:] for part in batch)]
    torch.manual_seed(4)
    objective.gradients(step_of(objective, net, *halves))
    after = torch.rand(2)
    assert [len(rows) for rows in losses] == [8, 8, 8, 4, 8, 4]
    assert torch.equal(losses[0], losses[2])
    assert torch.equal(losses[1], losses[4])
    torch.manual_seed(4)
    for half in halves:
        net(half[0])
    assert torch.equal(after, torch.rand(2)), "random numbers go on as after one pass"
    assert net[1].num_batches_tracked == 4, "two of the two micro-batches, two of this test"


def test_under_autocast_all_weights_get_a_gradient():
    """The forward pass without autograd must not leave copies of the weights that know no gradient in torch.autocast's cache."""
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    batch = sample(16)
    objective = ESAM(EACH_ROW, net, 0.2)

    def closure():
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective.loss(net, batch, 0)
        loss.backward()
        return loss

    objective.gradients(closure)
    assert all((gradient != 0).any() for gradient in grads(net))


def test_it_trains_and_a_run_that_is_taken_up_goes_on_as_before():
    ends = []
    for stops in (False, True):
        net = noisy_net(dropout=0)
        objective = ESAM(EACH_ROW, net, 0.05, seed=3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
        found = []
        for step in range(8):
            if stops and step == 3:
                state = copy.deepcopy(objective.state_dict())
                objective = ESAM(EACH_ROW, net, 0.05, seed=99)
                objective.load_state_dict(state)
            found.append(float(objective.gradients(step_of(objective, net, sample()))))
            optimizer.step()
        assert found[-1] < found[0]
        ends.append(torch.cat([weight.flatten() for weight in net.parameters()]))
    assert torch.equal(*ends)


def test_the_criterion_gets_its_epoch_and_keeps_its_state():
    criterion = CompSumLoss(Warmup(end=1.7, epochs=4), reduction="none")
    objective = ESAM(criterion, smooth_net(), 0.1)
    objective.begin_epoch(2)
    other = ESAM(CompSumLoss(Warmup(end=1.7, epochs=4), reduction="none"), smooth_net(), 0.1)
    other.load_state_dict(objective.state_dict())
    assert other.criterion.tau == criterion.tau == pytest.approx(1.35)
    ESAM(EACH_ROW, smooth_net(), 0.1).begin_epoch(0)


def test_outside_a_step_the_loss_is_the_mean_and_nothing_is_kept():
    net = smooth_net()
    x, y, index = sample(8, D)
    objective = ESAM(EACH_ROW, net, 0.1)
    assert objective.loss(net, (x, y, index), 0) == EACH_ROW(net(x), y).mean()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        objective.gradients(lambda: objective.loss(net, (x[:, :2], y, index), 0))
    assert objective.loss(net, (x, y, index), 0) == EACH_ROW(net(x), y).mean()


def test_a_gradient_that_is_not_finite_stays():
    net = smooth_net()
    x, y, index = sample(8, D)
    objective = ESAM(EACH_ROW, net, 0.1)
    before = copy.deepcopy(net.state_dict())
    objective.gradients(step_of(objective, net, (x * float("nan"), y, index)))
    assert not grads(net)[0].isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_bad_arguments_are_named():
    net = smooth_net()
    for name in ("weight_share", "data_share"):
        for share in (0, -0.5, 1.1, float("nan"), "half"):
            with pytest.raises(LegatoValueError, match=rf"{name}: expected a plain number in \(0, 1\]"):
                ESAM(EACH_ROW, net, 0.1, **{name: share})
    with pytest.raises(LegatoValueError, match="radius: expected"):
        ESAM(EACH_ROW, net, -1)
    batch = sample(8, D)
    mean = ESAM(F.cross_entropy, net, 0.1)
    with pytest.raises(
        LegatoValueError, match=r"criterion: expected the loss of each row, shape \[8\]; got shape \[\]. Fix: red"
    ):
        mean.gradients(step_of(mean, net, batch))
    other = ESAM(EACH_ROW, net, 0.1)
    with pytest.raises(LegatoValueError, match="closure: expected calls of loss of this ESAM; got none"):
        other.gradients(step_of(training.Criterion(F.cross_entropy), net, batch))
