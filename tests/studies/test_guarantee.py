"""The searches for counter-examples against twins that are slow and simple, and the command with its page."""

import dataclasses
import math
import re

import numpy as np
import pytest
import tyro
from scipy.optimize import minimize

from legato.cli.guarantee import Guarantee
from legato.errors import LegatoValueError
from legato.losses.guarantees import conditional_infimum, phi, transform
from legato.losses.tight_guarantees import tight_transform
from legato.studies import counterexamples, guarantee
from legato.studies.counterexamples import (
    adversarial_problems,
    chain_problems,
    error_bound_problems,
    least_excess,
    smallest_ratio,
)
from legato.studies.linear_problems import linear_problems

TAUS = [0.0, 0.5, 1.0, 1.5, 2.0]
QUESTION = guarantee.Question((1.7,), 10, (0.01, 0.05), score_bound=10.0, sum_exponential_risk=1.0, rounds=3)


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0, 1.4, 1.8])
def test_least_excess_is_the_constrained_minimum(tau):
    """Oracle: the risk minimised over softmax(h) = s, with s_k >= s_j for every j, by a general solver."""
    for p in np.array([[0.5, 0.3, 0.15, 0.05], [0.4, 0.35, 0.2, 0.05]]):
        for k in range(1, 4):

            def risk(s, p=p):
                return float((p * phi(1 / np.maximum(s, 1e-9) - 1, tau)).sum())

            rows = [{"type": "ineq", "fun": lambda s, j=j, k=k: s[k] - s[j]} for j in range(4) if j != k]
            rows.append({"type": "eq", "fun": lambda s: s.sum() - 1})
            found = minimize(risk, np.full(4, 0.25), bounds=[(1e-9, 1)] * 4, constraints=rows, options={"ftol": 1e-13})
            want = found.fun - conditional_infimum(p, tau)
            assert least_excess(p, np.array(k), tau) == pytest.approx(want, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("tau", [2.0, 2.6])
def test_least_excess_from_two_on(tau):
    """Oracle: random softmax outputs whose largest entry is at k, and the ties of every set of classes with k."""
    p = np.array([0.45, 0.3, 0.2, 0.05])
    s = generator().dirichlet(np.full(4, 0.3), 4000)
    sets = np.array([[int(bit) for bit in f"{code:04b}"] for code in range(1, 16)])
    for k in range(4):
        tied = sets[sets[:, k] == 1] / sets[sets[:, k] == 1].sum(1, keepdims=True)
        risks = [(p * (1 - rows ** (tau - 1)) / (tau - 1)).sum(1).min() for rows in (tied, s[s.argmax(1) == k])]
        assert least_excess(p, np.array(k), tau) == pytest.approx(risks[0] - conditional_infimum(p, tau), abs=1e-12)
        assert risks[0] <= risks[1] + 1e-12


def test_least_excess_of_the_best_class_is_nothing_and_zeros_are_allowed():
    p = np.array([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]])
    for tau in (0.0, 1.0, 1.5, 2.0, 3.0):
        np.testing.assert_allclose(least_excess(p, p.argmax(1), tau), 0, atol=1e-15)
        assert least_excess(p[1], np.array(0), tau) == pytest.approx(
            phi(1.0, tau)
        )  # a tie of a sure class with another


@pytest.mark.parametrize(("d", "n"), [(1, 2), (1, 4), (2, 3), (2, 4), (3, 3)])
def test_the_worst_attack_is_exact(d, n):
    """Oracle: a grid of the cube. The sum changes by at most sum_j |slope_j|_1 / rho a step, and the grid lies inside the cube."""
    problems = linear_problems(d, n, 12, 2, generator(d * 10 + n))
    side = {1: 1001, 2: 41, 3: 13}[d]
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * d), -1).reshape(-1, d)
    attacks = np.broadcast_to(problems.gamma[:, None, None, None, None] * grid, (12, 2, n, len(grid), d))
    on_grid = problems.margin_sum(attacks).max(-1)
    exact = problems.worst_margin_sum()
    assert (on_grid <= exact + 1e-12).all()
    step = problems.gamma / (side - 1) / problems.rho
    assert (exact <= on_grid + (step[:, None] * np.abs(problems.slopes).sum((-1, -2)))[:, None] + 1e-12).all()
    margins = problems.margins[..., None, :] + np.einsum("nyjd,nkyad->nkyaj", problems.slopes, attacks)
    np.testing.assert_array_equal(problems.errs(), (margins.min((-1, -2)) <= 0) * 1.0)  # its corners are the worst
    moves = np.linalg.norm(margins - problems.margins[..., None, :], axis=-1).max(-1)
    np.testing.assert_allclose(np.broadcast_to(problems.worst_move(), moves.shape), moves, rtol=1e-9)


def test_the_worst_attack_on_two_classes_in_closed_form():
    problems = linear_problems(3, 2, 50, 2, generator())
    fall = problems.gamma[:, None, None] * np.abs(problems.slopes[:, :, 0]).sum(-1)[:, None]
    want = np.clip(1 - (problems.margins[..., 0] - fall) / problems.rho[:, None, None], 0, 1)
    np.testing.assert_allclose(problems.worst_margin_sum(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", TAUS)
def test_the_infimum_under_attack(tau):
    """No scores that are constant around x do better than classes ordered by p with gaps of rho (here 1)."""
    p = np.array([0.4, 0.3, 0.2, 0.1])
    h = np.concatenate([generator().normal(size=(3000, 4)) * 3, [[3.0, 2.0, 1.0, 0.0]]])
    margins = h[:, :, None] - h[:, None]
    sums = np.clip(1 - margins, 0, 1).sum(-1) - 1  # less the class itself, whose margin is 0
    risks = (p * phi(sums, tau)).sum(1)
    least = float((p * phi(np.arange(4.0), tau)).sum())
    assert risks[-1] == pytest.approx(least)
    assert risks.min() >= least - 1e-12


@pytest.mark.parametrize("tau", TAUS)
def test_the_bounds_are_not_violated(tau):
    found = [
        error_bound_problems(tau, 3, 300, generator()),
        error_bound_problems(tau, 3, 300, generator(), tight=True),
        adversarial_problems(tau, 300, generator()),
        chain_problems(tau, 300, generator()),
    ]
    assert [search.words for search in found] == ["not violated in 300 problems"] * 4
    assert found[2].closest == pytest.approx(1, abs=1e-9)  # the constant 1/Phi_tau(1) is attained
    assert found[3].closest == pytest.approx(1, abs=1e-9)


def test_what_is_false_is_found(monkeypatch):
    """A transform that is too large, a constant that is too small, a regulariser that is too weak."""
    with monkeypatch.context() as patch:
        patch.setattr(counterexamples, "transform", lambda b, tau, n: np.asarray(1.3 * transform(b, tau, n)))
        assert error_bound_problems(0.5, 2, 2000, generator()).violations
    with monkeypatch.context() as patch:
        patch.setattr(counterexamples, "phi", lambda u, tau: phi(u, tau) * (1.1 if np.ndim(u) == 0 else 1))
        assert re.match(
            "VIOLATED in .* of 300 problems, by up to a factor of", adversarial_problems(1.0, 300, generator()).words
        )
    assert chain_problems(0.0, 3000, generator(), nu_share=0.5).violations


@pytest.mark.parametrize(("tau", "stated"), [(0.5, 1.0), (1.0, 1.0), (1.5, math.sqrt(1.5)), (2.0, 1.0), (3.0, 6.75)])
def test_tightness(tau, stated):
    """The known ratios with 3 classes: (n/2)^(tau-1) for 1 < tau <= 1.5; at tau = 3, T is 3b/8 in place of b/18."""
    found = smallest_ratio(lambda b: transform(b, tau, 3), tau, 3, generator(), rounds=60)
    assert found == pytest.approx(stated, rel=1e-3)


@pytest.mark.parametrize("n", [3, 10])
@pytest.mark.parametrize("tau", [1.3, 1.7, 1.9, 2.4])
def test_the_tighter_transform_is_attained_and_not_passed(tau, n):
    found = smallest_ratio(lambda b: tight_transform(b, tau, n), tau, n, generator(), rounds=60)
    assert 1 - 1e-9 <= found <= 1.001


def test_a_search_can_be_repeated():
    assert adversarial_problems(0.7, 50, generator(3)) == adversarial_problems(0.7, 50, generator(3))
    question = dataclasses.replace(QUESTION, problems=5)
    assert guarantee.answer(question) == guarantee.answer(question)


def test_the_verdict_names_bounds_and_what_they_are_of():
    """By hand at tau = 1: T(b) = 0.01 at b = .1413; at tau = 1.7 the stated bound is .177 and the tighter one .099."""
    words = guarantee.answer(QUESTION).verdict
    assert words.startswith(
        "With 10 classes, an excess of 0.01 nats of cross-entropy (tau = 1) guarantees an error at most 14.1 points"
    )
    assert "an excess of 0.01 of the comp-sum loss at tau = 1.7 guarantees an error at most 17.7 points" in words
    assert "(9.9 by our tighter bound)" in words
    assert words.endswith("not on the error itself.")
    loose = guarantee.answer(dataclasses.replace(QUESTION, taus=(1.9,), classes=1000, excesses=(0.01,))).verdict
    assert "guarantees nothing about the error (" in loose


def test_the_command_prints_and_writes_a_page_that_needs_nothing_else(tmp_path, capsys):
    command = tyro.cli(
        Guarantee, args=["--tau", "1.7", "--excess", "0.01", "0.1", "--check", "20", "--out", str(tmp_path)]
    )
    command.run()
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "14.1",
        "31.7",
        "0.6931",
        "2.956",
        "error bound under attack: not violated in 120 problems",
        "page: ",
    ):
        assert words in said
    html = (tmp_path / "index.html").read_text()
    for words in (
        "<svg",
        "guarantees an error at most 14.1 points",
        "How tight?",
        "The gap",
        "Does it hold?",
        "not violated in 20 problems",
    ):
        assert words in html
    assert not re.search(r"(src|href)=.?https?:", html)
    assert (tmp_path / "plots" / "bounds.png").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"taus": (-1.0,)}, "tau: expected"),
        ({"classes": 1}, "n: expected"),
        ({"excesses": ()}, "excess: expected one or more"),
        ({"excesses": (-0.1,)}, "excess: expected"),
        ({"score_bound": 0.1}, "best_sum_exponential: expected .* no model is that good"),
    ],
)
def test_what_cannot_be_asked_is_named(change, words):
    with pytest.raises(LegatoValueError, match=words):
        guarantee.answer(dataclasses.replace(QUESTION, **change))
