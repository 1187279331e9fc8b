"""Terms that are added to a criterion, and other ways to the gradients, in the loop."""

from pathlib import Path

import pytest
import torch
from small_run import Stop, StoppingBatches, digits, fit, losses, net, weights
from torch import nn

from legato import training
from legato.flatness import MESA, MSAM, SAF, SAM, LookSAM, TemporalEnsembling

TERMS = {
    "saf": lambda model: SAF(256, 10, lam=1.0, lag=2, start=1),
    "mesa": lambda model: MESA(model, lam=1.0, start=0, steps_per_epoch=8),
    "ensembling": lambda model: TemporalEnsembling(256, 10, lam=1.0, start=1),
}
METHODS = {
    "sam": lambda model: SAM(model, radius=0.1),
    "looksam": lambda model: LookSAM(model, radius=0.1, every=3),
    "msam": lambda model: MSAM(model, radius=0.5),
}


def objective(name, model):
    criterion = nn.CrossEntropyLoss()
    if name in TERMS:
        return training.Criterion(criterion, TERMS[name](model))
    return training.WithGradients(training.Criterion(criterion), METHODS[name](model))


@pytest.mark.parametrize("name", [*TERMS, *METHODS])
def test_it_changes_the_training_and_goes_on_bitwise_where_it_was_stopped(tmp_path: Path, name: str) -> None:
    model = net(dropout=0.5)
    torch.manual_seed(1)
    whole = fit(model, objective=objective(name, model), epochs=5)
    torch.manual_seed(1)
    plain = fit(net(dropout=0.5), epochs=5)
    assert not torch.equal(weights(whole.model), weights(plain.model))
    first = net(dropout=0.5)
    torch.manual_seed(1)
    with pytest.raises(Stop):
        batches = StoppingBatches(digits(), 27)
        fit(first, batches, objective(name, first), epochs=5, folder=tmp_path, checkpoint_seconds=0)
    torch.manual_seed(99)  # a new process has other random numbers
    again = net(dropout=0.5)
    resumed = fit(again, objective=objective(name, again), epochs=5, folder=tmp_path, checkpoint_seconds=0)
    assert losses(whole) == losses(resumed)
    assert torch.equal(weights(whole.model), weights(resumed.model))


def test_a_term_and_a_method_work_together_and_with_accumulation_and_clipping():
    model = net()
    both = training.WithGradients(
        training.Criterion(nn.CrossEntropyLoss(), TERMS["saf"](model)), SAM(model, radius=0.1)
    )
    fitted = fit(model, objective=both, epochs=20, accumulate=2, clip_norm=1.0, ema_decay=0.9)
    assert fitted.diverged is None
    assert fitted.history[-1]["train_loss"] < 0.5 * fitted.history[0]["train_loss"]


def test_terms_are_summed_and_called_in_order():
    calls = []

    class Term:
        def __init__(self, name, amount):
            self.name, self.amount = name, amount

        def begin_epoch(self, epoch):
            calls.append((self.name, "epoch", epoch))

        def penalty(self, output, batch):
            assert output.shape == (len(batch[2]), 10)
            return output.new_tensor(self.amount)

        def after_step(self, model):
            calls.append((self.name, "step"))

        def state_dict(self):
            return {"amount": self.amount}

        def load_state_dict(self, state):
            self.amount = state["amount"]

    made = training.Criterion(nn.CrossEntropyLoss(), Term("a", 1.0), Term("b", 20.0))
    batch = next(digits().epoch(0))
    model = net()
    alone = training.Criterion(nn.CrossEntropyLoss()).loss(model, batch, 0)
    torch.testing.assert_close(made.loss(model, batch, 0) - alone, torch.tensor(21.0))
    made.begin_epoch(3)
    made.after_step(model)
    assert calls == [("a", "epoch", 3), ("b", "epoch", 3), ("a", "step"), ("b", "step")]
    other = training.Criterion(nn.CrossEntropyLoss(), Term("a", 0.0), Term("b", 0.0))
    other.load_state_dict(made.state_dict())
    assert [term.amount for term in other.terms] == [1.0, 20.0]
