"""The text form of objectives: canonical, round trip, errors with the nearest name."""

import pytest
import torch

from legato.errors import LegatoValueError
from legato.losses import comp_sum_loss
from legato.studies.methods import GRADIENTS, LOSSES, TERMS, WHOLE, Context, Training
from legato.studies.objectives import parse


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ce", "ce"),
        ("comp-sum:1.7", "comp-sum:tau=1.7"),
        ("comp-sum", "comp-sum:tau=1.7"),
        ("comp-sum:tau=2.0,warmup=0.3", "comp-sum:tau=2,warmup=0.3"),
        ("focal:2", "focal:gamma=2"),
        ("label-smoothing:0.1", "label-smoothing:amount=0.1"),
        ("ema:0.9+ce", "ce+ema:decay=0.9"),
        ("ce+sam:0.1+saf:1", "ce+saf:lam=1+sam:radius=0.1"),
        ("comp-sum:1.7+saf", "comp-sum:tau=1.7+saf:lam=0.3"),
    ],
)
def test_canonical_form_is_stable(text, canonical):
    assert str(parse(text)) == canonical == str(parse(canonical))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_built_and_its_python_is_what_is_built(name):
    import legato

    h, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    spec, context = parse(name), Context(10, attack_radius=0.1)
    written, built = eval(spec.python(context), {"legato": legato, "torch": torch}), spec.build(context)
    assert type(written) is type(built)
    if isinstance(built, torch.nn.Module):
        assert torch.equal(built(h, y), written(h, y))
    else:
        assert vars(built).keys() == vars(written).keys()


@pytest.mark.parametrize("name", [*TERMS, *GRADIENTS, *WHOLE])
def test_every_further_part_trains_and_its_python_is_what_is_built(name):
    """Three epochs over the same rows, so that terms with a record are active; the written line makes an object of the same kind."""
    import legato

    model = torch.nn.Linear(5, 3)
    h, y, index = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3, torch.arange(8)
    told = Training(model, rows=8, classes=3, batches=1)
    objective = parse(f"ce+{name}").objective(Context(3), told)
    before = model.weight.detach().clone()
    for epoch in range(3):
        objective.begin_epoch(epoch)

        def closure(epoch=epoch):
            model.zero_grad()
            loss = objective.loss(model, (h, y, index), epoch)
            loss.backward()
            return loss.detach()

        assert objective.gradients(closure).isfinite()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        objective.after_step(model)
    assert not torch.equal(before, model.weight)
    (line,) = parse(f"ce+{name}").around
    names = {
        "legato": legato,
        "model": model,
        "num_samples": 8,
        "num_classes": 3,
        "criterion": torch.nn.CrossEntropyLoss(reduction="none"),
    }
    written = eval(line.partition(" = ")[2].partition("  #")[0], names)
    parts = [objective, *getattr(objective, "terms", ()), getattr(objective, "method", None)]
    assert type(written) in {type(part) for part in parts}


def test_what_a_trial_does_itself_can_be_read():
    spec = parse("ce+weight-decay:0.05+early-stopping")
    assert (spec.setting("weight-decay"), spec.setting("ema"), spec.stops_early) == (0.05, None, True)


def test_an_adversarial_objective_needs_a_radius():
    with pytest.raises(LegatoValueError, match="--attack-radius"):
        parse("trades:6").build(Context(10))


def test_comp_sum_has_the_tau_that_was_asked_for():
    h, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    assert torch.equal(parse("comp-sum:0.5").build(Context(5))(h, y), comp_sum_loss(h, y, 0.5))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("comp-sun:1.7", "Did you mean 'comp-sum'"),
        ("comp-sum:tua=1.7", "Did you mean 'tau'"),
        ("comp-sum:-1", "a finite number >= 0"),
        ("comp-sum:nan", "finite"),
        ("comp-sum:x", "got 'x'"),
        ("label-smoothing:1", "< 1"),
        ("ce:1", "it has no parameter"),
        ("ce+mae", "one loss in each objective"),
        ("ema:0.9", "one loss in each objective"),
        ("", "objectives"),
        ("ce+saf:1+saf:2", "each part once"),
        ("trades+saf", "which attacks the model"),
        ("ce+esam+saf", "esam without saf"),
    ],
)
def test_errors_say_what_is_wrong(text, words):
    with pytest.raises(LegatoValueError, match=words.replace("+", r"\+")):
        parse(text)
