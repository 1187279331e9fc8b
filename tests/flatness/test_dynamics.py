"""What is recorded of a training, against a twin that keeps every reading in lists, by hand, and at the edges."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from legato.errors import LegatoTypeError, LegatoValueError
from legato.flatness.dynamics import MEASURES, Dynamics, readings
from legato.training import Criterion, WithGradients, fit
from legato.training.plain import flatten, unflatten

COLUMNS = ("seen", "loss", "confidence", "variability", "correctness", "margin", "forgetting")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def twin(passes, rows, classes):
    """Every reading of every row in lists of plain numbers, and the columns made from them at the end."""
    kept = [[] for _ in range(rows)]
    for logits, target, index in passes:
        for z, y, i in zip(logits.tolist(), target.tolist(), index.tolist(), strict=True):
            if i >= 0 and y >= 0 and all(map(math.isfinite, z)):
                p = np.exp(np.array(z) - max(z))
                kept[i].append((p / p.sum(), y, z[y] - max(z[:y] + z[y + 1 :]), z.index(max(z)) == y))
    columns = {name: [] for name in (*COLUMNS, "probabilities")}
    for row in kept:
        given = np.array([p[y] for p, y, _, _ in row])
        right = [r for _, _, _, r in row]
        columns["seen"].append(len(row))
        columns["loss"].append(np.mean(-np.log(given)) if row else math.nan)
        columns["confidence"].append(np.mean(given) if row else math.nan)
        columns["variability"].append(np.std(given) if row else math.nan)
        columns["correctness"].append(np.mean(right) if row else math.nan)
        columns["margin"].append(np.mean([m for _, _, m, _ in row]) if row else math.nan)
        columns["forgetting"].append(sum(a and not b for a, b in pairwise(right)))
        columns["probabilities"].append(np.mean([p for p, _, _, _ in row], axis=0) if row else [math.nan] * classes)
    return {name: torch.tensor(np.array(values)) for name, values in columns.items()}


def passes(seed, rows=9, classes=4, epochs=6, spread=3.0):
    """Batches of several epochs in random orders; the last row is never among them."""
    random = generator(seed)
    labels = torch.randint(classes, (rows,), generator=random)
    for _ in range(epochs):
        for index in torch.randperm(rows - 1, generator=random).split(3):
            yield spread * torch.randn(len(index), classes, dtype=torch.float64, generator=random), labels[index], index


@given(st.integers(0, 999), st.integers(2, 5))
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_running_sums_are_those_of_all_readings(seed, classes):
    dynamics = Dynamics(9, classes)
    seen = list(passes(seed, classes=classes))
    for batch in seen:
        dynamics.record(*batch)
    want = twin(seen, 9, classes)
    for name in COLUMNS:
        torch.testing.assert_close(
            getattr(dynamics, name).double(), want[name].double(), rtol=1e-12, atol=1e-7, equal_nan=True
        )
    torch.testing.assert_close(
        dynamics.probabilities, want["probabilities"].float(), rtol=1e-5, atol=1e-6, equal_nan=True
    )
    assert dynamics.suggested().tolist() == [*want["probabilities"][:-1].argmax(1).tolist(), -1]


def test_one_reading_in_closed_form():
    """Scores log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8."""
    z = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log().repeat(3, 1).requires_grad_()
    read = readings(z, torch.arange(3))
    torch.testing.assert_close(read.probability, torch.tensor([0.125, 0.25, 0.625], dtype=torch.float64))
    torch.testing.assert_close(read.loss, torch.tensor([8, 4, 1.6], dtype=torch.float64).log())
    torch.testing.assert_close(read.margin, torch.tensor([0.2, 0.4, 2.5], dtype=torch.float64).log())
    assert read.right.tolist() == [False, False, True]
    assert not any(t.requires_grad for t in (read.loss, read.probability, read.margin, read.probabilities))


def test_a_constant_on_all_scores_changes_nothing():
    z, y = torch.randn(50, 6, dtype=torch.float64, generator=generator()), torch.arange(50) % 6
    for a, b in zip(vars(readings(z, y)).values(), vars(readings(z + 7, y)).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_tie_is_not_right():
    assert readings(torch.zeros(3, 3), torch.arange(3)).right.tolist() == [False] * 3


def test_extreme_scores_stay_finite():
    read = readings(torch.tensor([[1e9, -1e9], [1e9, -1e9]]), torch.tensor([0, 1]))
    assert read.loss.tolist() == [0, 2e9]
    assert read.margin.tolist() == [2e9, -2e9]


def answers(*rows):
    """A Dynamics that has seen, for label 0, right (1) and wrong (0) answers; one row of the data an argument."""
    dynamics = Dynamics(len(rows), 2)
    for answer in zip(*rows, strict=True):
        right = torch.tensor(answer, dtype=torch.float64)
        dynamics.record(
            torch.stack([right, 1 - right], 1), torch.zeros(len(rows), dtype=torch.int64), torch.arange(len(rows))
        )
    return dynamics


def test_forgetting_events_by_hand():
    dynamics = answers((0, 0, 1, 1), (1, 0, 1, 0), (0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 0))
    assert dynamics.forgetting.tolist() == [0, 2, 0, 0, 1]
    assert dynamics.suspicion("forgetting").tolist() == [0, 2, 4, 0, 1]  # what was never right comes first
    assert dynamics.correctness.tolist() == [0.5, 0.5, 0, 1, 0.25]


def test_suspicion_is_larger_for_what_is_less_believed():
    dynamics = answers((1, 1, 1), (0, 1, 1), (0, 0, 1), (0, 0, 0))
    for measure in MEASURES:
        values = dynamics.suspicion(measure).tolist()
        assert values == sorted(values), measure
        assert values[-1] > values[0]
    assert torch.equal(dynamics.suspicion(), dynamics.loss)
    assert torch.equal(dynamics.suspicion("margin"), -dynamics.margin)
    assert torch.equal(dynamics.suspicion("confidence"), 1 - dynamics.confidence)


def test_what_was_never_recorded_is_told():
    dynamics = Dynamics(3, 2)
    dynamics.record(torch.tensor([[0.0, 1.0]]), torch.tensor([1]), torch.tensor([1]))
    for measure in MEASURES:
        assert dynamics.suspicion(measure).isnan().tolist() == [True, False, True]
    assert dynamics.suggested().tolist() == [-1, 1, -1]
    assert dynamics.seen.tolist() == [0, 1, 0]


def test_masked_classes_are_no_fault():
    """A score of -inf for another class is a probability of 0; for all others, or for the given one, it leaves nothing to record."""
    inf = math.inf
    z = torch.tensor([[1.0, 0.0, -inf], [1.0, -inf, -inf], [-inf, 0.0, 0.0]])
    dynamics = Dynamics(3, 3)
    dynamics.record(z, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert (dynamics.seen.tolist(), dynamics.unusable) == ([1, 0, 0], 2)
    assert dynamics.confidence[0].item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_padding_ignored_targets_and_scores_that_are_not_finite_count_nothing():
    """Oracle: the same without these rows."""
    z = torch.randn(6, 3, dtype=torch.float64, generator=generator())
    z[2, 0], z[3, 1] = math.nan, math.inf
    y, index = torch.tensor([0, 1, 2, 0, -100, 2]), torch.tensor([4, -1, 2, 1, 0, 3])
    dynamics, plain = Dynamics(5, 3), Dynamics(5, 3)
    dynamics.record(z, y, index)
    plain.record(z[[0, 5]], y[[0, 5]], index[[0, 5]])
    for name in (*COLUMNS, "probabilities"):
        torch.testing.assert_close(getattr(dynamics, name), getattr(plain, name), equal_nan=True)
    assert (dynamics.unusable, plain.unusable) == (2, 0)


def test_a_row_twice_in_a_batch_has_two_readings_which_are_compared_with_the_one_before():
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    zero = torch.zeros(2, dtype=torch.int64)
    dynamics = Dynamics(2, 2)
    for answer in (right, wrong, wrong):
        dynamics.record(torch.tensor([answer, answer]), zero, zero)
    assert (dynamics.seen.tolist(), dynamics.forgetting.tolist()) == ([6, 0], [2, 0])
    for order in ([right, wrong], [wrong, right]):  # half right is not right: nothing is left to forget
        twice = Dynamics(1, 2)
        twice.record(torch.tensor([right]), zero[:1], zero[:1])
        for _ in range(2):
            twice.record(torch.tensor(order), zero, zero)
        assert (twice.forgetting.tolist(), twice.correctness.tolist()) == ([1], [3 / 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_types_are_computed_in_float32(dtype):
    dynamics, wide = Dynamics(9, 4), Dynamics(9, 4)
    for z, y, index in passes(3):
        dynamics.record(z.to(dtype), y, index)
        wide.record(z.to(dtype).double(), y, index)
    for name in COLUMNS:
        torch.testing.assert_close(getattr(dynamics, name), getattr(wide, name), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_small_variability_is_not_lost():
    """Probabilities 1 - 1e-6 and 1 - 3e-6 deviate by 1e-6."""
    dynamics = Dynamics(1, 2)
    for rest in (1e-6, 3e-6):
        z = torch.tensor([[math.log1p(-rest), math.log(rest)]], dtype=torch.float64)
        dynamics.record(z, torch.tensor([0]), torch.tensor([0]))
    assert dynamics.variability.item() == pytest.approx(1e-6, rel=1e-3)


class Rows:
    """Ten batches an epoch, in the same order."""

    def __init__(self):
        random = generator(5)
        self.x = torch.randn(40, 6, generator=random)
        self.y = torch.randint(3, (40,), generator=random)

    def __len__(self):
        return 10

    def epoch(self, epoch):
        for index in torch.arange(40).split(4):
            yield self.x[index], self.y[index], index


def trained(objective_of, epochs=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    fitted = fit(
        model, objective_of(Criterion(nn.CrossEntropyLoss())), Rows(), epochs=epochs,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    )  # fmt: skip
    return fitted, torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_training_is_the_same_in_every_bit():
    plain, weights = trained(lambda objective: objective)
    dynamics = Dynamics(40, 3)
    recorded, same = trained(lambda objective: Criterion(objective.criterion, dynamics))
    assert torch.equal(weights, same)
    assert [row["train_loss"] for row in plain.history] == [row["train_loss"] for row in recorded.history]
    assert (dynamics.seen == 3).all()
    mean = np.mean([row["train_loss"] for row in plain.history])
    assert dynamics.loss.mean().item() == pytest.approx(mean, rel=1e-6)  # the loss that training saw, batch by batch


def test_the_penalty_is_zero_without_a_graph():
    dynamics = Dynamics(4, 3)
    z = torch.randn(4, 3, requires_grad=True)
    penalty = dynamics.penalty(z, (torch.zeros(4), torch.zeros(4, dtype=torch.int64), torch.arange(4)))
    assert penalty.shape == ()
    assert penalty == 0
    assert not penalty.requires_grad
    loss = nn.functional.cross_entropy(z, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(loss + penalty, loss)


class Twice:
    """A gradient method of two passes a step."""

    def gradients(self, closure):
        closure()
        return closure()

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_second_pass_of_the_same_batch_adds_nothing():
    once, twice = Dynamics(40, 3), Dynamics(40, 3)
    trained(lambda objective: WithGradients(Criterion(objective.criterion, twice), Twice()))
    trained(lambda objective: Criterion(objective.criterion, once))
    assert (twice.seen == 3).all()
    assert torch.equal(twice.seen, once.seen)
    unaware = Dynamics(4, 3)  # nobody says which epoch it is: everything counts
    for _ in range(2):
        unaware.penalty(torch.zeros(4, 3), (None, torch.zeros(4, dtype=torch.int64), torch.arange(4)))
    assert (unaware.seen == 2).all()


def test_a_state_comes_back_through_a_checkpoint_in_the_middle_of_an_epoch():
    batches = list(passes(1))
    whole, first, second = Dynamics(9, 4), Dynamics(9, 4), Dynamics(9, 4)

    def run(dynamics, numbered):
        for number, (z, y, index) in numbered:
            dynamics.begin_epoch(number // 3)
            dynamics.penalty(z, (None, y, index))

    run(whole, enumerate(batches))
    run(first, list(enumerate(batches))[:7])
    tensors = {}
    stored = flatten(first.state_dict(), "term", tensors)
    second.load_state_dict(unflatten(stored, tensors))
    run(second, list(enumerate(batches))[6:])  # the last batch comes again: its rows are known
    for name in COLUMNS:
        assert torch.equal(getattr(whole, name).nan_to_num(-1), getattr(second, name).nan_to_num(-1)), name
    assert torch.equal(whole.probabilities[:8], second.probabilities[:8])
    third, before = Dynamics(9, 4), first.seen
    third.load_state_dict(first.state_dict())  # without a checkpoint in between: a state is copied when it is loaded
    third.record(*batches[0])
    assert torch.equal(before, first.seen)
    assert repr(copy.deepcopy(first)) == "Dynamics(num_samples=9, num_classes=4)"


def test_memory_is_what_the_docstring_says():
    assert Dynamics(999, 10).bytes == 1001 * (61 + 4 * 10)
    assert Dynamics(999, 10, probabilities=False).bytes == 1001 * 61


def test_an_empty_batch_is_nothing():
    dynamics = Dynamics(3, 2)
    dynamics.record(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert (dynamics.seen == 0).all()


Z, Y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batch", "kind", "words"),
    [
        ((Z, Y, Y + 4), LegatoValueError, r"index: expected -1 .. 3; got 4"),
        ((Z, Y + 2, Y), LegatoValueError, r"target: expected 0 .. 1; got 2"),
        ((Z, Y, Y - 2), LegatoValueError, r"index: expected -1 .. 3; got -2"),
        ((Z, Y[:2], Y), LegatoValueError, r"target: expected int64 of shape \[3\]"),
        ((Z, Y, Y.float()), LegatoValueError, r"index: expected int64 of shape \[3\].*got torch.float32"),
        ((Z, Y, Y.bool()), LegatoValueError, "index: expected int64 .*got torch.bool"),
        ((Z, Y, [0, 1, 2]), LegatoTypeError, "index: expected an int64 tensor"),
        ((torch.zeros(3, 5), Y, Y), LegatoValueError, r"logits: expected shape \[B, 2\]; got shape \[3, 5\]"),
        ((torch.zeros(3, 2, 4, 4), Y, Y), LegatoValueError, "logits: expected shape"),
        ((Y, Y, Y), LegatoTypeError, "logits: expected a floating point tensor"),
    ],
)
def test_what_does_not_fit_is_named(batch, kind, words):
    dynamics = Dynamics(4, 2)
    for call in (dynamics.record, lambda z, y, index: dynamics.penalty(z, (None, y, index))):
        with pytest.raises(kind, match=words):
            call(*batch)
    assert (dynamics.seen == 0).all()


def test_sizes_measures_and_states_that_cannot_be_are_named():
    for sizes, words in (
        ((0, 2), "num_samples"),
        ((5, 1), "num_classes"),
        ((True, 2), "num_samples"),
        ((4.0, 2), "num_samples"),
    ):
        with pytest.raises(LegatoValueError, match=words):
            Dynamics(*sizes)
    with pytest.raises(LegatoValueError, match=r"measure: expected one of .* Did you mean 'margin'"):
        Dynamics(3, 2).suspicion("margins")
    with pytest.raises(LegatoValueError, match=r"state, sums: expected shape \[5, 7\]; got \[6, 7\]"):
        Dynamics(3, 2).load_state_dict(Dynamics(4, 2).state_dict())
    lean = Dynamics(3, 2, probabilities=False)
    with pytest.raises(LegatoValueError, match="probabilities=True"):
        lean.suggested()
    with pytest.raises(LegatoValueError, match=r"state, probabilities: .*got none"):
        Dynamics(3, 2).load_state_dict(lean.state_dict())
    lean.record(Z, Y, torch.arange(3))
    assert lean.suspicion().isfinite().all()
