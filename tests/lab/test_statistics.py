"""Intervals, corrections and words, each against another road to the same number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from legato.errors import LegatoValueError
from legato.lab import statistics
from legato.lab.claims import Claim, judge, load


def test_t_interval_and_p_value_are_scipys():
    x = np.random.default_rng(0).normal(0.3, 1, 12)
    found, scipys = statistics.t_interval(x), stats.ttest_1samp(x, 0.1)
    reference = stats.ttest_1samp(x, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert statistics.paired_p_value(x, 0.1) == pytest.approx(scipys.pvalue)


def test_t_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(1).normal(size=(2000, 5))
    hits = [e.low <= 0 <= e.high for e in map(statistics.t_interval, draws)]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


def test_holm_on_a_worked_example():
    """p = .01, .04, .03, .005: sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, made monotone."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=6))
def test_interval_levels_agree_with_holms_test(p):
    rejected = statistics.holm(p) <= statistics.ALPHA
    assert ((np.array(p) <= statistics.holm_levels(p)) == rejected).all()


@pytest.mark.parametrize(
    ("low", "high", "effect", "word"),
    [
        (0.1, 0.2, 0, "shows"),
        (-0.2, -0.1, 0, "does not show"),
        (-0.1, 0.2, 0, "undecided"),
        (0.1, 0.3, 0.2, "undecided"),
    ],
)
def test_words(low, high, effect, word):
    assert statistics.word(low, high, effect) == word


def test_arms_are_paired_with_the_baseline():
    noise = np.random.default_rng(0).normal(size=10)
    base = 0.5 + noise  # the same hard and easy seeds for both arms: only pairing sees the difference
    rows = {
        row.arm: row
        for row in statistics.compare_arms(base, {"better": base + 0.1 + 0.001 * noise, "same": base - 1e-3 * noise})
    }
    assert rows["better"].verdict == "shows"
    assert rows["same"].verdict == "undecided"
    with pytest.raises(LegatoValueError, match="10 seeds of the baseline"):
        statistics.compare_arms(base, {"short": base[:4]})


def test_two_way_bootstrap_is_wider_than_that_over_seeds_alone():
    generator = np.random.default_rng(0)
    table = 0.1 + generator.normal(size=(1, 50)) + 0.1 * generator.normal(size=(10, 50))
    both = statistics.two_way_bootstrap(table)
    seeds = statistics.t_interval(table.mean(axis=1))
    assert both.low < seeds.low < both.mean < seeds.high < both.high
    assert both == statistics.two_way_bootstrap(table)


def test_one_seed_has_no_interval_and_nan_is_refused():
    assert statistics.t_interval([0.5]).high == np.inf
    with pytest.raises(LegatoValueError, match="finite"):
        statistics.t_interval([0.5, np.nan])


def test_claims_are_judged_against_their_minimal_effect(tmp_path):
    x = 0.02 + 0.001 * np.arange(10)
    claims = [
        Claim("a", "1", "w", study="s"),
        Claim("b", "1", "w", study="s", minimal_effect=0.1),
        Claim("c", "1", "w", reason="no data"),
    ]
    assert [j.verdict for j in judge(claims, {"a": x, "b": x})] == ["shows", "does not show", "not tested here"]
    (tmp_path / "claims.toml").write_text('[[claim]]\nid="a"\npaper="1"\nwordz="w"\nreason="r"\n')
    with pytest.raises(LegatoValueError, match="Did you mean 'words'"):
        load(tmp_path / "claims.toml")


def test_the_papers_claims_name_a_study_or_a_reason():
    from importlib.resources import files

    claims = load(files("legato.studies") / "claims.toml")
    assert len({claim.id for claim in claims}) == len(claims) > 0
