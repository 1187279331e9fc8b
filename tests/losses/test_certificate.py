"""Oracles of the certificate: the defining equations of its two bounds, and its coverage where everything is known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from legato.errors import LegatoValueError
from legato.losses import comp_sum_loss
from legato.losses.certificate import certificate, upper_mean, upper_share
from legato.losses.guarantees import best_risk_symmetric_noise, conditional_infimum, error_bound
from legato.losses.tight_guarantees import tight_error_bound

P = np.array([[0.7, 0.2, 0.1], [0.25, 0.3, 0.45], [0.05, 0.9, 0.05]])
MASS = np.array([0.5, 0.3, 0.2])
SCORES = torch.tensor([[15.0, 2.0, -5.0], [-2.0, 4.0, 1.0], [-10.0, 10.0, -15.0]], dtype=torch.float64)
"""A model that is wrong at the second input, class 1 where class 2 is likelier, and so sure that most losses are near 0 or the most."""
ERROR = float(MASS @ (1 - P[np.arange(3), [0, 1, 1]]))
BEST_ERROR = float(MASS @ (1 - P.max(1)))


def drawn(samples, generator):
    """Scores and labels of independent draws of the problem above."""
    x = generator.choice(3, samples, p=MASS)
    y = (generator.random((samples, 1)) > P[x].cumsum(1)).sum(1).clip(max=2)
    return SCORES[torch.from_numpy(x)], torch.from_numpy(y)


def risk_of_the_model(tau):
    losses = [comp_sum_loss(SCORES, torch.full((3,), y), tau, reduction="none").numpy() for y in range(3)]
    return float(MASS @ (np.stack(losses, 1) * P).sum(1))


@pytest.mark.parametrize(("mistakes", "samples"), [(0, 20), (3, 20), (19, 20), (412, 1000)])
def test_clopper_and_pearson(mistakes, samples):
    assert binom.cdf(mistakes, samples, upper_share(mistakes, samples, 0.05)) == pytest.approx(0.05, rel=1e-9)
    assert upper_share(0, 20, 0.05) == pytest.approx(1 - 0.05 ** (1 / 20))
    assert upper_share(20, 20, 0.05) == 1


@pytest.mark.parametrize("mean", [0.0, 1e-6, 0.01, 0.3, 0.9, 0.999])
def test_chernoff_and_hoeffding(mean):
    u = upper_mean(mean, 200, 0.05)
    kl = (mean * math.log(mean / u) if mean else 0) + (1 - mean) * math.log((1 - mean) / (1 - u))
    assert kl == pytest.approx(math.log(20) / 200, rel=1e-6)
    assert mean < u <= mean + math.sqrt(math.log(20) / 400)
    assert upper_mean(1.0, 200, 0.05) == 1
    assert upper_mean(0.0, 200, 0.05) == pytest.approx(1 - 0.05 ** (1 / 200))


def test_its_parts_are_put_together_as_it_says():
    generator = np.random.default_rng(0)
    h, y = drawn(400, generator)
    got = certificate(h, y, 1.7, best_risk=0.2, confidence=0.9, best_error=0.1)
    mean = float(comp_sum_loss(h, y, 1.7))
    upper = upper_mean(mean * 0.7, 400, 0.05) / 0.7
    wrong = int((h.argmax(1) != y).sum())
    assert (got.samples, got.classes, got.mistakes, got.risk) == (400, 3, wrong, pytest.approx(mean))
    assert got.risk_upper == pytest.approx(upper)
    assert got.surrogate_excess == pytest.approx(error_bound(upper - 0.2, 1.7, 3))
    assert got.error_upper == pytest.approx(upper_share(wrong, 400, 0.05))  # half of 1 - confidence each
    assert got.direct_excess == pytest.approx(got.error_upper - 0.1)
    assert got.excess == min(got.direct_excess, got.surrogate_excess)
    ours = certificate(h, y, 1.7, best_risk=0.2, confidence=0.9, tight=True)
    assert ours.surrogate_excess == pytest.approx(tight_error_bound(upper - 0.2, 1.7, 3))


def test_it_covers_what_it_says():
    """150 samples of a problem where the error, Bayes' error, the risk and the best risk are known."""
    tau, trials, confidence = 1.7, 150, 0.6
    risk, best_risk = risk_of_the_model(tau), float(MASS @ conditional_infimum(P, tau))
    assert tight_error_bound(risk - best_risk, tau, 3) >= ERROR - BEST_ERROR
    generator = np.random.default_rng(0)
    failed = np.zeros(4)
    for _ in range(trials):
        h, y = drawn(150, generator)
        got = certificate(h, y, tau, best_risk, confidence, best_error=BEST_ERROR, tight=True)
        statements = (got.error_upper >= ERROR, got.risk_upper >= risk, got.excess >= ERROR - BEST_ERROR)
        failed += [*(not s for s in statements), not all(statements)]
    share, slack = failed / trials, 3 * math.sqrt(0.2 * 0.8 / trials)
    assert 0.1 < share[0] <= 0.2 + slack  # counting has half of 0.4, and is nearly exact
    assert 0 < share[1] <= 0.2 + slack
    assert max(share[2], share[3]) <= 0.4


@pytest.mark.parametrize("tau", [1.1, 1.5, 1.7, 2.0, 3.0])
def test_without_a_best_risk_the_surrogate_never_wins(tau):
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 10.0):
        for shift in (0.0, 2.0, 8.0):
            h, y = torch.randn(60, 4, generator=generator) * scale, torch.randint(4, (60,), generator=generator)
            h[torch.arange(60), y] += shift
            for tight in (False, True):
                got = certificate(h, y, tau, best_risk=0.0, tight=tight)
                assert got.surrogate_excess >= got.direct_excess * (1 - 1e-6)
                assert got.tighter == "direct"
            unknown = certificate(h, y, tau)
            assert unknown.surrogate_excess is unknown.risk_upper is None
            assert unknown.error_upper <= got.error_upper  # it need not share its confidence


def test_with_the_noise_rate_the_surrogate_can_win():
    n, rate, samples = 10, 0.4, 5000
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(n, (samples,), generator=generator)
    other = (clean + torch.randint(1, n, (samples,), generator=generator)) % n
    noisy = torch.where(torch.rand(samples, generator=generator) < rate, other, clean)
    h = 8 * torch.nn.functional.one_hot(clean, n).float()
    got = certificate(h, noisy, 1.7, best_risk_symmetric_noise(1.7, n, rate))
    assert got.tighter == "surrogate"
    assert got.excess == got.surrogate_excess < 0.3 < got.direct_excess
    assert certificate(h, noisy, 1.7, got.best_risk, best_error=rate).tighter == "direct"


def test_it_reads_well():
    h, y = drawn(100, np.random.default_rng(0))
    text = str(certificate(h, y, 1.7, 0.2))
    for words in (
        "confidence 95%",
        "100 samples of 3 classes",
        "Clopper-Pearson",
        "comp-sum risk at tau=1.7",
        "tighter:",
    ):
        assert words in text
    assert "surrogate: none; no lower bound on the best surrogate risk" in str(certificate(h, y, 1.7))
    for tau in (0.0, 0.5, 1.0):
        got = certificate(h, y, tau, 0.0)
        assert got.surrogate_excess is None
        assert "no upper limit for tau <= 1" in str(got)


def test_short_types_and_gradients_do_not_matter():
    h, y = drawn(100, np.random.default_rng(0))
    exact = certificate(h, y, 1.5, 0.1)
    short = certificate(h.bfloat16().requires_grad_(), y, 1.5, 0.1)
    assert short.risk == pytest.approx(exact.risk, rel=1e-2)
    assert certificate(h.bfloat16().double(), y, 1.5, 0.1) == short


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"best_risk": 5.0}, r"best_risk: expected a number in \[0, .*; got 5.0. Fix: is it a lower bound"),
        ({"best_risk": math.nan}, "best_risk: expected"),
        ({"best_risk": -0.1}, "best_risk: expected"),
        ({"confidence": 95}, r"confidence: expected a number in \(0, 1\); got 95. Fix: 0.95 is 95%"),
        ({"confidence": math.nan}, "confidence: expected"),
        ({"best_error": 1.2}, "best_error: expected"),
        ({"tau": -1.0}, "tau: expected"),
        ({"logits": torch.zeros(0, 3)}, "logits: expected shape"),
        ({"logits": torch.zeros(3)}, "logits: expected shape"),
        ({"logits": torch.full((4, 3), math.nan)}, "logits: expected finite scores"),
        ({"logits": torch.zeros(4, 1)}, "n: expected a whole number of classes >= 2"),
        ({"target": torch.tensor([0, 1, 2, 3])}, r"target: expected classes in 0 .. 2, .*; got class 3"),
        ({"target": torch.tensor([0, 1, 2, -100])}, "target: expected .* got class -100"),
        ({"target": torch.tensor([0, 1])}, "target: expected int64 class indices"),
    ],
)
def test_what_cannot_be_used_is_named(change, words):
    arguments = {
        "logits": torch.zeros(4, 3),
        "target": torch.tensor([0, 1, 2, 0]),
        "tau": 1.5,
        "best_risk": 0.1,
    } | change
    with pytest.raises(LegatoValueError, match=words):
        certificate(**arguments)
