"""Tables of the user: what becomes of columns, and what is refused."""

import os

import numpy as np
import pytest
import torch

from legato import data
from legato.data.encoding import LARGEST_BLOCK, Column, encode
from legato.errors import DataError, DataNotFoundError, LegatoValueError

CSV = "colour,size,site,label\n" + "".join(
    f"{'red' if i % 3 else ''},{i if i % 5 else 'NA'},s{i // 4},{'ab'[i % 2]}\n" for i in range(40)
)


def test_a_table_is_encoded_and_says_what_was_done(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    splits = data.load(str(path), target="label", group="site")
    assert splits.class_names == ("a", "b")
    assert splits.feature_names == ("colour=missing", "colour=red", "size")
    notes = " ".join(splits.provenance.notes)
    assert "8 missing values were filled with the median" in notes
    assert "colour: text, became 2 columns" in notes
    assert not torch.cat([s.inputs for s in (splits.train, splits.validation, splits.test)]).isnan().any()
    sites = [set((s.index // 4).tolist()) for s in (splits.train, splits.validation, splits.test)]
    assert not (sites[0] & sites[1] or sites[0] & sites[2] or sites[1] & sites[2])


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        (CSV, "lable", "Did you mean 'label'"),
        (CSV, None, "--target NAME"),
        ("a,b\n", "b", "1 lines"),
        ("a,a\n1,2\n", "a", "'a' twice"),
        ("a,b\n1,2,3\n", "b", "line 2: expected 2 values"),
        ("a,b\n" + "".join(f"{i},{i / 7}\n" for i in range(50)), "b", "regression target"),
        ("a,b\n" + "1,x\n" * 9 + "1,y\n", "b", "class 'y'"),
        ("a,b\n" + "1,x\n" * 9, "b", "at least 2"),
        ("a,b\n" + "1,x\n" * 9 + "1,\n", "b", "1 rows without"),
        ("b\n" + "x\ny\n" * 9, "b", "one or more columns beside the target"),
        ("a;b\n" + "1;x\n" * 9, "b", "values between semicolons. Fix: save it with commas"),
        ("a\tb\n1\tx\n", "b", "values between tabs"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, target, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises((DataError, LegatoValueError), match=words):
        data.load(str(tmp_path / "t.csv"), target=target)


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "t.csv").write_bytes("größe,y\n1,a\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t.csv: not a CSV file in UTF-8"):
        data.load(tmp_path / "t.csv", target="y")


def test_numbers_and_words_are_encoded_as_by_hand():
    """Oracle: each cell looked up by itself."""
    colour, size = ["red", "", "blue", "red", "", "green"], ["1", "NA", "4.5", "-2", "?", "7"]
    gaps = {"colour": [False, True, False, False, True, False], "size": [False, True, False, False, True, False]}
    tables = [
        {
            "colour": Column(colour[a:b], np.array(gaps["colour"][a:b])),
            "size": Column(size[a:b], np.array(gaps["size"][a:b])),
        }
        for a, b in ((0, 4), (4, 6))
    ]
    matrix, names, notes = encode(tables, ["size", "colour"])
    assert names == ("size", "colour=missing", "colour=blue", "colour=red")
    want = [[1, 0, 0, 1], [1, 1, 0, 0], [4.5, 0, 1, 0], [-2, 0, 0, 1], [1, 1, 0, 0], [7, 0, 0, 0]]
    assert matrix.dtype == np.float32
    assert matrix.tolist() == want
    assert "colour: 1 values of the other files are not in the training file: zeros" in notes
    assert "size: 2 missing values were filled with the median 1" in notes


def test_many_columns_are_noted_together(tmp_path):
    names = [f"c{i}" for i in range(9)]
    rows = "".join(",".join([*(["x", "y", ""][(i + j) % 3] for j in range(9)), "ab"[i % 2]]) + "\n" for i in range(30))
    (tmp_path / "t.csv").write_text(",".join([*names, "label"]) + "\n" + rows)
    notes = data.load(tmp_path / "t.csv", target="label").provenance.notes
    assert (
        notes[0]
        == "9 columns from c0 to c8: text, became 27 columns together, one a value; 90 gaps are a value of their own"
    )


def test_files_for_validation_and_test_and_a_file_that_changes(tmp_path):
    for name, shift in (("a", 0), ("b", 100), ("c", 200)):
        rows = "".join(f"{i + shift},{'uv'[i % 2]}\n" for i in range(10))
        (tmp_path / f"{name}.csv").write_text("x,y\n" + rows)
    paths = {"validation": tmp_path / "b.csv", "test": str(tmp_path / "c.csv")}
    splits = data.load(tmp_path / "a.csv", target="y", **paths)
    for split, shift in ((splits.train, 0), (splits.validation, 100), (splits.test, 200)):
        assert split.inputs[:, 0].tolist() == [i + shift for i in range(10)]
    (tmp_path / "c.csv").write_text("x,y\n7,u\n8,v\n")
    os.utime(tmp_path / "c.csv", ns=(1, 1))
    assert len(data.load(tmp_path / "a.csv", target="y", **paths).test) == 2
    (tmp_path / "c.csv").write_text("z,y\n7,u\n8,v\n")
    with pytest.raises(LegatoValueError, match="column of the test or validation file: expected one of y, z; got 'x'"):
        data.load(tmp_path / "a.csv", target="y", **paths)
    with pytest.raises(DataNotFoundError, match=r"validation: .*no such file"):
        data.load(tmp_path / "a.csv", target="y", validation="none.csv")


def test_parquet_is_the_same_as_csv(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(
        {
            "count": pandas.array([1, None, 3, 4] * 5, dtype="Int64"),
            "ratio": [0.5, 1.5, None, 2.25] * 5,
            "colour": pandas.Categorical(["red", None, "blue", "red"] * 5),
            "label": ["a", "b"] * 10,
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    parquet, csv = (data.load(tmp_path / name, target="label") for name in ("t.parquet", "t.csv"))
    assert (
        parquet.feature_names == csv.feature_names == ("count", "ratio", "colour=missing", "colour=blue", "colour=red")
    )
    assert parquet.provenance.sha256 == csv.provenance.sha256
    assert parquet.provenance.notes == csv.provenance.notes
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        data.load(tmp_path / "t.parquet", target="label")


def test_a_column_of_names_is_refused_before_it_fills_the_memory():
    rows = int(LARGEST_BLOCK**0.5) + 1
    column = Column([f"person {i}" for i in range(rows)], np.zeros(rows, bool))
    with pytest.raises(DataError, match="name: expected numbers, or text of few different values"):
        encode([{"name": column}], ["name"])


def test_columns_that_hold_one_value_and_nothing_else(tmp_path):
    (tmp_path / "t.csv").write_text("empty,same,y\n" + ",5,a\n,5,b\n" * 5)
    splits = data.load(tmp_path / "t.csv", target="y")
    assert splits.feature_names == ("empty=missing", "same")
    assert torch.equal(data.standardize(splits).train.inputs, torch.zeros(len(splits.train), 2))
