"""Experts: their snapshots, AST's ramp and penalty against what they are equal to, and their files."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.distillation import FlatModel, Preprocessing, Recipe, gradient_penalty, train_expert
from legato.distillation.experts import Expert
from legato.distillation.objective import ramp
from legato.errors import CheckpointError, LegatoValueError


def rows(n=48, classes=3, side=4):
    y = torch.arange(n) % classes
    x = torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(0)) + y[:, None, None, None]
    return x, y


def net():
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))


def train(recipe=Recipe(epochs=4, batch_size=16), **options):  # noqa: B008
    return train_expert(net, rows(), rows(), recipe, **{"dtype": torch.float32, **options})


def test_the_entries_are_the_run_and_share_no_memory():
    expert = train()
    assert expert.weights.shape == (5, FlatModel(net()).size)
    assert len({expert.at(e).data_ptr() for e in range(5)}) == 5
    moves = [float((expert.at(e + 1) - expert.at(e)).norm()) for e in range(4)]
    assert moves == pytest.approx(expert.steps)
    assert min(moves) > 0
    assert torch.equal(expert.at(4), expert.final)
    assert expert.errors[-1] < 0.4  # of three classes


def test_an_expert_is_plain_sgd_from_the_seeds_weights():
    """Its first epoch, with one batch of all rows, by hand."""
    expert = train(Recipe(epochs=1, batch_size=48, learning_rate=0.1, weight_decay=0.01), seed=5)
    torch.manual_seed(5)
    model, (x, y) = net(), rows()
    flat = FlatModel(model)
    assert torch.equal(expert.at(0), flat.weights())
    F.cross_entropy(model(x), y).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(expert.at(1), flat.weights() * (1 - 0.1 * 0.01) - 0.1 * gradient)


def test_only_what_is_needed_is_kept_and_the_end():
    whole, part = train(), train(keep=2)
    assert torch.equal(part.weights, whole.weights[:3])
    assert torch.equal(part.final, whole.final)
    half = train(dtype=torch.float16)
    assert half.weights.dtype == torch.float16
    assert half.at(1).dtype == torch.float32
    torch.testing.assert_close(half.at(3), whole.at(3), rtol=1e-3, atol=1e-4)


def test_the_ramp_is_a_warm_up_without_momentum_and_none_with_it():
    recipe = Recipe(epochs=2, batch_size=48, learning_rate=0.1, loss_ramp=True)
    assert [ramp(e) for e in (0, 1, 9, 10, 40)] == pytest.approx([0.5, 0.55, 0.95, 1, 1])
    ramped = train(recipe)
    slow = [
        train(dataclasses.replace(recipe, loss_ramp=False, epochs=e + 1, learning_rate=0.1 * ramp(e))) for e in (0, 1)
    ]
    torch.testing.assert_close(ramped.at(1), slow[0].at(1))
    model = net()
    flat = FlatModel(model)
    flat.load_(ramped.at(1))
    F.cross_entropy(model(rows()[0]), rows()[1]).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(ramped.at(2), ramped.at(1) - 0.1 * ramp(1) * gradient)
    heavy = train(dataclasses.replace(recipe, momentum=0.9))
    assert float((heavy.at(2) - ramped.at(2)).norm()) > 0.1 * float((ramped.at(2) - ramped.at(0)).norm())


def test_the_penalty_of_a_linear_model_is_known():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 3)).double()
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    slope = model[1].weight.detach().sum(0).view(2, 3, 3)
    assert float(gradient_penalty(model, x, "sample").detach()) == pytest.approx(
        float((slope.norm() - 1) ** 2), rel=1e-12
    )
    want = float((slope.norm(dim=0) - 1).square().mean())
    assert float(gradient_penalty(model, x, "channel").detach()) == pytest.approx(want, rel=1e-12)


def test_the_penalty_acts_and_the_weight_counts():
    plain = train()
    found = {}
    for form in ("channel", "sample"):
        recipe = Recipe(epochs=4, batch_size=16, gradient_penalty=form, penalty_weight=1.0)
        expert = train(recipe)
        flat, x = FlatModel(net()), rows()[0]
        found[form] = [
            float(gradient_penalty(lambda z, t=e.final, f=flat: f(t, z), x, form).detach()) for e in (expert, plain)
        ]
    assert all(with_it < without for with_it, without in found.values())


def test_equal_seeds_are_equal_and_the_global_random_numbers_are_left_alone():
    state = torch.get_rng_state()
    recipe = Recipe(epochs=2, batch_size=16, augment=True)
    first, again, other = (train(recipe, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.weights, other.weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_cache_gives_back_what_was_trained(tmp_path, monkeypatch):
    expert = train(folder=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    monkeypatch.setattr("legato.distillation.experts.fit", lambda *a, **k: pytest.fail("trained again"))
    again = train(folder=tmp_path)
    assert torch.equal(again.weights, expert.weights)
    assert again.steps == expert.steps and again.errors == expert.errors
    assert Expert.load(file, expert.fingerprint).fingerprint == expert.fingerprint


@pytest.mark.parametrize("name", ["network", "training data", "recipe", "kept epochs"])
def test_an_expert_of_another_kind_is_refused_by_name(tmp_path, name):
    expert = train(Recipe(epochs=1, batch_size=48))
    expert.save(tmp_path / "expert.safetensors")
    with pytest.raises(LegatoValueError, match=f"experts: expected experts of the same {name}; got others in expert"):
        Expert.load(tmp_path / "expert.safetensors", {**expert.fingerprint, name: "another"})


def test_the_fingerprint_sees_network_data_recipe_and_preprocessing():
    recipe = Recipe(epochs=1, batch_size=48)
    first = train(recipe).fingerprint
    others = {
        "network": train_expert(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), rows(), rows(), recipe),
        "training data": train_expert(
            net, (Preprocessing.fit(rows()[0], zca=True).apply(rows()[0]), rows()[1]), rows(), recipe
        ),
        "recipe": train(dataclasses.replace(recipe, momentum=0.5)),
    }
    for name, expert in others.items():
        assert [key for key in first if first[key] != expert.fingerprint[key]] == [name]


def test_files_that_are_no_experts_and_trainings_that_fail_say_so(tmp_path):
    from safetensors.torch import save_file

    save_file({"weights": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is no expert"):
        Expert.load(tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match=r"torn.safetensors cannot be read"):
        Expert.load(tmp_path / "torn.safetensors")
    with pytest.raises(LegatoValueError, match="experts: expected a training that stays finite"):
        train(Recipe(epochs=2, batch_size=16, learning_rate=1e30))
    with pytest.raises(LegatoValueError, match="Did you mean 'sample'"):
        Recipe(gradient_penalty="samples")
    with pytest.raises(LegatoValueError, match="epochs"):
        Recipe(epochs=0)


def test_what_is_kept_is_json():
    assert json.loads(json.dumps(dict(train(Recipe(epochs=1, batch_size=48)).fingerprint)))
    assert math.isfinite(sum(train(Recipe(epochs=1)).steps))
