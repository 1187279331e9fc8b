"""Weight decay that does not depend on the learning rate, muParam's factors, and the check of its coordinates."""

import math

import pytest
import torch
from torch.nn import functional as F

from legato.errors import LegatoValueError
from legato.stability.decay import Joint, adamw, muon, parameter_groups
from legato.stability.decoder import Decoder
from legato.stability.mup import Factors, coordinate_check, mu_factors, mu_parametrise_

BASE, STEPS = 16, 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def decoder(width=32, seed=0, **changes):
    return Decoder(11, width, 2, width // 8, length=12, generator=generator(seed), **changes)


def s(step):
    """A schedule."""
    return 1 - step / STEPS


@pytest.mark.parametrize("rate", [1e-3, 0.3])
@pytest.mark.parametrize(("decay", "weight_decay"), [("independent", 0.01), ("conventional", 0.1)])
def test_decay_alone_is_its_closed_form(rate, decay, weight_decay):
    """Without gradients theta = theta_0 prod(1 - s_t lambda), free of eta; or prod(1 - s_t eta lambda). A factor changes nothing of the first."""
    weights = {name: torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for name in ("plain", "slow")}
    groups = parameter_groups(
        weights.items(), rate, weight_decay, decay=decay, factors={"slow": Factors(learning_rate=0.25)}
    )
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, s)
    for _ in range(STEPS):
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        schedule.step()
    for name, factor in (("plain", 1.0), ("slow", 0.25)):
        by = weight_decay if decay == "independent" else rate * factor * weight_decay
        want = math.prod(1 - s(t) * by for t in range(STEPS))
        assert weights[name].tolist() == pytest.approx([want] * 3, rel=1e-12)


def test_a_constant_gradient_moves_adam_by_its_share_of_eps():
    """|g| / (|g| + eps) at every step, thanks to the bias correction: 0.990, 0.909, 0.5, 0.0909."""
    model = torch.nn.Linear(4, 1, bias=False).double()
    sizes = torch.tensor([[100.0, 10.0, 1.0, 0.1]], dtype=torch.float64) * 1e-3
    optimizer = adamw(model, 0.5, 0.0, eps=1e-3)
    for _ in range(4):
        before = model.weight.detach().clone()
        model.weight.grad = sizes.clone()
        optimizer.step()
        share = (before - model.weight.detach()) / 0.5
        assert share.tolist()[0] == pytest.approx([100 / 101, 10 / 11, 1 / 2, 1 / 11], rel=1e-9)


def test_groups_hold_each_trained_weight_once():
    model = decoder()
    model.embedding.weight.requires_grad_(False)
    groups = parameter_groups(model.named_parameters(), 0.1, factors=mu_factors(model, "full", BASE))
    assert sorted(group["lr"] for group in groups) == pytest.approx([0.05, 0.1])
    held = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(held) == sorted(id(weight) for weight in model.parameters() if weight.requires_grad)
    assert all(group["weight_decay"] * group["lr"] == pytest.approx(1e-4) for group in groups)


@pytest.mark.parametrize("variant", ["simple", "intermediate"])
def test_at_the_base_width_nothing_changes(variant):
    plain, scaled = decoder(BASE), decoder(BASE)
    factors = mu_parametrise_(scaled, variant, BASE)
    assert set(factors.values()) == {Factors()}
    assert torch.equal(plain(torch.zeros(1, 4, dtype=torch.int64)), scaled(torch.zeros(1, 4, dtype=torch.int64)))


def test_full_starts_without_queries_and_divides_by_the_head_dimension():
    model, plain = decoder(BASE), decoder(BASE)
    mu_parametrise_(model, "full", BASE)
    for block, other in zip(model.blocks, plain.blocks, strict=True):
        assert not block.attention.query.weight.any()
        assert torch.equal(block.attention.key.weight, other.attention.key.weight)
        assert block.attention.scale == 1 / 8


@pytest.mark.parametrize("head_is_linear", [True, False])
def test_the_factors_of_a_wider_model(head_is_linear):
    factors = mu_factors(decoder(64), "intermediate", BASE, head_is_linear=head_is_linear)
    assert factors["blocks.1.down.weight"] == Factors(BASE / 64)
    assert factors["embedding.weight"] == factors["blocks.0.mlp_norm.weight"] == Factors()
    assert factors["head.weight"] == Factors(BASE / 64 if head_is_linear else 1.0, math.sqrt(BASE / 64))
    assert mu_factors(decoder(64), "simple", BASE)["head.weight"] == Factors(BASE / 64)
    model = Decoder(500, 64, 1, 2, length=4, generator=generator())
    mu_parametrise_(model, "intermediate", BASE)
    assert float(model.head.weight.detach().std()) == pytest.approx(math.sqrt(BASE) / 64, rel=0.03)


def train(model, learning_rate=0.02, factors=None, batches=4):
    """Some steps of AdamW on one batch of tokens, which it returns."""
    tokens = torch.randint(11, (8, 13), generator=generator(3))
    optimizer = adamw(model, learning_rate, factors=factors)
    for _ in range(batches):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
    return tokens[:, :-1]


def rms_of(variant, widths=(16, 64, 256)):
    """RMS of each module by width after training, at a learning rate that is scaled, or the same for all."""
    tables = {}

    def make(width):
        model = decoder(width)
        tables[id(model)] = mu_parametrise_(model, variant, BASE) if variant else None
        return model

    return coordinate_check(make, widths, lambda model: train(model, factors=tables[id(model)]))


def test_coordinates_are_flat_with_muparam_and_grow_without():
    flat, steep = rms_of("full"), rms_of(None)
    for name in ("blocks.1.down", "blocks.1.attention.output", "blocks.1"):
        assert max(flat[name]) / min(flat[name]) < 2.5, name
        assert steep[name][2] > 3 * steep[name][0], name
    assert "model" in flat
    assert len(flat["head"]) == 3


def test_coordinate_check_needs_widths():
    with pytest.raises(LegatoValueError, match="widths: expected two or more"):
        coordinate_check(decoder, [16], train)


def test_muon_takes_the_matrices_inside_and_one_schedule_leads_both():
    model = decoder()
    optimizer = muon(model, 0.02)
    inner, rest = optimizer.optimizers
    hidden = {id(w) for name, w in model.named_parameters() if name.startswith("blocks.") and w.dim() == 2}
    assert {id(w) for group in inner.param_groups for w in group["params"]} == hidden
    assert len(optimizer.param_groups) == 2
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, s)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model(torch.randint(11, (2, 12), generator=generator())).logsumexp(-1).mean().backward()
    optimizer.step()
    schedule.step()
    assert all(not torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert [group["lr"] for one in (inner, rest) for group in one.param_groups] == [0.016, 0.016]


def test_a_muon_step_is_of_adamws_size():
    """Orthogonal updates scaled by 0.2 sqrt(max(shape)): RMS 0.2 of the rate for a square matrix, within what Newton-Schulz leaves."""
    weight = torch.nn.Parameter(torch.zeros(32, 32))
    model = torch.nn.ParameterDict({"inside": weight})
    optimizer = muon(model, 0.5)
    weight.grad = torch.randn(32, 32, generator=generator())
    optimizer.step()
    assert float(weight.detach().square().mean().sqrt()) / 0.5 == pytest.approx(0.2, rel=0.3)


def test_joint_state_goes_on_bit_for_bit():
    def run(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.arange(11)[None]).square().mean().backward()
            optimizer.step()

    whole, half = decoder(seed=1), decoder(seed=1)
    run(whole, muon(whole, 0.01), 4)
    first = muon(half, 0.01)
    run(half, first, 2)
    second = muon(half, 0.5)
    second.load_state_dict(first.state_dict())
    assert [group["lr"] for group in second.param_groups] == [0.01, 0.01]
    run(half, second, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


def test_joint_calls_the_closure_once():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer, calls = Joint(*(torch.optim.SGD([weight], lr=0.5) for weight in weights)), []

    def closure():
        calls.append(1)
        loss = sum(weights).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert len(calls) == 1
    assert [weight.item() for weight in weights] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: adamw(decoder(), 0.0), "learning_rate: expected a number > 0"),
        (lambda: adamw(decoder(), math.nan), "learning_rate: expected a number > 0"),
        (lambda: adamw(decoder(), 0.1, -1.0), "weight_decay: expected a number >= 0"),
        (lambda: adamw(decoder(), 0.1, decay="independant"), "Did you mean 'independent'"),
        (lambda: mu_factors(decoder(), "fool"), "Did you mean 'full'"),
        (lambda: mu_factors(decoder(), "full", 0), "base_width: expected a whole number >= 1"),
        (lambda: muon(torch.nn.LayerNorm(3), 0.1), "a matrix beside"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(LegatoValueError, match=words):
        call()
