"""The name of a trial: pinned, equal for equal configs, different for different ones."""

import json
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legato import errors
from legato.lab.trial import as_plain, canonical, plain_json, trial_hash


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    rate: float
    steps: int = 10


@dataclass(frozen=True)
class Outer:
    inner: Inner
    seed: int = 0
    decay: float = 5e-4
    arms: tuple[str, ...] = ("ce",)
    note: Any = None
    extra: list[int] = field(default_factory=list)


PLAIN = Outer(Inner(0.1))


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (PLAIN, "11b00cbb602ab2c956d009853fecf9e3305bc8e8c81994a4e3e6a47e93b9e589"),
        (
            replace(PLAIN, seed=3, arms=("ce", "comp-sum:1.7")),
            "c1cd4b83b2f1d2d522d9fa7b82d07df7b74c9d35f332c175596bae5a1765f16f",
        ),
        (
            Outer(Inner(1e-3, steps=20), decay=0.1 + 0.2, note="é"),
            "dc692395ea95ba8fed3c48ed3a85a1a1fd2115a686379ae725244e7103024422",
        ),
    ],
)
def test_names_are_pinned(config: Outer, want: str) -> None:
    """A changed name throws away every result that anybody has stored: raise SCHEMA instead of editing these."""
    assert trial_hash("compare", 1, config) == want


def test_only_what_differs_from_its_default_is_named() -> None:
    assert canonical(PLAIN) == {"inner": {"rate": 0.1}}
    assert canonical(replace(PLAIN, extra=[1], seed=2)) == {"extra": [1], "inner": {"rate": 0.1}, "seed": 2}


def test_a_new_field_with_a_default_renames_nothing() -> None:
    @dataclass(frozen=True)
    class Inner:  # the same class, one version later
        added: tuple[float, ...] = (0.5, 0.25)
        rate: float = field(kw_only=True)
        steps: int = 10

    assert trial_hash("s", 1, Inner(rate=0.1)) == trial_hash("s", 1, globals()["Inner"](0.1))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (replace(PLAIN, decay=1), replace(PLAIN, decay=1.0)),
        (replace(PLAIN, decay=0.0), replace(PLAIN, decay=-0.0)),
        (replace(PLAIN, arms=["ce"]), PLAIN),
        (replace(PLAIN, note=(1, 2.0)), replace(PLAIN, note=[1.0, 2])),
        (replace(PLAIN, note=np.float64(0.3)), replace(PLAIN, note=0.3)),
    ],
)
def test_equal_configs_have_equal_names(one: Outer, other: Outer) -> None:
    assert trial_hash("s", 1, one) == trial_hash("s", 1, other)


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAIN, decay=np.nextafter(5e-4, 1).item()),
        replace(PLAIN, inner=Inner(0.1, steps=11)),
        replace(PLAIN, note="1"),
        replace(PLAIN, note=1),
        replace(PLAIN, note=2.0**53),
        replace(PLAIN, note=2.0**53 + 2),
        replace(PLAIN, note=()),
        replace(PLAIN, note=False),
    ],
)
def test_different_configs_have_different_names(other: Outer) -> None:
    assert trial_hash("s", 1, other) != trial_hash("s", 1, PLAIN)


def test_study_schema_and_class_are_part_of_the_name() -> None:
    @dataclass(frozen=True)
    class Twin:
        rate: float
        steps: int = 10

    names = {
        trial_hash("s", 1, Inner(0.1)),
        trial_hash("t", 1, Inner(0.1)),
        trial_hash("s", 2, Inner(0.1)),
        trial_hash("s", 1, Twin(0.1)),
    }
    assert len(names) == 4


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.lists(st.text()))
def test_a_stored_config_reads_back_to_the_same_name(rate: float, seed: int, arms: list[str]) -> None:
    config = Outer(Inner(rate), seed=seed, arms=tuple(arms))
    back = json.loads(json.dumps(as_plain(config)))
    again = Outer(**{**back, "inner": Inner(**back["inner"]), "arms": tuple(back["arms"])})
    assert again == config
    assert trial_hash("s", 1, again) == trial_hash("s", 1, config)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.float32(1), "numpy.float32"),
        (np.int64(1), "numpy.int64"),
        (Path("x"), "Path"),
        ({1}, "builtins.set"),
        (Colour.RED, "Colour"),
        (object(), "builtins.object"),
        (Inner, "the class Inner"),
        ({1: "a key that is no string"}, "dict"),
    ],
)
def test_a_value_that_cannot_be_stored_is_refused_by_field_and_type(value: object, named: str) -> None:
    with pytest.raises(errors.LegatoTypeError, match=rf"note\[0\].*{named}"):
        trial_hash("s", 1, replace(PLAIN, note=[value]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float64("nan")])
def test_a_config_holds_finite_numbers_only(value: float) -> None:
    with pytest.raises(errors.LegatoValueError, match=r"inner\.rate"):
        as_plain(Outer(Inner(value)))
    with pytest.raises(errors.LegatoValueError, match="finite"):
        canonical(Outer(Inner(value)))


def test_a_config_is_a_frozen_dataclass() -> None:
    @dataclass
    class Loose:
        rate: float = 0.1

    for wrong in (Loose(), {"rate": 0.1}, Inner):
        with pytest.raises(errors.LegatoTypeError, match="frozen dataclass"):
            trial_hash("s", 1, wrong)


def test_metrics_lose_nothing_but_what_json_cannot_say() -> None:
    metrics = {"loss": [0.1, float("nan"), float("inf")], "pair": (1, True), "why": None}
    assert plain_json(metrics, "metrics") == {"loss": [0.1, None, None], "pair": [1, True], "why": None}
    with pytest.raises(errors.LegatoTypeError, match=r"metrics\.loss\[1\].*numpy\.float32"):
        plain_json({"loss": [0.1, np.float32(1)]}, "metrics")
