"""Days of power demand, from files and from a wheel that is only read: the fingerprint decides."""

import zipfile

import numpy as np
import pytest

from legato.data import costs
from legato.errors import DataError, DataNotFoundError, LegatoValueError

HEADER = "#Some words: with a colon.\n@problemName ItalyPowerDemand\n@classLabel true 1 2\n@data\n"
TEXTS = (HEADER + "1.5,-2:1\n3,4:2\n", HEADER + "5,6:2\n\n")
DAYS = np.array([[1.5, -2], [3, 4], [5, 6]])


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(costs, "SHA256", costs.fingerprint([DAYS]))


def as_files(folder, texts=TEXTS):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(costs.FILES, texts, strict=True):
        (folder / name).write_text(text)


def as_wheel(folder, texts=TEXTS, inner=costs.FOLDER):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "aeon-1.6.0-py3-none-any.whl", "w") as archive:
        for name, text in zip(costs.FILES, texts, strict=True):
            archive.writestr(f"{inner}/{name}", text)


@pytest.mark.parametrize("write", [as_files, as_wheel])
def test_training_days_come_first(tmp_path, write):
    write(tmp_path)
    days, origin = costs.read_days(data_dir=tmp_path)
    np.testing.assert_array_equal(days, DAYS)
    assert origin.source == "data_dir"


def test_the_unpacked_wheel_and_the_cache_are_searched(tmp_path, _own_cache):
    as_files(tmp_path / costs.FOLDER)
    assert costs.read_days(data_dir=tmp_path)[1].source == f"data_dir: {costs.FOLDER}"
    (tmp_path / costs.FOLDER / costs.FILES[0]).unlink()
    days, origin = costs.read_days(data_dir=tmp_path)
    np.testing.assert_array_equal(days, DAYS)
    assert origin.source == "user cache: decoded earlier"


def test_nowhere_is_an_error_with_the_line_that_fetches_it():
    with pytest.raises(DataNotFoundError, match=r"pip download --no-deps --dest .*legato aeon"):
        costs.read_days()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: as_files(folder, (TEXTS[0], HEADER + "5,7:2\n")), "TRAIN.ts: expected the days of the UCR archive; got others, of shape .3, 2."),
        (lambda folder: as_files(folder, (TEXTS[0], HEADER + "5:2\n")), "TRAIN.ts: not the series"),
        (lambda folder: as_wheel(folder, inner="elsewhere"), r"aeon-1.6.0-py3-none-any.whl: holds no italy.*Fix: pip download"),
        (lambda folder: (folder / "aeon-2-py3-none-any.whl").write_bytes(b"PK"), "aeon-2-py3-none-any.whl: holds no"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(DataError, match=message):
        costs.read_days(data_dir=tmp_path)


def test_names():
    with pytest.raises(LegatoValueError, match="Did you mean 'italy-power-demand'"):
        costs.read_days("italy-power")
