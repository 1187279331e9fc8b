"""Studies in small: forms, committed rates, verdicts on numbers made by hand, packs, and pages drawn from them."""

import dataclasses
import json

import numpy as np
import pytest

from legato.errors import LegatoError, LegatoValueError
from legato.lab.claims import Claim
from legato.studies import study, verdicts
from legato.studies.config import CompareConfig
from legato.studies.plan import order_arms
from legato.studies.spec import Part, Spec

TINY = CompareConfig(
    data="digits", objectives=("ce", "comp-sum:1.7", "mae"), label_noise=(0.4,), learning_rates=(0.1, 0.3), epochs=2, rows=300
)  # fmt: skip
SPEC = Spec(
    paper="0000.00000",
    title="tiny",
    parts={"own": Part(TINY, keeps_test_curve=True), "one rate": Part(TINY, fixed_rate=0.1)},
    smoke=("own",),
)
CLAIMS = (
    Claim(
        "easy", "0000.00000", "better than guessing", "tiny", "own", "comp-sum:tau=1.7", "ce", 0.4, minimal_effect=-1
    ),
    Claim("both", "0000.00000", "on average", "tiny", "o*", "mae", "ce", 0.4, minimal_effect=1),
    Claim("theory", "0000.00000", "a theorem", reason="no run can show it"),
    Claim("other", "0000.00000", "of another study", "elsewhere", "part", "mae", "ce"),
)


def patch(monkeypatch):
    monkeypatch.setattr(study, "STUDIES", {"tiny": SPEC})
    monkeypatch.setattr(verdicts, "claims_of", lambda paper: CLAIMS)


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory):
    """A full run, its rates taken as committed, then a confirming run with fewer seeds."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patched:
        patch(patched)
        patched.setattr(
            study,
            "_seeds",
            lambda config, form: dataclasses.replace(config, seeds=2, first_seed=100 * (form == "confirm")),
        )
        tuned, none = study.run("tiny", "full", workers=1, out=folder / "full")
        assert none == []
        rates = json.loads(tuned.read_text())
        assert rates.keys() == {"own"}
        patched.setattr(study, "tuned", lambda name, part, asked: tuple((n, a, r) for n, a, r in rates[part]))
        page, judged = study.run("tiny", "confirm", workers=1, out=folder / "confirm", packed=True)
    return folder, page, judged


def test_full_reads_no_test_data_and_confirm_tunes_nothing(confirmed):
    folder, _, _ = confirmed
    trials = [json.loads(path.read_text()) for path in (folder / "full" / "trials").glob("*.json")]
    assert len(trials) == 3 * 2 * 2
    assert not any("test_error" in trial["metrics"] for trial in trials)
    trials = [json.loads(path.read_text()) for path in (folder / "confirm" / "trials").glob("*.json")]
    readings = [trial for trial in trials if "test_error" in trial["metrics"]]
    assert {trial["config"]["seed"] for trial in readings} == {100, 101}
    assert all("test_error" in trial["metrics"] for trial in trials if "objective" in trial["config"])
    assert all(len(t["metrics"]["curves"]["test_error"]) == 2 for t in readings if t["config"]["keeps_test_curve"])


def test_claims_of_this_study_and_of_theory_are_judged(confirmed):
    _, _, judged = confirmed
    assert [(j.claim.id, j.verdict) for j in judged] == [
        ("easy", "shows"), ("both", "does not show"), ("theory", "not tested here")
    ]  # fmt: skip


def test_the_page_is_drawn_again_from_the_pack_alone(confirmed, tmp_path, monkeypatch):
    patch(monkeypatch)
    folder, page, _ = confirmed
    pack = tmp_path / "evidence.jsonl.xz"
    pack.write_bytes((folder / "confirm.jsonl.xz").read_bytes())
    assert len(pack.read_bytes()) < 100_000
    again = study.redraw(pack)
    assert again == tmp_path / "evidence" / "index.html"
    assert again.read_text() == page.read_text()
    for words in ("Of 3 claims 1 shows, 1 does not show, 1 is not tested here", "better than guessing", "one rate"):
        assert words in page.read_text()


def test_confirm_needs_committed_rates(monkeypatch):
    monkeypatch.setattr(study, "STUDIES", {"untuned": SPEC})
    with pytest.raises(LegatoValueError, match=r"committed learning rates.*legato study untuned"):
        study.run("untuned", "confirm", workers=1)
    with pytest.raises(LegatoError, match="Did you mean 'untuned'"):
        study.run("untund", "smoke", workers=1)


@pytest.mark.parametrize("name", study.STUDIES)
def test_every_study_has_a_smoke_form_and_claims_that_its_parts_can_answer(name, tmp_path):
    page, judged = study.run(name, "smoke", workers=1, out=tmp_path)
    assert judged == []
    assert "everything runs" in page.read_text()
    spec = study.STUDIES[name]
    own = [claim for claim in verdicts.claims_of(spec.paper) if claim.study == name]
    assert own
    if isinstance(spec, Spec):
        for claim in own:
            parts = [part for part in spec.parts if verdicts.fnmatchcase(part, claim.part)]
            assert parts, claim.id
            for config in (spec.parts[part].config for part in parts):
                arms = order_arms(config.objectives)
                for arm in (claim.arm, claim.baseline):
                    named = [
                        a for a in arms if verdicts.matches(a, arm) or (a.startswith(arm) and "matched" in claim.metric)
                    ]
                    assert named or "~" in arm, claim.id
                assert claim.label_noise in config.label_noise
                assert claim.metric in verdicts.MEASURES


FAMILIES = dataclasses.replace(
    SPEC.parts["own"],
    config=dataclasses.replace(TINY, objectives=("ce", "comp-sum:1.7", "comp-sum:0.5", "mae")),
    families=(("ce",), ("comp-sum:0.5", "comp-sum:1.7", "mae")),
)


def test_of_each_family_the_best_on_validation_data_goes_on(monkeypatch, tmp_path):
    families = Spec(paper="0000.00000", title="tiny", parts={"own": FAMILIES})
    monkeypatch.setattr(study, "STUDIES", {"tiny": families})
    monkeypatch.setattr(study, "_seeds", lambda config, form: dataclasses.replace(config, seeds=2))
    tuned, _ = study.run("tiny", "full", workers=1, out=tmp_path / "full")
    ((noise, first, _), (_, second, rate)) = json.loads(tuned.read_text())["own"]
    trials = [json.loads(path.read_text()) for path in (tmp_path / "full" / "trials").glob("*.json")]
    error = {}
    for trial in trials:
        config = trial["config"]
        error.setdefault((config["objective"], config["learning_rate"]), []).append(
            trial["metrics"]["validation_error"]
        )
    means = {key: np.mean(values) for key, values in error.items() if key[0] != "ce"}
    assert (noise, first) == (0.4, "ce")
    assert means[second, rate] == min(means.values())
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "tiny.json").write_text(tuned.read_text())
    monkeypatch.setattr(study, "files", lambda package: tmp_path)
    assert study._job("tiny", "own", FAMILIES, "confirm").plan.arms == ("ce", second)
    (tmp_path / "tuned" / "tiny.json").write_text(json.dumps({"own": [[0.4, "ce", 0.1]]}))
    with pytest.raises(LegatoValueError, match="another grid"):
        study._job("tiny", "own", FAMILIES, "confirm")


def test_frontier_keeps_what_nothing_beats():
    points = np.array([[0.5, 0.6, 0.55, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6, 0.75]])
    assert verdicts.frontier(points).tolist() == [[0.5, 0.6, 0.7], [0.9, 0.8, 0.6]]


def test_matched_accuracy_is_the_mean_gap_between_two_lines():
    ours, theirs = np.array([[0.4, 0.8], [0.9, 0.7]]), np.array([[0.5, 0.7], [0.80, 0.72]])
    grid = np.linspace(0.5, 0.7, 10_001)
    want = np.mean((0.9 - 0.5 * (grid - 0.4)) - (0.8 - 0.4 * (grid - 0.5)))
    assert verdicts._gap(ours, theirs) == pytest.approx(want, abs=1e-6)
    assert verdicts._gap(theirs, ours) == pytest.approx(-want, abs=1e-6)
    apart = np.array([[0.9], [0.65]])
    assert verdicts._gap(apart, theirs) == pytest.approx(0.65 - 0.72)
