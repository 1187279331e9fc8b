"""Files from elsewhere: nothing in them is run, pages escape what they name, and any bytes are read or refused in words."""

import ast
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legato import data, errors, nets
from legato.lab import page, palette, plots
from legato.lab.page import Cell, Page, Panel, Picture, Table
from legato.lab.plots import Interval
from legato.online.readers import read_problem
from legato.training import load_model, save_model

ROOT = Path(__file__).parent.parent
ATTACK = "<script>alert(1)</script>"


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path):
    """Where the bomb would leave its mark; it does go off for who unpickles it."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Bomb(mark)))
    mark.unlink()
    yield mark
    assert not mark.exists()


def test_a_pickle_in_an_npz_file_is_refused_unread(mark, tmp_path):
    bombs = np.array([Bomb(mark)] * 2, dtype=object)
    np.savez(tmp_path / "bomb.npz", x=bombs, y=np.arange(2))
    with pytest.raises(errors.DataError, match=r"bomb\.npz: expected an \.npz file of plain arrays"):
        data.load(str(tmp_path / "bomb.npz"))


def test_a_pickle_in_place_of_weights_is_refused_unread(mark, tmp_path):
    save_model(tmp_path, nets.build("mlp", (4,), 2), "mlp", (4,), 2)
    torch.save({"weight": Bomb(mark)}, tmp_path / "model.safetensors")
    with pytest.raises(errors.CheckpointError):
        load_model(tmp_path, nets.build)


def test_a_page_escapes_everything_that_a_user_can_name():
    rows = [Interval(ATTACK, ATTACK, ATTACK, 0.0, -1.0, 1.0)]
    figure = plots.forest("f", rows, palette.colours([ATTACK], ATTACK), unit=ATTACK, alt=ATTACK, caption=ATTACK)
    table = Table((ATTACK,), ((Cell(ATTACK, ATTACK),),), ATTACK)
    panel = Panel(ATTACK, ATTACK, (), (table,), (Picture(b"", ATTACK),), ((ATTACK, ATTACK),))
    text = page.render(Page(ATTACK, ATTACK, figure, (table,), ATTACK, (panel,), ((ATTACK, ATTACK),)))
    assert ATTACK not in text
    assert "&lt;script&gt;alert(1)" in text


def test_no_source_file_runs_what_it_reads():
    """Neither pickle nor eval nor a shell. The one exception runs the file of a peer that the user names for that."""
    forbidden = {("pickle", "load"), ("pickle", "loads"), ("torch", "load"), ("yaml", "load"), ("os", "system")}
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            what = node.func
            named = isinstance(what, ast.Name) and what.id in ("eval", "exec")
            owned = isinstance(what, ast.Attribute) and (getattr(what.value, "id", ""), what.attr) in forbidden
            loose = any(
                k.arg in ("shell", "allow_pickle") and getattr(k.value, "value", None) is not False
                for k in node.keywords
            )
            if named or owned or loose:
                found.append(path.name)
    assert found == ["peers.py"]


QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(st.sampled_from("ab,;01.-\"'\n\r\t #\0é∞naNIf"), max_size=60) | st.text(max_size=30)
CELLS = st.sampled_from(["0", "1", "-2.5", "1e400", "nan", "inf", "x", "y", "", '"', '"a,b"', "∞", "?", "1 2"])
ROWS = st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=24)
TABLES = ROWS.map(lambda rows: "a,b,c\n" + "\n".join(map(",".join, rows)))
GOOD = {
    "states": '["a", "b"]', "actions": '["up", "down"]', "start": '"a"', "cost": '"2 * price * change"',
    "transitions": '{up = ["b", "b"], down = ["a", "a"]}',
}  # fmt: skip
VALUES = st.sampled_from(
    ["0", "1", "-1", "nan", "inf", "1e400", "true", '""', '"a"', '"price"', '"1 / 0"', '"2 * price"', '"price * price"', "[]", "[1, 0]", "[[1]]",
     '["a", "b"]', '["a", "a"]', "{}", "{up = 1}", '{up = ["b"], down = ["a"]}', "{up = [[0.5, 0.5], [2, -1]], down = [0, 9]}"]
)  # fmt: skip
MODELS = st.dictionaries(st.sampled_from([*GOOD, "amount", "base", "name", "price"]), VALUES, max_size=2)


@QUIET
@given(content=(TEXTS | TABLES).map(str.encode) | st.binary(max_size=60), suffix=st.sampled_from([".csv", ".npz", ".parquet"]))  # fmt: skip
def test_any_bytes_are_a_table_or_an_error_in_words(tmp_path, content, suffix):
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    try:
        assert len(data.load(str(path), target=None if suffix == ".npz" else "a").train)
    except errors.LegatoError as problem:
        assert str(problem)


@QUIET
@given(costs=TEXTS | ROWS.map(lambda rows: "\n".join(map(",".join, rows))))
def test_any_costs_are_a_problem_or_an_error_in_words(tmp_path, costs):
    _read(tmp_path, costs, GOOD)


@QUIET
@given(model=MODELS | TEXTS)
def test_any_machine_is_a_problem_or_an_error_in_words(tmp_path, model):
    _read(tmp_path, "1,2\n2,3\n4,1", model if isinstance(model, str) else GOOD | model)


def _read(folder, costs, model):
    (folder / "c.csv").write_text(costs)
    text = model if isinstance(model, str) else "\n".join(f"{key} = {value}" for key, value in model.items())
    (folder / "m.toml").write_text(text)
    try:
        found = read_problem(folder / "c.csv", folder / "m.toml")
        assert all(np.isfinite(part).all() for part in (found.amount, found.base, found.costs, found.low, found.high))
    except errors.LegatoError as problem:
        assert str(problem)
