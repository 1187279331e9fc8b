"""Winner, loser, policy and reference on real ControlNets: outputs of diffusers to the last bit, references without a copy, the objective."""

import copy

import pytest
import torch
from known import flow_schedule, generator
from torch import nn

from legato.diffusion import (
    ConcatenatedControl,
    ConditionPreference,
    ConditionPreferenceObjective,
    ControlledUNet,
    Denoiser,
    ReferenceErrors,
    adapters_off,
    condition_errors,
    condition_preference_loss,
    ddim_levels,
    ddim_sample,
    denoising_errors,
    scaled_linear,
)
from legato.diffusion.lora import add_lora
from legato.errors import LegatoValueError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
TARGETS = ("conv1", "to_q", "controlnet_down_blocks.0", "controlnet_mid_block")


def unet(attention=True, **options):
    torch.manual_seed(0)
    kinds = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    if not attention:
        kinds, options = (("DownBlock2D",) * 2, ("UpBlock2D",) * 2), {"mid_block_type": "UNetMidBlock2D", **options}
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=kinds[0], up_block_types=kinds[1], cross_attention_dim=8, attention_head_dim=4, **options,
    )  # fmt: skip


def controlnet(of, heard=True, stride_channels=(4,)):
    net = diffusers.ControlNetModel.from_unet(
        of, conditioning_embedding_out_channels=stride_channels, conditioning_channels=1
    )
    if heard:  # zero convolutions would hide the control
        with torch.no_grad():
            for name, value in net.named_parameters():
                if "controlnet_" in name:
                    value.normal_(std=0.2, generator=generator(len(name)))
    return net


def parts(size=8, rows=3, seed=0):
    """x_t, t, text, controls [2, B, 1, h, w]."""
    g = generator(seed)
    return (torch.randn(rows, 1, size, size, generator=g), torch.randint(1000, (rows,), generator=g),
            torch.randn(rows, 3, 8, generator=g), torch.rand(2, rows, 1, size, size, generator=g))  # fmt: skip


def theirs(base, net, x, t, text, control):
    """The two calls that every script of diffusers makes."""
    down, middle = net(x, t, encoder_hidden_states=text, controlnet_cond=control, return_dict=False)
    return base(
        x, t, encoder_hidden_states=text, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("attention", [True, False])
def test_outputs_are_those_of_diffusers(attention, size):
    """To the last bit under one control; under two to rounding, for their encoder has half of the rows and kernels differ by rows."""
    base = unet(attention)
    net = controlnet(base)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(1.1)
    x, t, text, controls = parts(size)
    model = ControlledUNet(base, net, other)
    with torch.no_grad():
        assert torch.equal(model(x, t, controls[0], text), theirs(base, net, x, t, text, controls[0]))
        model, x, text, controls = model.double(), x.double(), text.double(), controls.double()
        policy, reference = model(x, t, controls, text, reference=True)
        for k in range(2):
            for ours, of in ((policy, net), (reference, other)):
                want = theirs(base, of, x, t, text, controls[k])
                torch.testing.assert_close(ours[k], want, rtol=1e-9, atol=1e-12)
        single = model(x, t, controls[0], text, reference=True)
    assert [part.shape for part in single] == [x.shape] * 2
    assert float((policy[0] - policy[1]).abs().max()) > 1e-3
    assert float((policy - reference).abs().max()) > 1e-3


def test_what_is_shared_is_the_same_under_every_control():
    """In diffusers' own pass the middle block gives the same bits under both controls and for policy and reference."""
    base, seen = unet(), []
    base.mid_block.register_forward_hook(lambda module, inputs, out: seen.append(out.detach()))
    x, t, text, controls = parts()
    for net in (controlnet(base), controlnet(base, heard=False)):
        for control in controls:
            theirs(base, net, x, t, text, control)
    assert len(seen) == 4
    assert all(torch.equal(one, seen[0]) for one in seen)


def test_the_encoder_runs_once_and_keeps_no_graph():
    base = unet()
    model = ControlledUNet(base, controlnet(base), controlnet(base))
    seen = []
    base.mid_block.register_forward_hook(lambda module, inputs, out: seen.append((out.shape[0], out.requires_grad)))
    x, t, text, controls = parts()
    policy, reference = model(x, t, controls, text, reference=True)
    assert seen == [(3, False)]
    assert policy.requires_grad
    assert not reference.requires_grad


def test_gradients_are_those_of_diffusers():
    base = unet()
    net = controlnet(base)
    x, t, text, controls = parts()
    (ControlledUNet(base, net)(x, t, controls, text)[0] ** 2).sum().backward()
    ours = {name: value.grad.clone() for name, value in net.named_parameters()}
    net.zero_grad()
    (theirs(base, net, x, t, text, controls[0]) ** 2).sum().backward()
    for name, value in net.named_parameters():
        torch.testing.assert_close(ours[name], value.grad, rtol=1e-3, atol=1e-4)
    assert not any(p.requires_grad for p in base.parameters())


def test_a_fresh_controlnet_hears_nothing():
    base = unet()
    model = ControlledUNet(base, controlnet(base, heard=False))
    x, t, text, controls = parts()
    policy = model(x, t, controls, text)
    assert torch.equal(policy[0], policy[1])
    torch.testing.assert_close(policy[0], base(x, t, text).sample, rtol=1e-4, atol=1e-5)


def test_equal_controls_have_no_gap():
    base = unet()
    model = ControlledUNet(base, controlnet(base))
    x, t, text, controls = parts()
    policy = model(x, t, controls[:1].expand(2, -1, -1, -1, -1), text)
    assert torch.equal(policy[0], policy[1])
    slopes = torch.autograd.grad((policy[0] ** 2 - policy[1] ** 2).sum(), list(model.controlnet.parameters()))
    size = torch.autograd.grad((model(x, t, controls, text)[0] ** 2).sum(), list(model.controlnet.parameters()))
    assert max(float(s.abs().max()) for s in slopes) < 1e-4 * max(float(s.abs().max()) for s in size)


def test_adapters_off_is_the_network_before_them():
    base = unet()
    net = controlnet(base)
    before = copy.deepcopy(net)
    add_lora(net, 2, TARGETS)
    model = ControlledUNet(base, net)
    x, t, text, controls = parts()
    at_start = model(x, t, controls, text, reference=True)
    assert torch.equal(*at_start)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=generator(1))
        frozen = next(p for name, p in net.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    trainable = {name: p.requires_grad for name, p in net.named_parameters()}
    policy, reference = model(x, t, controls, text, reference=True)
    assert torch.equal(reference, ControlledUNet(base, before)(x, t, controls, text).detach())
    assert float((policy - reference).abs().max().detach()) > 1e-3
    assert {name: p.requires_grad for name, p in net.named_parameters()} == trainable
    assert torch.equal(model(x, t, controls, text), policy)
    policy.square().sum().backward()
    assert all(
        (p.grad is not None) == flag for (_, p), flag in zip(net.named_parameters(), trainable.values(), strict=True)
    )


def test_adapters_come_back_after_an_error_and_stay_off_where_they_were():
    net = controlnet(unet())
    add_lora(net, 2, TARGETS)
    with pytest.raises(RuntimeError, match="inside"), adapters_off(net) as count:
        assert count == sum(hasattr(m, "lora_A") for m in net.modules())
        raise RuntimeError("inside")
    assert not any(m.disable_adapters for m in net.modules() if hasattr(m, "lora_A"))
    net.disable_adapters()
    with adapters_off(net):
        pass
    assert all(m.disable_adapters for m in net.modules() if hasattr(m, "lora_A"))


def test_references_that_are_none():
    base = unet()
    net = controlnet(base)
    x, t, text, controls = parts()
    with pytest.raises(LegatoValueError, match=r"network with adapters.*frozen copy"):
        ControlledUNet(base, net)(x, t, controls, text, reference=True)
    add_lora(net, 2, TARGETS)
    net.conv_in.requires_grad_(True)
    with pytest.raises(LegatoValueError, match=r"conv_in\.weight and 1 others.*move both"):
        ControlledUNet(base, net)(x, t, controls, text, reference=True)
    net.conv_in.requires_grad_(False)
    for module in net.modules():
        if hasattr(module, "lora_A"):
            module.merge()
    with pytest.raises(LegatoValueError, match="merged"):
        ControlledUNet(base, net)(x, t, controls, text, reference=True)


def test_controls_of_the_wrong_size_or_number_and_strange_unets():
    base = unet()
    x, t, text, controls = parts()
    model = ControlledUNet(base, controlnet(base, stride_channels=(4, 8)))
    with pytest.raises(LegatoValueError, match=r"size \[16, 16\]: .*stride 2 .*\[8, 8\]; got \[8, 8\]"):
        model(x, t, controls, text)
    assert model(x, t, torch.rand(2, 3, 1, 16, 16), text).shape == (2, 3, 1, 8, 8)
    with pytest.raises(LegatoValueError, match=r"one a sample.*got \[2, 1, 16, 16\]"):
        model(x, t, torch.rand(2, 1, 16, 16), text)
    with pytest.raises(LegatoValueError, match=r"num_class_embeds.*condition_errors"):
        ControlledUNet(unet(num_class_embeds=3), controlnet(base))
    with pytest.raises(LegatoValueError, match="center_input_sample"):
        ControlledUNet(unet(center_input_sample=True), controlnet(base))


def test_it_is_a_denoiser_and_samples():
    base = unet()
    told = Denoiser(ControlledUNet(base, controlnet(base)), scaled_linear())
    x, _, text, controls = parts()
    with torch.no_grad():
        drawn = ddim_sample(
            told, x, ddim_levels(told.schedule, 3), {"control": controls[0], "encoder_hidden_states": text}
        )
    assert drawn.shape == x.shape
    assert drawn.isfinite().all()


class Small(nn.Module):
    """A network of two channels in, one out, that wraps its output as diffusers may."""

    def __init__(self, wrap=lambda out: out):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.last, self.wrap = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1), wrap

    def forward(self, x, t, shift=None):
        h = self.inside(x) + t[:, None, None, None] / 1000
        return self.wrap(self.last(torch.tanh(h if shift is None else h + shift)))


@pytest.mark.parametrize("wrap", [lambda out: out, lambda out: (out,)])
def test_a_control_in_more_channels_is_the_network_on_each(wrap):
    net = Small(wrap).double()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.last.weight.mul_(2)
    x, t, _, controls = parts()
    x, controls, shift = (
        x.double(),
        controls.double(),
        torch.randn(3, 1, 1, 1, dtype=torch.float64, generator=generator()),
    )
    policy, reference = ConcatenatedControl(net, other)(x, t, controls, reference=True, shift=shift)
    for said, of in ((policy, net), (reference, other)):
        for k in range(2):
            out = of(torch.cat([x, controls[k]], 1), t, shift)
            torch.testing.assert_close(said[k], out if isinstance(out, torch.Tensor) else out[0], rtol=1e-12, atol=0)
    assert not reference.requires_grad
    model = ConcatenatedControl(net, other)
    torch.testing.assert_close(model(x, t, controls[1], shift=shift), policy[1], rtol=1e-12, atol=0)
    schedule = scaled_linear()
    conditions = [{"control": control, "shift": shift} for control in controls]
    found = condition_errors(Denoiser(model, schedule), x, x, t, conditions)  # any network, without help
    assert torch.equal(found[1], condition_errors(Denoiser(model, schedule), x, x, t, conditions[::-1])[0])
    with pytest.raises(LegatoValueError, match=r"size \[8, 8\]; got \[2, 3, 1, 4, 8\]"):
        model(x, t, controls[..., :4, :])


def adapted():
    """A channel-controlled network whose reference is itself without adapters, far from where it began."""
    net = Small().double()
    add_lora(net, 2, ("inside", "last"))
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=generator(2))
    return ConcatenatedControl(net)


def batch(rows=6, seed=0):
    g = generator(seed)
    x0 = torch.randn(rows, 1, 8, 8, dtype=torch.float64, generator=g)
    return x0, torch.rand(rows, 2, 1, 8, 8, dtype=torch.float64, generator=g), torch.arange(rows)


def objective(**options):
    options = {"preference": ConditionPreference(5.0), "weight": 3.0, **options}
    return ConditionPreferenceObjective(options.pop("schedule", scaled_linear()), **options)


@pytest.mark.parametrize("schedule", [scaled_linear(), scaled_linear(prediction="v_prediction"), flow_schedule()],
                         ids=["epsilon", "v", "flow"])  # fmt: skip
def test_the_objective_is_its_parts(schedule):
    """Against four passes of their own, one an error, with the same t and noise."""
    model, (x0, controls, index) = adapted(), batch()
    loss = objective(schedule=schedule).loss(model, (x0, controls, index), 0)
    g = generator(0)
    t = torch.randint(1000, (6,), generator=g)
    noise = torch.randn(x0.shape, dtype=x0.dtype, generator=g)
    told = Denoiser(model, schedule)
    policy = [denoising_errors(told, x0, noise, t, {"control": controls[:, k]}) for k in range(2)]
    with torch.no_grad(), adapters_off(model):
        reference = [denoising_errors(told, x0, noise, t, {"control": controls[:, k]}) for k in range(2)]
    want = policy[0].mean() + 3.0 * condition_preference_loss(*policy, *reference, 5.0, mask=t > 0)
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)


def test_levels_outside_the_window_keep_their_denoising_loss():
    model, data = adapted(), batch()
    drawn = torch.randint(1000, (6,), generator=generator(0))
    first = int(drawn.sort().values[3])
    inside = objective(window=(first, 999))
    total = inside.loss(model, data, 0)
    base = objective(weight=0.0).loss(model, data, 0)
    mask = drawn >= first
    assert int(mask.sum()) == 3
    each = ConditionPreferenceObjective(scaled_linear(), both := ConditionPreference(5.0), weight=3.0)
    each.loss(model, data, 0)
    kept = condition_preference_loss(*both._last, 5.0, mask=mask)
    torch.testing.assert_close(total - base, 3.0 * kept, rtol=1e-9, atol=1e-12)
    empty = next(level for level in range(1000) if level not in drawn.tolist())
    assert torch.equal(objective(window=(empty, empty)).loss(model, data, 0), base)


def test_cached_reference_errors_are_those_that_are_computed():
    model, data = adapted(), batch()
    bank = ReferenceErrors(6, 1000, 2, seed=4)
    kept = objective(cached=bank)
    seen = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["reference"]), with_kwargs=True)
    losses = []
    for epoch in range(4):
        kept.begin_epoch(epoch)
        losses.append(kept.loss(model, data, 0))
    assert seen == [True, True, False, False]
    assert torch.equal(losses[0], losses[2])
    assert torch.equal(losses[1], losses[3])
    assert not torch.equal(losses[0], losses[1])
    x0, _, index = data
    t, noise = bank.draw(index, 0, x0)
    swapped = bank.draw(index.flip(0), 2, x0)
    assert torch.equal(swapped[0].flip(0), t)
    assert torch.equal(swapped[1].flip(0), noise)
    flat = noise.flatten(1)
    assert len({float(n) for n in flat[:, 0]}) == 6
    assert float(flat.mean().abs()) < 0.2
    assert bank.read(index, 0, x0).shape == (2, 6)
    fresh = ReferenceErrors(6, 1000, 2, seed=4)
    assert fresh.read(index, 0, x0) is None
    fresh.load_state_dict(bank.state_dict())
    assert torch.equal(fresh.read(index, 1, x0), bank.read(index, 1, x0))


def test_banks_that_do_not_fit():
    bank = ReferenceErrors(6, 1000, 2)
    for arguments, word in (((0, 10), "pairs"), ((3, 0), "levels"), ((3, 10, 0), "draws")):
        with pytest.raises(LegatoValueError, match=word):
            ReferenceErrors(*arguments)
    for other in (ReferenceErrors(6, 1000, 2, seed=1), ReferenceErrors(7, 1000, 2), ReferenceErrors(6, 1000, 3)):
        with pytest.raises(LegatoValueError, match="levels, seed, draws, pairs"):
            bank.load_state_dict(other.state_dict())
    with pytest.raises(LegatoValueError, match=r"0 \.\. 5; got 3 \.\. 6"):
        bank.read(torch.tensor([3, 6]), 0, torch.zeros(2, 1))
    with pytest.raises(LegatoValueError, match="1000 levels"):
        objective(cached=ReferenceErrors(6, 999, 2))


def test_a_step_moves_the_gap_and_a_resumed_run_is_the_same():
    model, data = adapted(), batch()
    first = objective(preference=ConditionPreference(5.0, "hinge"))

    def steps(model, term, count):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(count):
            optimizer.zero_grad()
            loss = term.gradients(lambda: term.loss(model, data, 0))
            loss.backward()
            optimizer.step()
            term.after_step(model)
        return loss.detach()

    steps(model, first, 2)
    state, other = copy.deepcopy(first.state_dict()), copy.deepcopy(model)
    want = steps(model, first, 3)
    second = objective(preference=ConditionPreference(5.0, "hinge"), seed=9)
    second.load_state_dict(state)
    assert torch.equal(steps(other, second, 3), want)
    eager = objective(preference=ConditionPreference(200.0), weight=1.0)
    learned = adapted()
    before = [eager.loss(learned, data, 0), eager.preference.stats["margin"]][1]
    steps(learned, eager, 150)
    fixed = objective(preference=ConditionPreference(200.0))
    fixed.loss(learned, data, 0)
    assert fixed.preference.stats["margin"] > before


def test_batches_and_numbers_that_do_not_fit():
    model, (x0, controls, index) = adapted(), batch()
    with pytest.raises(LegatoValueError, match=r"\[B, 2, Cc, h, w\].*got \[6, 1, 8, 8\]"):
        objective().loss(model, (x0, controls[:, 0], index), 0)
    with pytest.raises(LegatoValueError, match="same column"):
        objective().loss(model, (x0, controls[:, :1].expand(-1, 2, -1, -1, -1), index), 0)
    for options, word in (
        ({"weight": -1.0}, "weight"),
        ({"window": (5, 4)}, "window"),
        ({"window": (0, 1000)}, "window"),
    ):
        with pytest.raises(LegatoValueError, match=word):
            objective(**options)


def test_the_condition_goes_by_index():
    base = unet()
    net = controlnet(base)
    model = ControlledUNet(base, net, copy.deepcopy(net))
    x0, controls, index = (part.float() if part.is_floating_point() else part for part in batch(3))
    texts = torch.randn(9, 3, 8, generator=generator(5))
    one = objective(condition=lambda rows: {"encoder_hidden_states": texts[rows]})
    here = one.loss(model, (x0, controls, index), 0)
    assert float(one.preference.stats["winner_drift"]) == 0
    there = objective(condition=lambda rows: {"encoder_hidden_states": texts[rows]}).loss(
        model, (x0, controls, index + 4), 0
    )
    assert float(here.detach()) != float(there.detach())
