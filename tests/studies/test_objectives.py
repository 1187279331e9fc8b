"""The text form of objectives: canonical, round trip, errors with the nearest name."""

import pytest
import torch

from legato.errors import LegatoValueError
from legato.losses import comp_sum_loss
from legato.studies.objectives import LOSSES, Context, parse


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
    ],
)
def test_errors_say_what_is_wrong(text, words):
    with pytest.raises(LegatoValueError, match=words.replace("+", r"\+")):
        parse(text)
