"""MESA: whose average the teacher is, that looking at it leaves no trace, and what is said about runs that do not fit."""

import copy
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from legato.errors import LegatoError, LegatoTypeError, LegatoValueError, LegatoWarning
from legato.flatness.mesa import MESA
from legato.flatness.trajectory import trajectory_loss

C = 4
pytestmark = pytest.mark.filterwarnings("ignore::legato.errors.LegatoWarning")


def net(dropout=0.0, norm=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, C))


def batch(seed=0, rows=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator), torch.randint(C, (rows,), generator=generator)


def flat(model):
    return torch.cat([t.detach().flatten().double() for t in model.state_dict().values()])


def train(make=None, epochs=range(4), model=None, mesa=None, optimizer=None, **options):
    """A plain loop of three steps an epoch; the losses, and all three parts."""
    model = model or net(**options)
    mesa = mesa or (make and make(model))
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    losses = []
    for epoch in epochs:
        if mesa:
            mesa.begin_epoch(epoch)
        for step in range(3):
            x, y = batch(7 * epoch + step)
            optimizer.zero_grad()
            output = model(x)
            loss = F.cross_entropy(output, y)
            if mesa:
                loss = loss + mesa(output, x)
            loss.backward()
            optimizer.step()
            if mesa:
                mesa.update()
            losses.append(loss.item())
    return losses, model, mesa, optimizer


def test_it_is_the_formula_on_what_the_average_says():
    model = net()
    mesa = MESA(model, lam=0.7, tau=2.0, decay=0.9, start=0, warmup=1)
    x, _ = batch()
    assert mesa(model(x), x) == 0
    mesa.begin_epoch(1)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    output = model(x)
    assert torch.equal(mesa(output, x), 0.35 * trajectory_loss(output, mesa.teacher(x), 2.0))
    assert mesa(output, x) > 0
    assert mesa.stats["mean_divergence"] == pytest.approx(float(trajectory_loss(output.detach(), mesa.teacher(x), 2.0)))


def test_the_teacher_is_the_moving_average():
    """Oracle: the sum over all steps, written out, and torch's AveragedModel."""
    _, model, mesa, _ = train(lambda m: MESA(m, decay=0.8, lam=0.0))
    again, seen = net(), []
    optimizer = torch.optim.SGD(again.parameters(), 0.3, momentum=0.9)
    seen.append(flat(again))
    torchs = AveragedModel(again, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    torchs.update_parameters(again)
    for epoch in range(4):
        for step in range(3):
            x, y = batch(7 * epoch + step)
            optimizer.zero_grad()
            F.cross_entropy(again(x), y).backward()
            optimizer.step()
            seen.append(flat(again))
            torchs.update_parameters(again)
    want = 0.8**12 * seen[0] + sum(0.2 * 0.8 ** (12 - t) * seen[t] for t in range(1, 13))
    torch.testing.assert_close(flat(mesa.teacher), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flat(mesa.teacher), flat(torchs.module), rtol=1e-6, atol=1e-7)
    assert torch.equal(flat(model), flat(again)), "with lam=0 the run is the plain one"


def test_beta_0_is_the_model_of_the_last_step_and_beta_1_that_of_the_start():
    model = net()
    x, _ = batch()
    follows, stays = MESA(model, decay=0.0, start=-1), MESA(model, decay=1.0, start=-1, lam=1.0)
    start = copy.deepcopy(model)
    for seed in range(3):
        output = model(x)
        assert follows(output, x) == 0, "the teacher is what the last step has left"
        torch.testing.assert_close(stays(output, x), trajectory_loss(output, start(x)))
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        follows.update()
        stays.update()
        assert torch.equal(flat(follows.teacher), flat(model))
    assert torch.equal(flat(stays.teacher), flat(start))


@pytest.mark.parametrize("options", [{"lam": 0.0}, {"lam": 9.0, "start": 3}], ids=["lam=0", "before the start"])
def test_where_it_is_off_the_run_is_the_plain_one_to_the_last_bit(options):
    plain, got = train(dropout=0.5, norm=True), train(lambda m: MESA(m, **options), dropout=0.5, norm=True)
    assert got[0] == plain[0]
    assert torch.equal(flat(got[1]), flat(plain[1]))
    assert train(lambda m: MESA(m, start=2), dropout=0.5, norm=True)[0] != plain[0]


def test_buffers_are_averaged_and_whole_numbers_copied():
    model = net(norm=True)
    mesa = MESA(model, decay=0.75)
    for seed in range(3):
        before = mesa.teacher[1].running_mean.clone()
        model(batch(seed)[0])
        mesa.update()
        torch.testing.assert_close(mesa.teacher[1].running_mean, 0.75 * before + 0.25 * model[1].running_mean)
        assert mesa.teacher[1].num_batches_tracked == model[1].num_batches_tracked == seed + 1


class Noisy(nn.Module):
    """Draws at random also in eval mode, and counts its passes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, C)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        assert not self.training
        self.passes += 1
        return self.layer(x + torch.randn(x.shape))


def test_looking_leaves_no_trace():
    noisy = Noisy().eval()
    mesa = MESA(noisy, start=-1)
    assert not any(p.requires_grad for p in mesa.teacher.parameters())
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    looked = mesa.look(batch()[0])
    assert torch.equal(torch.rand(3), want)
    assert not looked.requires_grad
    assert noisy.passes == 0
    mesa.teacher.train()
    mesa.look(batch()[0])
    assert mesa.teacher.training
    assert mesa.teacher.layer.training


def test_statistics_of_a_teacher_in_training_mode_do_not_move():
    averaged = AveragedModel(net(norm=True))
    assert averaged.training
    before = flat(averaged)
    mesa = MESA(averaged, start=-1)
    mesa(torch.randn(5, C), batch()[0])
    assert torch.equal(flat(averaged), before)
    assert not mesa.look(batch()[0]).requires_grad, "though its weights would take a gradient"


def test_tied_weights_are_averaged_once():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, C))
    model[1].weight = model[0].weight
    mesa = MESA(model, decay=0.5)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    mesa.update()
    assert mesa.teacher[0].weight is mesa.teacher[1].weight
    torch.testing.assert_close(mesa.teacher[0].weight, before + 0.5)


def test_an_average_that_is_there_is_used_and_left_to_its_owner():
    model = net()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(model)
    mesa = MESA(averaged, start=-1, lam=1.0)
    assert mesa.teacher is averaged
    x, _ = batch()
    with torch.no_grad():
        model[0].weight.add_(1)
    before = flat(averaged)
    mesa.after_step(model)
    assert torch.equal(flat(averaged), before)
    torch.testing.assert_close(mesa(model(x), x), trajectory_loss(model(x), averaged(x)))
    mesa.update(model)
    torch.testing.assert_close(averaged.module[0].weight, model[0].weight - 0.5)
    assert "teacher" not in mesa.state_dict()
    with pytest.raises(LegatoValueError, match="model: expected the model, for a teacher that is not ours"):
        mesa.update()
    other = net()
    assert MESA(other, copy=False).teacher is other


def test_wrappers_are_taken_off():
    model = net()
    mesa = MESA(nn.DataParallel(model))
    assert type(mesa.teacher) is nn.Sequential
    mesa.after_step(nn.DataParallel(model))


def test_outputs_with_further_axes():
    model = nn.Conv2d(2, C, 1)
    mesa = MESA(model, start=-1, decay=1.0, lam=1.0)
    x = torch.randn(3, 2, 5, 5)
    output = 2 * model(x)
    torch.testing.assert_close(mesa(output, x), trajectory_loss(output, model(x)))
    assert mesa.stats["rows"] == 75


def test_a_forward_of_ones_own():
    class Dictionary(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, C)

        def forward(self, pixels):
            return SimpleNamespace(logits=self.layer(pixels))

    model, inputs = Dictionary(), {"pixels": batch()[0]}
    mesa = MESA(model, start=-1, forward=lambda teacher, inputs: teacher(**inputs).logits)
    assert mesa(model(**inputs).logits, inputs) == 0
    with pytest.raises(
        LegatoTypeError, match=r"forward: expected a tensor of logits.*got SimpleNamespace. Fix: pass forward="
    ):
        MESA(model, start=-1)(torch.zeros(5, C), batch()[0])


def test_the_decay_follows_from_the_horizon():
    """Oracle: 1 - 1 / (horizon * steps), and at most (1 + t) / (10 + t)."""
    known = MESA(net(), horizon_epochs=2, steps_per_epoch=10)
    counted = MESA(net(), horizon_epochs=2)
    decays = []
    for epoch in counted.epochs(3):
        known.begin_epoch(epoch)
        for _ in range(10):
            decays.append((known.decay, counted.decay))
            known.update()
            counted.update()
    early = [(1 + t) / (10 + t) for t in range(30)]
    assert [d for d, _ in decays] == pytest.approx([min(e, 0.95) for e in early])
    assert [d for _, d in decays] == pytest.approx([min(e, 0.95) if t >= 10 else e for t, e in enumerate(early)])
    assert counted.steps_per_epoch == 10
    long = MESA(net(), horizon_epochs=2, steps_per_epoch=10)
    long.steps = 1000
    assert long.decay == pytest.approx(0.95)
    assert MESA(net(), horizon_epochs=0.5, steps_per_epoch=1).decay == 0
    assert MESA(net(), decay=0.9998).decay == 0.9998


@pytest.mark.parametrize("cut", [1, 3])
def test_a_run_goes_on_from_a_state_as_if_nothing_had_happened(cut):
    def make(model):
        return MESA(model, start=0, horizon_epochs=1)

    whole = train(make)
    before, model, mesa, optimizer = train(make, range(cut))
    state = copy.deepcopy(mesa.state_dict())
    mesa.update(net(dropout=0.1))
    resumed = make(model)
    resumed.begin_epoch(cut - 1)
    resumed.load_state_dict(state)
    after = train(None, range(cut, 4), model, resumed, optimizer)
    assert before + after[0] == whole[0]
    assert torch.equal(flat(resumed.teacher), flat(whole[2].teacher))


def test_the_loop_s_calls_are_the_user_s():
    x, y = batch()
    one, other = net(), net()
    user, loop = MESA(one, start=-1), MESA(other, start=-1)
    for mesa, model in ((user, one), (loop, other)):
        with torch.no_grad():
            model[0].weight.mul_(2)
        assert torch.equal(mesa.penalty(model(x), (x, y, None)), mesa(model(x), x))
    user.update()
    loop.after_step(other)
    assert torch.equal(flat(user.teacher), flat(loop.teacher))
    user.set_epoch(2)
    with pytest.raises(LegatoValueError, match="epoch: expected epoch 2 or a later one; got 1"):
        user.begin_epoch(1)


def test_it_stands_in_a_compiled_step():
    torch._dynamo.reset()
    model = net()
    mesa = MESA(model, start=-1, decay=1.0)
    x, y = batch()
    with torch.no_grad():
        model[0].weight.mul_(2)

    def loss(x, y):
        output = model(x)
        return F.cross_entropy(output, y) + mesa(output, x)

    torch.testing.assert_close(torch.compile(loss, backend="aot_eager")(x, y), loss(x, y))


def test_runs_that_do_not_fit_are_noticed():
    with pytest.warns(
        LegatoWarning, match=r"horizon_epochs=3 is more than a quarter of 8 epochs.*Fix: horizon_epochs=0.8"
    ):
        MESA(net(), start=1).plan(8)
    with pytest.warns(LegatoWarning, match=r"it never acts: start=5 .* there are 6. Fix: start=1"):
        MESA(net(), decay=0.5).plan(6)
    with pytest.warns(LegatoWarning) as said:
        mesa = MESA(net(), decay=0.9998)
        for _ in mesa.epochs(20):
            for _ in range(5):
                mesa.update()
    texts = [str(w.message) for w in said]
    assert [text.partition(".")[0] for text in texts] == [
        "MESA: 100 steps are few: the average is immature and drags the model back", "MESA: decay=0"
    ]  # fmt: skip
    assert "more than a quarter of 100 steps: the teacher stays immature. Fix: decay=0.9" in texts[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in MESA(net(), steps_per_epoch=10).epochs(90):
            pass


def test_a_penalty_out_of_hand_is_noticed():
    mesa = MESA(nn.Identity(), start=-1, lam=9.0, copy=False)
    x = 9 * torch.eye(C)
    mesa.penalty(x.roll(1, 0), (x, torch.arange(C).roll(1), None))
    with pytest.warns(LegatoWarning, match="MESA: in epoch 0 the penalty, .* outweighed the cross-entropy"):
        mesa.begin_epoch(1)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"lam": -1}, "lam"), ({"tau": 0}, "tau"), ({"horizon_epochs": 0}, "horizon_epochs"), ({"decay": 1.1}, "decay"),
     ({"decay": math.nan}, "decay"), ({"steps_per_epoch": 0}, "steps_per_epoch"), ({"start": -2}, "start"), ({"model": 3}, "model")],
)  # fmt: skip
def test_what_is_refused(options, name):
    with pytest.raises(LegatoError, match=f"{name}: expected"):
        MESA(**{"model": net()} | options)


def test_weights_whose_average_would_stand_still_are_refused():
    with pytest.raises(
        LegatoValueError,
        match=r"model: expected weights in float32 or float64; got torch.bfloat16 in 0.weight. Fix: .*autocast",
    ):
        MESA(net().bfloat16())
