"""Every claim of the eight papers is told: put to the test by a study that exists, or left with the reason."""

from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from legato.lab import claims
from legato.lab.claims import Claim, Judged
from legato.lab.statistics import Estimate
from legato.studies.study import STUDIES

ALL = claims.load(Path(str(files("legato.studies") / "claims.toml")))
PAPERS = (
    "2304.07288", "2205.14083", "2310.10541", "2409.00908", "2312.04410", "2511.04753", "2301.12942", "2309.14322",
)  # fmt: skip


@pytest.mark.parametrize("paper", PAPERS)
def test_every_paper_has_claims(paper):
    assert [claim for claim in ALL if claim.paper == paper]


def test_no_claim_is_of_another_paper_or_told_twice():
    assert {claim.paper for claim in ALL} == set(PAPERS)
    assert [name for name, count in Counter(claim.id for claim in ALL).items() if count > 1] == []


@pytest.mark.parametrize("claim", ALL, ids=lambda claim: claim.id)
def test_a_claim_has_a_study_of_its_paper_or_a_reason(claim):
    if claim.study:
        assert STUDIES[claim.study].paper == claim.paper
    else:
        assert claim.reason
        assert not claim.reason.endswith(".")  # the page makes a sentence of it
        assert not (claim.arm or claim.baseline or claim.part)  # what is not tested names no contrast


@pytest.mark.parametrize(
    ("unit", "told", "needed"), [("points", "3.0 [1.0, 5.0]", "2"), ("nats", "0.03 [0.01, 0.05] nats", "0.02")]
)
def test_a_difference_is_told_in_the_unit_of_its_claim(unit, told, needed):
    """Metrics are stored in their own unit: a point is a hundredth of it, anything else is shown as it is."""
    claim = Claim("a", "0000.00000", "words", study="any", unit=unit, minimal_effect=0.02)
    judged = Judged(claim, "undecided", Estimate(0.03, 0.01, 0.05, 10))
    assert (judged.told, judged.needed) == (told, needed)
    assert Judged(claim, "not tested here").told == Judged(claim, "not tested here").needed == ""
