"""`legato online` from words to page; mistakes are one line."""

import pytest

from legato.cli import main

MODEL = """
states = 2
actions = ["swap", "stay"]
cost = "price * change"
[transitions]
swap = [1, 0]
stay = [0, 1]
"""


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text("a,b\n" + "1,2\n3,1\n" * 4)
    (tmp_path / "m.toml").write_text(MODEL)
    return ["online", "--costs", "c.csv", "--model", "m.toml", "--learners", "hedge", "--workers", "1"]


def test_a_run_ends_with_table_first_line_and_page(words, tmp_path, capsys):
    assert main([*words, "--episodes", "16"]) == 0
    told = capsys.readouterr()
    assert "m.toml: 16 episodes of 2 steps" in told.out
    assert "perfect forecast" in told.out
    assert "follow-yesterday" in told.out
    assert told.out.rstrip().endswith("page: runs/online/index.html")
    assert (tmp_path / "runs/online/index.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("old", "new", "status", "text"),
    [
        ("c.csv", "d.csv", 1, "file: expected one that exists; got d.csv"),
        ("hedge", "hedg", 2, "Did you mean 'hedge'"),
        ("m.toml", "c.csv", 2, "c.csv: not TOML"),
        ("c.csv", "italy-power-demand", 1, "pip download --no-deps"),
    ],
)
def test_mistakes(words, capsys, old, new, status, text):
    assert main([new if word == old else word for word in words]) == status
    told = capsys.readouterr().err
    assert told.startswith("legato: ")
    assert text in told
    assert "Traceback" not in told
