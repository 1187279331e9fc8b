"""Which models the watcher sees: compiled, checkpointed, of other packages; and what it says where it sees nothing."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from watched_models import VOCABULARY, Block, Decoder, Encoder, adam, hooks, made, rms, step, tokens, trained

from legato.errors import LegatoWarning
from legato.stability.readings import find_blocks, output_logits, plain_name
from legato.stability.watch import watch


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_count_once(reentrant):
    class Checkpointed(Decoder):
        def forward(self, batch):
            x = self.embed(batch)
            for block in self.blocks:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant)
            return self.head(x)

    model, other = made(Checkpointed), made()
    first, second = adam(model), adam(other)
    with watch(model, first) as one, watch(other, second) as two:
        step(model, first, tokens())
        step(other, second, tokens())
    assert one.latest == two.latest and one.seen["scaled_dot_product_attention"] == 2


def test_frozen_unused_and_sparse_parameters():
    model = made()
    model.embed.sparse = True
    model.blocks[0].out.weight.requires_grad_(False)
    model.spare = nn.Parameter(torch.zeros(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as watcher:
        step(model, optimizer, tokens())
    reading = watcher.latest
    assert "blocks.0.out.weight" not in reading.update_rms and "spare" not in reading.gradient_rms
    assert reading.update_rms["spare"] == 0.0
    assert reading.gradient_rms["embed.weight"] == pytest.approx(rms(model.embed.weight.grad.to_dense()), rel=1e-9)
    assert reading.update_rms["embed.weight"] == pytest.approx(0.1 * reading.gradient_rms["embed.weight"], rel=1e-9)


@pytest.mark.slow
def test_compiled_models_are_seen_on_watched_steps():
    model = made()
    compiled = torch.compile(model, backend="eager")
    optimizer = adam(model)
    with watch(compiled, optimizer, every=2) as watcher:
        for seed in range(4):
            step(compiled, optimizer, tokens(seed))
    assert list(watcher.latest.attention) == ["blocks.0", "blocks.1"] and "blocks.1" in watcher.latest.block_rms
    assert "head.weight" in watcher.latest.gradient_rms and hooks(compiled, optimizer) == ([], 0, 0)
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_hugging_face_models(kind, attention):
    """Small random ones, built without a download."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": VOCABULARY, "attn_implementation": attention}
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, **sizes)
        model, names = transformers.GPT2LMHeadModel(config), ["transformer.h.0.attn", "transformer.h.1.attn"]
    else:
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=16, **sizes,
        )  # fmt: skip
        model, names = transformers.LlamaForCausalLM(config), ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    model.train()
    plain = trained(model, 4, watched=False)
    watched = trained(model, 4, watched=True, every=2)
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    optimizer = adam(model)
    with watch(model, optimizer) as watcher:
        step(model, optimizer, tokens())
    reading = watcher.latest
    assert list(reading.attention) == names and reading.logits is not None and len(reading.block_rms) == 2
    for layer in reading.attention.values():
        assert len(layer.max) == config.num_attention_heads
        ends = zip(layer.lower, layer.max, layer.upper, layer.entropy, strict=True)
        assert all(low - 1e-5 <= top <= high + 1e-5 and 0 < entropy < math.log(8) for low, top, high, entropy in ends)


def test_two_attentions_of_one_module_have_two_names():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(Block(16, 2, 0.0))

        def forward(self, x):
            own = F.scaled_dot_product_attention(x, x, x)
            return F.scaled_dot_product_attention(self.inner(own), x, x)

    model = made(Twice)
    optimizer = adam(model)
    with watch(model, optimizer) as watcher:
        model(torch.randn(2, 5, 16, dtype=torch.float64)).sum().backward()
        optimizer.step()
    assert list(watcher.latest.attention) == ["model", "inner.0", "model#1"]


def test_what_cannot_be_seen_is_handed_in():
    model = nn.Linear(4, 4)
    optimizer = adam(model)
    z = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).masked_fill(
        ~torch.ones(5, 5).tril().bool(), -math.inf
    )
    with warnings.catch_warnings(), watch(model, optimizer, every=2) as watcher:
        warnings.simplefilter("error")
        for _ in range(2):
            model(torch.ones(2, 4)).sum().backward()
            watcher.observe("flex", z.logsumexp(-1), torch.arange(1, 6), largest=z.amax(-1))
            watcher.observe("package", z.logsumexp(-1))
            optimizer.step()
    [reading] = watcher.readings
    want = z.amax((0, 2, 3)).tolist()
    assert reading.attention["flex"].max == want and reading.attention["flex"].source == "given"
    for layer in reading.attention.values():
        assert all(
            low <= top + 1e-6 and top <= high + 1e-6
            for low, top, high in zip(layer.lower, want, layer.upper, strict=True)
        )
    assert reading.attention["package"].max is None and reading.attention["package"].entropy is None


def test_a_model_without_attention_says_what_saw_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    optimizer = adam(model)
    with (
        pytest.warns(
            LegatoWarning,
            match="scaled_dot_product_attention: 0 calls, multi_head_attention_forward: 0 calls, softmax: 0",
        ),
        watch(model, optimizer) as watcher,
    ):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    assert watcher.latest.attention == {} and watcher.latest.gradient_rms


def test_a_model_that_is_not_called_is_named():
    model = made()
    optimizer = adam(model)
    with pytest.warns(LegatoWarning, match="was not called with gradients on"), watch(model, optimizer):
        model.head.weight.sum().backward()
        optimizer.step()
    with pytest.warns(LegatoWarning, match="did not step"), watch(model, optimizer):
        pass


def test_blocks_and_logits_are_found():
    model = made()
    assert list(find_blocks(model)) == ["blocks.0", "blocks.1"]
    assert list(find_blocks(Encoder())) == ["body.layers.0", "body.layers.1"]
    assert find_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == {}
    assert plain_name("module._orig_mod.blocks.0._orig_mod.mlp") == "blocks.0.mlp"
    z = torch.ones(2, 3)
    assert output_logits(z) is z and output_logits({"logits": z}) is z and output_logits((torch.ones(()), z)) is z
    assert (
        output_logits(torch.ones(())) is None
        and output_logits(torch.ones(2, 1)) is None
        and output_logits(None) is None
    )


def test_logits_of_one_s_own_choice():
    model = made()
    optimizer = adam(model)
    with watch(model, optimizer, logits=lambda output: output[..., :2].masked_fill(output[..., :2] > 1e9, 0)) as some:
        step(model, optimizer, tokens())
    with watch(model, optimizer, logits=None, updates=False, entropy=False, exact_every=0) as none:
        step(model, optimizer, tokens())
    assert some.latest.logits.log_z < 3
    assert (
        none.latest.logits is None
        and none.latest.update_rms == {}
        and none.latest.attention["blocks.0"].entropy is None
    )
