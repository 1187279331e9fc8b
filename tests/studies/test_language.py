"""One trial of the task language: what it minimises, what it reads, when it is lost."""

import dataclasses
import math
import random
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from legato.data.text import TextBatches, load_text, windows
from legato.errors import DataError, LegatoValueError
from legato.lab.trial import trial_hash
from legato.stability.z_loss import z_loss
from legato.studies import language
from legato.studies.language import (
    LanguageConfig,
    check_objective,
    config_for,
    lost,
    new_model,
    new_objective,
    train,
    trial,
)
from legato.studies.language_tokens import attention

TINY = {
    "width": 16,
    "depth": 2,
    "heads": 2,
    "length": 16,
    "batch_size": 4,
    "steps": 12,
    "checks": 2,
    "validation_rows": 16,
}


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(draw.choice(["to", "be", "or", "not", "that", "is"]) for _ in range(20_000)))
    return path


@pytest.fixture(scope="module")
def text(text_file):
    return load_text(text_file)


def config(text, **changes):
    return config_for(text, **TINY | {"learning_rate": 0.01, "seed": 0} | changes)


def first_batch(text, asked):
    return next(TextBatches(text.train, asked.length, asked.batch_size, 6, seed=asked.seed).epoch(0))


def test_the_loss_is_the_mean_over_all_tokens_and_the_z_loss_comes_on_top(text):
    asked = config(text, objective="ce+z-loss:0.5")
    model, _ = new_model(asked)
    batch = first_batch(text, asked)
    logits = model(batch[0])
    want = F.cross_entropy(logits.transpose(1, 2), batch[1])
    plain = new_objective(dataclasses.replace(asked, objective="ce"), model)
    plain.begin_epoch(0)
    torch.testing.assert_close(plain.loss(model, batch, 0), want)
    both = new_objective(asked, model)
    both.begin_epoch(0)
    torch.testing.assert_close(both.loss(model, batch, 0), want + z_loss(logits, batch[1], 0.5))


def test_tokens_are_rows_with_an_index_of_their_own(text):
    seen = {}

    class Spy:
        def loss(self, model, batch, step):
            seen["output"], seen["batch"] = model(batch[0]), batch

    asked = config(text)
    model, _ = new_model(asked)
    batch = first_batch(text, asked)
    language.TokenRows(Spy()).loss(model, batch, 0)
    _, targets, index = seen["batch"]
    assert seen["output"].shape == (4 * 16, 256)
    torch.testing.assert_close(seen["output"].view(4, 16, 256), model(batch[0]))
    assert torch.equal(text.train[index + 1].long(), targets)


def test_a_trial_by_hand(text):
    """Its final loss is that of a loop written here: AdamW with independent decay, warm-up, cosine and clipping."""
    asked = config(text, weight_decay=0.01, warmup=0.25)
    model, _ = new_model(asked)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=1.0)
    batches = TextBatches(text.train, 16, 4, 6, seed=0)
    for step, (inputs, targets, _) in enumerate(batch for epoch in range(2) for batch in batches.epoch(epoch)):
        s = (step + 1) / 4 if step < 3 else 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * (step - 3) / 9)) / 2
        optimizer.param_groups[0]["lr"] = 0.01 * s
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    held = windows(text.validation, 16, 16)
    with torch.no_grad():
        want = F.cross_entropy(model(held[:, :-1]).flatten(0, 1), held[:, 1:].flatten())
    found = trial(asked, text=text).metrics
    assert found["loss"] == pytest.approx(float(want), rel=1e-4)
    assert found["loss"] < found["initial_loss"] - 1
    assert found["curves"]["validation_loss"][-1] == pytest.approx(found["loss"], rel=1e-6)
    assert found["parameters"] == 12 * 2 * 16**2


def test_the_probe_is_the_dense_maximum_at_the_steps_that_were_asked_for(text):
    asked = config(text, probe_steps=(0, 5, 12), qk_norm=False)
    done = train(asked, text)
    assert [reading["step"] for reading in done.probes] == [0, 5, 12]
    model, _ = new_model(asked)
    tokens = windows(text.validation, 16, 16)[:8, :-1]
    first = attention(model, tokens)
    assert first["attention_max"] == done.probes[0]["attention_max"]
    block = model.blocks[0]
    at = block.attention_norm(model.embedding(tokens))
    query, key = (layer(at).view(8, 16, 2, 8).transpose(1, 2) for layer in (block.attention.query, block.attention.key))
    query, key = (language_rotate(part, model) for part in (query, key))
    logits = (query @ key.mT / math.sqrt(8)).masked_fill(torch.ones(16, 16).triu(1).bool(), -math.inf)
    assert first["attention_max"][0] == pytest.approx(logits.max().item(), rel=1e-5)
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1).mean()
    assert first["attention_entropy"][0] == pytest.approx(entropy.item(), rel=1e-4)
    assert done.probes[2]["attention_max"] == attention(done.fitted.model, tokens)["attention_max"]


def language_rotate(part, model):
    from legato.stability.decoder import rotate

    return rotate(part, model.cosine[:16], model.sine[:16])


def test_the_gradient_is_read_after_clipping(text, monkeypatch):
    monkeypatch.setattr(language, "GRADIENT_STEPS", 3)
    free, tight = (train(config(text, clip_norm=norm, learning_rate=1e-6), text).gradient_rms for norm in (None, 1e-3))
    assert 0 < tight < 1e-3 / math.sqrt(16 * 64)
    assert free > 10 * tight


def test_watching_changes_no_bit_and_keeps_its_readings(text):
    plain, watched = (trial(config(text, watch_every=every), text=text).metrics for every in (0, 5))
    assert [reading["step"] for reading in watched["readings"]] == [0, 5, 10]
    assert set(watched["readings"][0]["attention"]) == {"blocks.0.attention", "blocks.1.attention"}
    assert {key: plain[key] for key in plain} == {key: watched[key] for key in plain}
    assert "alarms" in watched and "alarms" not in plain


def test_muon_is_watched_too(text):
    found = trial(config(text, watch_every=6, optimizer="muon"), text=text).metrics
    assert all(found["readings"][1]["update_rms"][name] > 0 for name in ("blocks.0.up.weight", "head.weight"))


def entries(*losses):
    return [{"validation_loss": loss, "step": 10 * (i + 1)} for i, loss in enumerate(losses)]


def test_a_run_is_lost_when_its_loss_stays_above_the_initial_one():
    assert lost(entries(6.0, 6.0), 5.0, 3) is None
    assert "at 3 checks in a row, the last after step 40" in lost(entries(4.0, 6.0, 6.0, 5.1), 5.0, 3)
    assert lost(entries(6.0, 6.0, 5.0, 6.0, 6.0), 5.0, 3) is None
    assert "not finite after step 20" in lost(entries(4.0, None), 5.0, 3)


def test_a_lost_run_ends_early_and_counts_as_a_guess(text, monkeypatch):
    monkeypatch.setattr(language, "lost", lambda history, initial, patience: "lost" if len(history) == 2 else None)
    found = trial(config(text, checks=6), text=text).metrics
    assert found["diverged"] == "lost"
    assert found["steps"] == 4
    assert found["loss"] is None
    assert found["validation_nll"] == pytest.approx(math.log(256))


def test_a_huge_learning_rate_is_lost_or_finite_but_never_an_error(text):
    asked = config(text, learning_rate=1e6, qk_norm=False, clip_norm=None, checks=6, patience=2)
    found = trial(asked, text=text).metrics
    assert found["diverged"] and found["steps"] < 12


def test_the_seed_decides_everything(text):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (
        train(config(text, seed=seed), text).fitted.history[-1]["validation_loss"] for seed in (1, 1, 2)
    )
    assert first == second != other
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "muon"},
        {"mup": "full", "base_width": 8},
        {"objective": "ce+sam:0.05+ema:0.5"},
        {"objective": "comp-sum:1.2"},
    ],
)
def test_variants_learn(text, changes):
    done = train(config(text, steps=24, **changes), text)
    assert done.fitted.diverged is None
    assert done.fitted.history[-1]["validation_loss"] < done.initial_loss - 0.5


def test_the_test_text_is_read_only_when_asked(text):
    tuning = trial(config(text), text=text)
    reading = trial(config(text, reads_test=True), text=text)
    assert not any("test" in name for name in tuning.metrics) and not tuning.arrays
    held = windows(text.test, 16, 16)[:, 1:].flatten()
    assert np.array_equal(reading.arrays["true"], held.numpy())
    assert reading.metrics["test_nll"] == pytest.approx(float(reading.arrays["nll"].mean()), rel=1e-5)
    assert reading.metrics["test_nll_scaled"] == pytest.approx(float(reading.arrays["nll_scaled"].mean()), rel=1e-5)
    assert reading.metrics["test_error"] == pytest.approx(
        (reading.arrays["prediction"] != reading.arrays["true"]).mean()
    )
    assert reading.metrics["loss"] == tuning.metrics["loss"]


def test_names_of_trials_do_not_change():
    """A default or meaning that changes must raise the schema of every study that holds such trials."""
    plain = LanguageConfig("python", "0" * 64, 0.01, 3)
    assert trial_hash("s", 1, plain)[:12] == "e303c6ea796e"
    assert trial_hash("s", 1, dataclasses.replace(plain, qk_norm=False, objective="ce+z-loss"))[:12] == "563dd0d8d8d2"


def test_a_warm_trial_imports_nothing(text):
    trial(config(text, reads_test=True), text=text)
    before = set(sys.modules)
    trial(config(text, reads_test=True, learning_rate=0.1), text=text)
    assert set(sys.modules) == before


@pytest.mark.parametrize("objective", ["pgd-at", "ce+saf:1", "ce+mesa", "ce+esam", "select:ce/mae"])
def test_objectives_that_need_more_than_tokens(objective):
    with pytest.raises(LegatoValueError, match="losses of logits and targets for the task language"):
        check_objective(objective)


def test_bad_input(text):
    with pytest.raises(LegatoValueError, match="steps: expected a multiple of the 5 checks"):
        config(text, checks=5)
    with pytest.raises(DataError, match="begin a new folder"):
        trial(dataclasses.replace(config(text), data_sha256="0" * 64), text=text)
    check_objective("ce+z-loss:1e-4+sam+weight-decay:0.1")
