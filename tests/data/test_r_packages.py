"""Tables of R packages: tiny files written here, and Debian's own where they are."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from legato import data
from legato.data import places, r_packages
from legato.errors import DataError, DataNotFoundError, MissingExtraError

pandas = pytest.importorskip("pandas")
rdata = pytest.importorskip("rdata")
to_r = pytest.importorskip("rdata.conversion.to_r")
DATA_DIR = os.environ.get("LEGATO_DATA")
"""Read before the tests take it away: a folder with Debian's packages unpacked."""


TUMOURS = {
    "Id": [str(i) for i in range(30)],
    "Cl.thickness": [str(1 + i % 4) for i in range(30)],
    "Bare.nuclei": [None, *(str(1 + i % 10) for i in range(29))],
    "Site": [("None", "left", None)[i % 3] for i in range(30)],
    "Class": [("malignant", "benign")[i % 2] for i in range(30)],
}
"""Like BreastCancer: an identifier, factors whose labels are numbers, a gap, a factor of words, a class."""


def write(columns, folder, name="BreastCancer"):
    """A data frame as R saves it: arrays are numbers, lists of text are factors, None is a gap."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for key, values in columns.items():
        levels = sorted({value for value in values if value is not None})
        codes = [-1 if value is None else levels.index(value) for value in values]
        is_number = isinstance(values, np.ndarray)
        found[key] = values if is_number else pandas.Categorical.from_codes(codes, pandas.Index(levels, dtype=object))
    frame = pandas.DataFrame(found)
    frame.columns = pandas.Index(list(columns), dtype=object)  # rdata writes no strings of pandas 3
    rdata.write_rda(
        folder / f"{name}.rda", {name: frame}, constructor_dict=to_r.DEFAULT_CLASS_MAP | {pandas.Categorical: factor}
    )
    return folder


def factor(values, converter):
    """A factor whose gaps are R's missing integer; rdata's own writer makes them level 0."""
    made = to_r.categorical_constructor(values, converter)
    made.value = np.where(values.codes < 0, -(2**31), values.codes.astype(np.int64) + 1).astype(np.int32)
    return made


def all_rows(splits):
    """Inputs and targets in the order of the file."""
    parts = (splits.train, splits.validation, splits.test)
    order = torch.cat([part.index for part in parts]).argsort()
    return tuple(torch.cat([getattr(p, word) for p in parts])[order] for word in ("inputs", "targets"))


@pytest.mark.parametrize("layout", [".", "mlbench/data", "usr/lib/R/site-library/mlbench/data"])
def test_a_data_frame_becomes_a_task_and_says_how(tmp_path, layout):
    write(TUMOURS, tmp_path / layout)
    splits = data.load("breast-cancer", data_dir=tmp_path)
    assert splits.class_names == ("benign", "malignant")
    assert splits.feature_names == ("Cl.thickness", "Bare.nuclei", "Site=missing", "Site=None", "Site=left")
    inputs, targets = all_rows(splits)
    assert torch.equal(targets, 1 - torch.arange(30) % 2)
    assert torch.equal(inputs[:, 0], 1.0 + torch.arange(30) % 4)
    nuclei = 1.0 + torch.arange(-1, 29) % 10
    nuclei[0] = nuclei[1:].quantile(0.5)
    assert torch.equal(inputs[:, 1], nuclei)
    assert torch.equal(inputs[:, 2:].argmax(1), torch.tensor([1, 2, 0] * 10))
    notes = " ".join(splits.provenance.notes)
    for words in (
        "Id was left out",
        "1 missing values were filled",
        "3 columns, one a value; 10 gaps",
        "other rows than",
    ):
        assert words in notes
    assert splits.provenance.source == ("data_dir" if layout == "." else f"data_dir: {layout}")


def test_values_are_made_one_class_and_a_gap_is_not_the_word_none(tmp_path):
    values = [*r_packages.POOR, "[50.000-75.000)", "[75.000-"]
    frame = {"INCOME": [values[i % 9] for i in range(45)], "UNDER18": ["None", "One", "Two"] * 15}
    splits = data.load("income", data_dir=write(frame, tmp_path, "income"))
    assert splits.class_names == ("below 50,000", "50,000 or more")
    assert torch.equal(all_rows(splits)[1], (torch.arange(45) % 9 >= 7).long())
    assert not any("gaps" in note for note in splits.provenance.notes)


def test_rows_of_other_classes_are_left_out(tmp_path):
    letters = list("KRAZ" * 6)
    write({"lettr": letters, "x.box": np.arange(24.0)}, tmp_path, "LetterRecognition")
    splits = data.load("letter", data_dir=tmp_path)
    inputs, targets = all_rows(splits)
    assert inputs[:, 0].tolist() == [i for i in range(24) if letters[i] in "KR"]
    assert targets.tolist() == [0, 1] * 6
    assert data.load("letter-26", data_dir=tmp_path).class_names == ("A", "K", "R", "Z")
    pair = data.load("letter-26", data_dir=tmp_path, classes=("K", "R"))
    assert pair.provenance.sha256 == splits.provenance.sha256


def test_known_rows_are_kept_decoded_and_verified(tmp_path, monkeypatch):
    folder = write(TUMOURS, tmp_path)
    first = data.load("breast-cancer", data_dir=folder)
    assert not places.is_cached("breast-cancer", r_packages.PARTS)
    known = replace(r_packages.TABLES["breast-cancer"], sha256=first.provenance.sha256)
    monkeypatch.setitem(r_packages.TABLES, "breast-cancer", known)
    r_packages.read("breast-cancer", folder, False)
    again = r_packages.read("breast-cancer", None, False)
    assert again.origin.source == "user cache: decoded earlier"
    assert (again.sha256, again.feature_names) == (first.provenance.sha256, first.feature_names)
    assert set(again.notes) < set(first.provenance.notes)
    path = places.cache_folder() / "breast-cancer" / "inputs.npy"
    np.save(path, np.load(path) + 1)
    with pytest.raises(DataNotFoundError):
        r_packages.read("breast-cancer", None, False)


def test_files_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "Sonar.rda").write_bytes(b"RDX3\nnonsense")
    write(TUMOURS, tmp_path, "Ionosphere").joinpath("Ionosphere.rda").rename(tmp_path / "spam.rda")
    write({key: TUMOURS[key] for key in TUMOURS if key != "Class"}, tmp_path)
    for name, words in (
        ("sonar", "not a readable R file"),
        ("spam", "data frame spam"),
        ("breast-cancer", "a column Class"),
    ):
        with pytest.raises(DataError, match=words):
            data.load(name, data_dir=tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "rdata", None)
    with pytest.raises(MissingExtraError, match=r"legato\[tabular\]"):
        data.load("sonar", data_dir=tmp_path)


def test_a_missing_table_names_the_line_that_fetches_it(monkeypatch):
    monkeypatch.setattr(r_packages, "LIBRARIES", ())
    with pytest.raises(DataNotFoundError, match="apt-get download r-cran-kernlab && dpkg-deb -x") as caught:
        data.load("spam", download=True)
    assert "user cache" in str(caught.value)


@pytest.mark.full
@pytest.mark.parametrize("name", r_packages.TABLES)
def test_debians_tables_are_the_ones_that_are_known(name):
    folder = places.data_folder(DATA_DIR)
    if not r_packages.on_disk(name).where(folder):
        pytest.skip(f"Debian's r-cran-{r_packages.TABLES[name].package} is neither installed nor in $LEGATO_DATA")
    table = r_packages.TABLES[name]
    pool = r_packages.read(name, folder, False)
    assert pool.rows.inputs.shape == (table.rows, table.columns)
    assert len(pool.feature_names) == table.columns
    assert len(pool.class_names) == (len(table.classes) or table.values)
    assert pool.sha256 == table.sha256
    assert np.isfinite(pool.rows.inputs).all()
