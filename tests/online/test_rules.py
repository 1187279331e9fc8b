"""Formulas of costs: the same numbers as numpy gives, and nothing that is not arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legato.errors import DataError
from legato.online.rules import parse_rule

NAMES = {"level": np.array([[0.0], [2.0]]), "change": np.array([[-1.0, 0.0, 3.0]])}
ORACLE = {**NAMES, "min": np.minimum, "max": np.maximum, "abs": np.abs}


def leaves(allowed):
    return st.one_of(st.sampled_from(allowed), st.floats(-4, 4).map(lambda x: f"{x:.3f}").map(lambda x: f"({x})"))


def grown(inner):
    return st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(st.sampled_from(("min", "max")), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
        inner.map(lambda x: f"abs({x})"),
        inner.map(lambda x: f"-({x})"),
        inner.map(lambda x: f"({x}) / 4"),
    )


PLAIN = st.recursive(leaves(("level", "change")), grown, max_leaves=4)


@given(PLAIN, PLAIN, PLAIN)
def test_a_formula_is_what_python_would_make_of_it(a, b, c):
    """Oracle: Python itself, at two prices; a straight line through them must hit a third."""
    text = f"{a} + {b} * price - (price - {c}) / 2"
    if len(text) > 300:
        return
    base, slope = parse_rule(text, NAMES, "cost")
    assert base.shape == slope.shape == (2, 3)
    for price in (-2.0, 0.0, 7.5):
        want = np.broadcast_to(eval(text, {}, {**ORACLE, "price": price}), (2, 3))
        np.testing.assert_allclose(base + price * slope, want, rtol=1e-12, atol=1e-9)


def test_several_values_and_products_with_nothing_of_the_price():
    np.testing.assert_array_equal(parse_rule("max(level, change, 1)", NAMES, "cost")[0], [[1, 1, 3], [2, 2, 3]])
    np.testing.assert_array_equal(parse_rule("price * (price - price + 2)", NAMES, "cost")[1], np.full((2, 3), 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("price * price", "a price that is only added, .*; got 'price'. Fix: put such a step into the file"),
        ("max(price, 0)", "a price that is only added"),
        ("1 / price", "a price that is only added"),
        ("price ** 2", r"expected numbers, names, .* got 'price \*\* 2'"),
        ("__import__('os').system('true')", r"got \"__import__\('os'\).system\('true'\)\""),
        ("max.__class__", "got 'max.__class__'"),
        ("(lambda: 1)()", r"got '\(lambda: 1\)\(\)'"),
        ("[1][0]", r"got '\[1\]\[0\]'"),
        ("True + 1", "got 'True'"),
        ("'a' * 9", "got \"'a'\""),
        ("max(1, key=2)", "got 'max"),
        ("max(*level)", r"got '\*level'"),
        ("levl + 1", ", name: .*; got 'levl'. Did you mean 'level'"),
        ("max", ", name: .* got 'max'"),
        ("max(level)", "expected abs of one value, min and max of several; got max of 1"),
        ("abs(1, 2)", "got abs of 2"),
        ("1 +", "a formula of numbers"),
        ("(" * 250, "a formula of numbers"),
        ("1 + " * 80, "at most 300 characters; got 320"),
        ("level / 0", "a finite cost in each state and action"),
        ("price / (level - 2)", "a finite cost"),
        ("1e999", "a finite cost"),
    ],
)
def test_what_is_no_formula_is_named(text, message):
    with pytest.raises(DataError, match=f"cost.*{message}"):
        parse_rule(text, NAMES, "cost")


def test_the_deepest_formula_is_a_number():
    assert parse_rule("-" * 298 + "1", NAMES, "cost")[0][0, 0] == 1
