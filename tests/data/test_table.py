"""The table of names: what stands where on this machine, told quickly and without torch."""

import subprocess
import sys

import numpy as np
import pytest

from legato import data
from legato.cli import listings
from legato.data import fashion, places, r_packages
from legato.data.table import TABLE


def test_names_numbers_and_licences():
    assert data.BINARY_TABLES == (
        "breast_cancer", "spam", "musk", "ticdata", "promotergene", "income", "sonar", "ionosphere", "pima", "breast-cancer",
        "house-votes", "letter", "satellite", "dna",
    )  # fmt: skip
    for name, entry in TABLE.items():
        assert entry.licence in ("MIT", "CC-BY-4.0", "see UCI", "not stated"), name
        assert entry.get or entry.where(None), name


@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if not entry.get])
def test_what_the_table_says_is_what_is_loaded(name):
    splits, entry = data.load(name), TABLE[name]
    rows = len(splits.train) + len(splits.validation), len(splits.test)
    assert entry.rows in (" + ".join(f"{n:,}" for n in rows), f"{sum(rows):,}")
    assert entry.shape == " x ".join(map(str, splits.input_shape))
    assert entry.classes == splits.num_classes
    assert splits.provenance.licence.startswith(entry.licence)
    assert entry.where(None) == splits.provenance.source


def test_where_looks_in_the_order_of_reading_and_decodes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(r_packages, "LIBRARIES", (str(tmp_path / "system"),))
    where = TABLE["spam"].where
    assert where(tmp_path) == ""
    for folder, place in (
        (tmp_path / "system/kernlab/data", "system: r-cran-kernlab"),
        (places.cache_folder() / "usr/lib/R/site-library/kernlab/data", "user cache"),
        (tmp_path / "mine", "data_dir"),
    ):
        if place == "user cache":
            monkeypatch.setattr(r_packages, "LIBRARIES", ("/usr/lib/R/site-library", str(tmp_path / "system")))
        folder.mkdir(parents=True)
        (folder / "spam.rda").write_text("not looked into")
        assert where(tmp_path / "mine") == place
    for part in r_packages.PARTS:
        places.write_cached("musk", [part], [np.zeros(1)])
        assert bool(TABLE["musk"].where(None)) == (part == r_packages.PARTS[-1])


def test_the_listing_fits_and_names_the_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(r_packages, "LIBRARIES", ())
    monkeypatch.setattr(fashion, "SYSTEM", places.cache_folder())
    listings.data()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100 or str(places.cache_folder()) in shown
    for words in (
        "fashion-mini",
        "5,000 + 1,000",
        "embedded",
        "with scikit-learn",
        "satellite",
        "see UCI",
        "--target",
    ):
        assert words in shown
    assert shown.count("apt-get download r-cran-kernlab") == 1
    assert fashion.COMMAND in shown


def test_the_listing_needs_no_torch():
    program = (
        "import sys; from legato.cli import listings; listings.data()\n"
        "assert not {'torch', 'sklearn', 'pandas', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_names_of_the_room_are_there():
    assert all(getattr(data, name) for name in data.__all__)
    assert dir(data) == sorted(data.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        data.lode  # noqa: B018


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert places.cache_folder().name == "legato"
    assert places.shown(places.cache_folder()) == str(places.cache_folder())


def test_paths_are_shown_with_the_home_folder_as_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert "-x r-cran-mlbench_*.deb ~/.cache/legato" in r_packages.command("mlbench")
