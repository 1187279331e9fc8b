"""Networks by name and by import path."""

import sys

import pytest
import torch

from legato import nets
from legato.errors import LegatoValueError

OWN = """
from torch import nn
NUMBER = 3
def good(input_shape, num_classes):
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes), nn.BatchNorm1d(num_classes).eval())
    return model
def no_module(input_shape, num_classes): return 3
def one_argument(input_shape): return None
def too_wide(input_shape, num_classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes + 1))
def pair(input_shape, num_classes):
    class Pair(nn.Module):
        def forward(self, x): return x, x
    return Pair()
def wrong_input(input_shape, num_classes): return nn.Linear(999, num_classes)
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nets_for_a_test.py").write_text(OWN)
    yield "own_nets_for_a_test"
    sys.modules.pop("own_nets_for_a_test", None)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 11), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("spec", ["mlp", "convnet", "resnet"])
def test_pictures_of_every_size_give_one_logit_for_each_class(spec, shape):
    model = nets.build(spec, shape, 7)
    logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_vectors_go_through_the_mlp():
    model = nets.build("mlp", (30,), 2)
    assert model(torch.randn(4, 30)).shape == (4, 2)
    assert sum(p.numel() for p in model.parameters()) == 31 * 256 + 257 * 2
    assert sum(p.numel() for p in nets.mlp((30,), 2, width=8, depth=3).parameters()) == 31 * 8 + 2 * 9 * 8 + 9 * 2
    assert sum(p.numel() for p in nets.mlp((30,), 2, depth=0).parameters()) == 31 * 2


@pytest.mark.parametrize("spec", ["mlp", "convnet", "resnet"])
def test_the_seed_fixes_the_weights(spec):
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(torch.cat([p.flatten() for p in nets.build(spec, (1, 8, 8), 3).parameters()]))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_residual_block_adds_its_shortcut():
    block = nets.resnet((1, 8, 8), 3)[3].eval()
    for parameter in block.body.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("spec", ["convnet", "resnet"])
def test_a_vector_is_no_picture(spec):
    with pytest.raises(LegatoValueError, match=rf"for {spec}; got inputs of shape \[30\]. Fix: use mlp"):
        nets.build(spec, (30,), 2)


def test_an_own_factory_in_the_current_folder(own_module):
    model = nets.build(f"{own_module}:good", (2, 3), 4)
    assert model(torch.randn(5, 2, 3)).shape == (5, 4)
    assert [m.training for m in model] == [True, True, False]  # as the factory left it


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnett", "Did you mean 'resnet'"),
        ("no_such_package_here:make", "importable module in 'no_such_package_here:make'; got No module named"),
        ("{own}:goood", "function 'goood' in .*; got nothing of that name"),
        ("{own}:NUMBER", "function at .*; got int"),
        ("{own}:no_module", "torch.nn.Module from .*; got int"),
        ("{own}:one_argument", r"take \(input_shape, num_classes\); got too many positional arguments"),
        ("{own}:too_wide", r"shape \[2, 4\] .*; got \[2, 5\]"),
        ("{own}:pair", "got tuple"),
        ("{own}:wrong_input", r"accept inputs of shape \[2, 6\]"),
    ],
)
def test_what_is_wrong_with_an_own_factory(own_module, spec, words):
    with pytest.raises(LegatoValueError, match=words):
        nets.build(spec.format(own=own_module), (6,), 4)
