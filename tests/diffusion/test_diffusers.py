"""On networks and schedulers of diffusers: the same levels, the same steps, attention that is switched and put back, adapters."""

import pytest
import torch

from legato.diffusion import (
    Denoiser,
    ddim_invert,
    ddim_levels,
    ddim_sample,
    denoiser,
    schedule_of,
    twice_differentiable,
    unit_directions,
    variation,
    variation_norms,
)
from legato.diffusion.lora import FILE, add_lora, load_lora, lora_state, renamed, save_lora
from legato.errors import CheckpointError, LegatoTypeError, LegatoValueError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def conditional():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        **SMALL, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip


def by_class():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        **SMALL, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=4, attention_head_dim=4,
    )  # fmt: skip


def transformer():
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, out_channels=2, num_layers=1, sample_size=8, patch_size=2,
        num_embeds_ada_norm=100, norm_num_groups=1,
    )  # fmt: skip
    torch.nn.init.normal_(model.proj_out_2.weight, std=0.5)
    return model.eval()


NETWORKS = {
    "UNet2DConditionModel": (
        conditional,
        {"encoder_hidden_states": torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))},
    ),
    "UNet2DModel": (by_class, {"class_labels": torch.tensor([1, 3])}),
    "DiT": (transformer, {"class_labels": torch.tensor([1, 3])}),
}


def sample():
    g = torch.Generator().manual_seed(3)
    x0, noise = (torch.randn(2, 1, 8, 8, generator=g) for _ in range(2))
    return x0, noise, torch.tensor([200, 600]), unit_directions(x0, g)


@pytest.mark.parametrize("name", NETWORKS)
def test_variation_on_real_networks_and_attention_put_back(name):
    build, condition = NETWORKS[name]
    model = build()
    told = denoiser(model, diffusers.DDIMScheduler())
    kinds = [type(module.processor).__name__ for module in model.modules() if hasattr(module, "processor")]
    exact = variation(told, *sample(), condition=condition)
    exact.norms.sum().backward()  # a second derivative, which fused attention does not have
    assert [type(m.processor).__name__ for m in model.modules() if hasattr(m, "processor")] == kinds
    assert "AttnProcessor2_0" in kinds
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    x0, noise, t, u = sample()
    torch.testing.assert_close(
        exact.output, told.output(told.schedule.noisy(x0, noise, t), t, condition), rtol=1e-4, atol=1e-5
    )
    fast = variation_norms(told, x0, noise, t, u, condition=condition, estimator="fd", create_graph=False)
    sigma = told.schedule.at(t, x0)[1]
    with twice_differentiable(model):
        forward = torch.autograd.functional.jvp(
            lambda e: told.clean(told.schedule.noisy(x0, e, t), t, condition), noise, u
        )[1]
    torch.testing.assert_close(fast, sigma.flatten() * forward.flatten(1).norm(dim=1), rtol=1e-2, atol=0)


def test_attention_comes_back_also_after_an_error():
    model = by_class()

    def processors():
        return [module.processor for module in model.modules() if hasattr(module, "processor")]

    before = processors()
    with pytest.raises(RuntimeError, match="inside"), twice_differentiable(model) as switched:
        assert switched == len(before) == 4
        assert not set(before) & set(processors())
        raise RuntimeError("inside")
    assert processors() == before


@pytest.mark.parametrize(
    "kind", ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler", "EulerDiscreteScheduler"]
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_levels_are_those_of_the_scheduler(kind, prediction):
    scheduler = getattr(diffusers, kind)(prediction_type=prediction)
    schedule = schedule_of(scheduler)
    assert schedule.prediction == prediction
    torch.testing.assert_close(schedule.alpha.float() ** 2, scheduler.alphas_cumprod)
    x, noise, t, _ = sample()
    ours = schedule.noisy(x, noise, t)
    if kind == "DDIMScheduler":
        torch.testing.assert_close(ours, scheduler.add_noise(x, noise, t))
        torch.testing.assert_close(
            schedule.target(x, noise, t), scheduler.get_velocity(x, noise, t) if prediction == "v_prediction" else noise
        )


def test_flow_matching_levels_rise_and_add_noise_as_the_scheduler_does():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = schedule_of(scheduler)
    assert schedule.prediction == "flow"
    assert bool((schedule.sigma.diff() > 0).all())
    x, noise, t, _ = sample()
    told = schedule.told(t, x)
    torch.testing.assert_close(schedule.noisy(x, noise, t), scheduler.scale_noise(x, told, noise))
    scheduler.set_timesteps(7)
    assert len(schedule_of(scheduler)) == 1000


def test_zero_terminal_signal_and_strange_schedulers_are_refused():
    with pytest.raises(LegatoValueError, match=r"DDIMScheduler divides by alpha.*rescale_betas_zero_snr"):
        schedule_of(diffusers.DDIMScheduler(rescale_betas_zero_snr=True))
    assert (
        len(schedule_of(diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))) == 1000
    )
    with pytest.raises(LegatoTypeError, match="EDMEulerScheduler"):
        schedule_of(diffusers.EDMEulerScheduler())


def test_ddim_and_its_inverse_are_those_of_diffusers():
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    inverse = diffusers.DDIMInverseScheduler.from_config(scheduler.config)
    model = by_class().eval()
    told, x, about = denoiser(model, scheduler), sample()[0], {"class_labels": torch.tensor([1, 3])}
    levels = ddim_levels(told.schedule, 10)
    with torch.no_grad():
        up = down = x
        for one in (inverse, scheduler):
            one.set_timesteps(10)
        for t in inverse.timesteps:
            up = inverse.step(model(up, t, **about).sample, t, up).prev_sample
        for t in scheduler.timesteps:
            down = scheduler.step(model(down, t, **about).sample, t, down).prev_sample
        torch.testing.assert_close(ddim_sample(told, x, levels, about), down, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ddim_invert(told, x, levels, about)[-1], up, rtol=1e-4, atol=1e-5)


def test_an_output_of_another_shape_is_named():
    with pytest.raises(LegatoValueError, match=r"output of shape \[2, 1, 8, 8\]; got shape \[2, 3, 8, 8\]"):
        Denoiser(lambda x, t: x.expand(2, 3, 8, 8), schedule_of(diffusers.DDIMScheduler())).output(sample()[0], 3)


def adapted(model):
    assert add_lora(model, 4, ("to_q", "to_out.0", "conv1")) > 0
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "UNet2DModel"])
def test_adapters_begin_as_nothing_and_survive_the_file(name, tmp_path):
    build, condition = NETWORKS[name]
    x, _, t, _ = sample()
    plain = build()(x, t, **condition).sample
    state = torch.get_rng_state()
    fresh = build()
    torch.set_rng_state(state)
    add_lora(fresh, 4, ("to_q",), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(fresh(x, t, **condition).sample, plain)
    assert {n.split(".")[-3] for n, p in fresh.named_parameters() if p.requires_grad} <= {"lora_A", "lora_B"}
    model = adapted(build())
    want = model(x, t, **condition).sample
    assert float((want - plain).abs().max().detach()) > 1e-3
    save_lora(model, tmp_path)
    again = build()
    load_lora(again, tmp_path)
    assert torch.equal(again(x, t, **condition).sample, want)


def test_a_pipeline_of_diffusers_loads_our_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    build, condition = NETWORKS["UNet2DConditionModel"]
    x, _, t, _ = sample()
    model = adapted(build())
    save_lora(model, tmp_path)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=build(), scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(pipeline.unet(x, t, **condition).sample, model(x, t, **condition).sample, rtol=0, atol=0)


def test_files_of_diffusers_before_021_are_understood(tmp_path):
    """Keys as its attention processors had them: to_q_lora.down beside the layer, without the unet in front."""
    from safetensors.torch import save_file

    build, _ = NETWORKS["UNet2DConditionModel"]
    model = adapted(build())
    state = {name: value for name, value in lora_state(model).items() if "to_" in name}
    old = {}
    for name, value in state.items():
        layer, _, rest = name.partition(".lora_")
        block, _, part = layer.removesuffix(".0").rpartition(".")
        old[f"{block}.processor.{part}_lora.{'down' if rest[0] == 'A' else 'up'}.weight"] = value.contiguous()
    assert renamed(old).keys() == state.keys()
    save_file(old, tmp_path / "old.safetensors")
    again = build()
    load_lora(again, tmp_path / "old.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in lora_state(again).items())
    assert renamed(lora_state(model)).keys() == lora_state(model).keys()


def test_adapters_that_do_not_fit_are_errors(tmp_path):
    with pytest.raises(LegatoValueError, match=r"ends of layer names, such as .*to_q.*; got \['query'\]"):
        add_lora(by_class(), 4, ("query",))
    with pytest.raises(LegatoValueError, match="rank"):
        add_lora(by_class(), 0)
    with pytest.raises(LegatoValueError, match="with adapters"):
        save_lora(by_class(), tmp_path)
    save_lora(adapted(conditional()), tmp_path)
    with pytest.raises(LegatoValueError, match="adapters of layers of Linear"):
        load_lora(torch.nn.Linear(3, 3), tmp_path)
    with pytest.raises(CheckpointError, match=FILE):
        load_lora(conditional(), tmp_path / "none")
