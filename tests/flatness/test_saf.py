"""SAF in a loop: it is the formula on the right records, changes nothing where it should not, and goes on from states."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoValueError
from legato.flatness.ensembling import TemporalEnsembling
from legato.flatness.saf import SAF
from legato.flatness.sampler import TrajectorySampler
from legato.flatness.trajectory import trajectory_loss

N, C = 24, 4
pytestmark = pytest.mark.filterwarnings("ignore::legato.errors.LegatoWarning")


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 6, generator=generator).to(dtype), torch.randint(C, (N,), generator=generator)


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, C)).to(dtype)


def order(epoch):
    return torch.randperm(N, generator=torch.Generator().manual_seed(epoch)).split(7)


def train(term=None, epochs=range(7), model=None, optimizer=None):
    """A plain loop; the losses, and the weights at the end."""
    x, y = data()
    model = model or net()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    losses = []
    for epoch in epochs:
        if term is not None:
            term.begin_epoch(epoch)
        for index in order(epoch):
            optimizer.zero_grad()
            output = model(x[index])
            loss = F.cross_entropy(output, y[index])
            if term is not None:
                loss = loss + term(output, index)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, nn.utils.parameters_to_vector(model.parameters()).detach()


def test_it_is_the_formula_on_what_was_said_lag_epochs_ago():
    x, y = data()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    saf, said = SAF(N, C, lam=0.7, tau=2.0, lag=2, start=2), {}
    for epoch in saf.epochs(6):
        for index in order(epoch):
            output = model(x[index])
            term = saf(output, index)
            if epoch > 2:
                past = torch.stack([said[row, epoch - 2] for row in index.tolist()])
                assert torch.equal(term, 0.7 * trajectory_loss(output, past, 2.0)), (
                    "object and function agree to the last bit"
                )
                assert term > 0
            else:
                assert term == 0
                assert not term.requires_grad
            said |= {(row, epoch): z for row, z in zip(index.tolist(), output.detach(), strict=True)}
            optimizer.zero_grad()
            (F.cross_entropy(output, y[index]) + term).backward()
            optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda: SAF(N, C, lam=0.0, start=-1, lag=1),
        lambda: SAF(N, C, lam=9.0, start=6, lag=1),
        lambda: SAF(N, C, lam=9.0, start=-1, lag=7),
        lambda: TemporalEnsembling(N, C, lam=0.0, start=-1),
        lambda: TemporalEnsembling(N, C, lam=9.0, start=6),
    ],
    ids=["lam=0", "before the start", "no record yet", "ensembling lam=0", "ensembling before the start"],
)
def test_where_it_is_off_the_run_is_the_plain_one_to_the_last_bit(make):
    plain, got = train(), train(make())
    assert got[0] == plain[0]
    assert torch.equal(got[1], plain[1])


def test_where_it_is_on_the_run_is_another_one():
    assert train(SAF(N, C, lag=2, start=3))[0][:16] == train()[0][:16]
    assert train(SAF(N, C, lag=2, start=3))[0][16] > train()[0][16]


@pytest.mark.parametrize(
    "make", [lambda: SAF(N, C, lag=1, start=-1), lambda: TemporalEnsembling(N, C, start=-1, momentum=0.5)]
)
def test_a_model_that_stands_still_costs_nothing(make):
    x, _ = data()
    model, term = net(), make()
    for epoch in range(4):
        term.begin_epoch(epoch)
        for index in order(0):
            assert abs(term(model(x[index]), index).item()) < (1e-30 if isinstance(term, SAF) else 1e-5)
    assert term.stats["valid_share"] == 1


def test_rows_without_a_record_count_nothing_and_the_mean_is_over_all():
    saf = SAF(N, C, lam=1.0, lag=1, start=-1)
    said, now = torch.randn(3, C), torch.randn(4, C, requires_grad=True)
    saf(said, torch.tensor([2, 5, 7]))
    saf.begin_epoch(1)
    term = saf(now, torch.tensor([5, 0, 2, 1]))
    torch.testing.assert_close(term, trajectory_loss(now[[0, 2]], said[[1, 0]], reduction="sum") / 4)
    term.backward()
    assert (now.grad[[1, 3]] == 0).all()
    stats = saf.stats
    assert (stats["rows"], stats["valid_share"], stats["dropped"], stats["bytes"]) == (4, 0.5, 0, 2 * 25 * 20)
    assert stats["mean_divergence"] == pytest.approx(term.item())


def test_what_is_not_finite_is_never_recorded():
    saf = SAF(N, C, lag=1, start=-1)
    said = torch.randn(3, C)
    said[1, 2] = math.nan
    saf(said, torch.arange(3))
    saf.begin_epoch(1)
    assert saf(torch.randn(3, C), torch.arange(3)).isfinite()
    assert (saf.stats["valid_share"], saf.stats["dropped"]) == (pytest.approx(2 / 3), 1)


def test_a_second_look_in_the_same_step_sees_the_same_record_and_leaves_none():
    """What sharpness-aware minimisation and closures do."""
    saf = SAF(N, C, lam=1.0, lag=1, start=-1)
    index = torch.arange(4)
    first, moved = torch.randn(4, C), torch.randn(4, C)
    saf(first, index)
    saf(moved, index)
    saf.begin_epoch(1)
    for now in (moved, first):
        torch.testing.assert_close(saf(now, index), trajectory_loss(now, first))
    assert saf.stats["repeated"] == 0


def test_lam_warms_up():
    saf = SAF(N, C, lam=0.6, start=1, warmup=2)
    assert [saf.weight for _ in saf.epochs(6)] == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.6])


@pytest.mark.parametrize(
    "make", [lambda: SAF(N, C, lag=2, start=1), lambda: TemporalEnsembling(N, C, start=1)], ids=["saf", "ensembling"]
)
@pytest.mark.parametrize("cut", [3, 4])
def test_a_run_goes_on_from_a_state_as_if_nothing_had_happened(make, cut):
    whole = train(make())
    model, term = net(), make()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    before = train(term, range(cut), model, optimizer)[0]
    state = copy.deepcopy(term.state_dict())
    term(torch.randn(7, C), torch.arange(7))
    resumed = make()
    resumed.begin_epoch(cut - 1)  # as `legato.fit` does before it loads
    resumed.load_state_dict(state)
    after = train(resumed, range(cut, 7), model, optimizer)
    assert before + after[0] == whole[0]
    assert torch.equal(after[1], whole[1])


def test_a_state_in_the_middle_of_an_epoch_goes_on_there():
    outputs = torch.randn(2, 6, 4, C, generator=torch.Generator().manual_seed(3))
    one, other = SAF(N, C, lag=1, start=-1), SAF(N, C, lag=1, start=-1)
    for i, index in enumerate(torch.arange(N).split(4)):
        one(outputs[0, i], index)
    one.begin_epoch(1)
    for i, index in enumerate(torch.arange(N).split(4)):
        if i == 3:
            other.begin_epoch(1)
            other.load_state_dict(copy.deepcopy(one.state_dict()))
        want = one(outputs[1, i], index)
        if i >= 3:
            assert torch.equal(other(outputs[1, i], index), want)
    for term in (one, other):
        term.begin_epoch(2)
    assert torch.equal(one(outputs[0, 0], torch.arange(4)), other(outputs[0, 0], torch.arange(4)))


@pytest.mark.parametrize("make", [lambda: SAF(N, C, lag=1, start=-1), lambda: TemporalEnsembling(N, C, start=-1)])
def test_without_the_table_the_trajectory_starts_anew_and_not_from_zeros(make):
    term = make()
    train(term, range(3))
    state = term.state_dict()
    del state["memory"]
    term.load_state_dict(state)
    term.begin_epoch(3)
    assert term(torch.randn(N, C), torch.arange(N)) == 0
    assert term.stats["valid_share"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(term, range(4, 6))


@pytest.mark.parametrize(
    "make", [lambda **o: SAF(N, C, lag=1, start=-1, **o), lambda **o: TemporalEnsembling(N, C, start=-1, **o)]
)
def test_a_table_of_some_rows_is_the_whole_one_there(make):
    rows = torch.tensor([20, 3, 8, 11])
    one, other = make(), make(rows=rows)
    for epoch in range(3):
        said, index = torch.randn(3, C, generator=torch.Generator().manual_seed(epoch)), rows[[epoch, 2, 3]]
        for term in (one, other):
            term.begin_epoch(epoch)
        assert torch.equal(one(said, index), other(said, index))
    assert other.stats["bytes"] < one.stats["bytes"]
    with pytest.raises(
        LegatoValueError, match=r"among the `rows` of this process; got row 4. Fix: give the DataLoader"
    ):
        other(torch.zeros(2, C), torch.tensor([3, 4]))


def test_half_precision_is_computed_in_float32_and_gradients_come_back_short():
    saf = SAF(N, C, lag=1, start=-1, dtype=torch.float16)
    said = torch.randn(4, C)
    saf(said, torch.arange(4))
    saf.begin_epoch(1)
    now = torch.randn(4, C, dtype=torch.bfloat16, requires_grad=True)
    term = saf(now, torch.arange(4))
    term.backward()
    assert term.dtype == torch.float32
    assert now.grad.dtype == torch.bfloat16
    torch.testing.assert_close(term, 0.3 * trajectory_loss(now, said), rtol=1e-2, atol=1e-3)


def test_it_stands_beside_and_inside_a_compiled_step():
    x, y = data()
    torch._dynamo.reset()
    found = {}
    for kind in ("plain", "beside", "inside"):
        model, saf = net(), SAF(N, C, lam=1.0, lag=1, start=-1)
        called = torch.compile(model, backend="aot_eager") if kind == "beside" else model

        def loss_of(x, y, index, called=called, saf=saf):
            output = called(x)
            return F.cross_entropy(output, y) + saf(output, index)

        if kind == "inside":
            loss_of = torch.compile(loss_of, backend="aot_eager")
        found[kind] = []
        for epoch in range(2):
            saf.begin_epoch(epoch)
            for index in torch.arange(N).split(8):
                loss = loss_of(x[index], y[index], index)
                loss.backward()
                found[kind].append(loss.item())
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
        assert saf.stats["valid_share"] == 1
    assert found["beside"] == pytest.approx(found["plain"], rel=1e-6)
    assert found["inside"] == pytest.approx(found["plain"], rel=1e-6)


def test_a_sampler_shows_each_process_its_own_rows_in_every_epoch():
    samplers = [TrajectorySampler(10, rank, 3, seed=5) for rank in range(3)]
    assert torch.cat([s.rows for s in samplers]).sort().values.tolist() == list(range(10))
    orders = []
    for epoch in range(3):
        for sampler in samplers:
            sampler.set_epoch(epoch)
            rows = list(sampler)
            assert len(rows) == len(sampler) == 4
            assert set(rows) == set(sampler.rows.tolist())
            assert torch.equal(sampler.rows[sampler.local(torch.tensor(rows))], torch.tensor(rows))
        orders.append(list(samplers[0]))
    assert len({tuple(rows) for rows in orders}) == 3
    samplers[0].set_epoch(1)
    assert list(samplers[0]) == orders[1], "the order follows from the epoch"
    assert list(TrajectorySampler(10, 0, 3, seed=6)) != orders[0]
    assert list(TrajectorySampler(10, 1, 3, shuffle=False)) == [1, 4, 7, 1]
    assert len(TrajectorySampler(10)) == 10
