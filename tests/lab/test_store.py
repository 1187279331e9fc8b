"""The folder of results: what goes in comes out, whatever is damaged is named and counts as absent, versions do not mix."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from squares import Config, contents, store

from legato import __version__, errors
from legato.lab.store import Store, open_store, read_config
from legato.lab.trial import Outcome

ARRAYS = {
    "half": np.linspace(0, 1, 6, dtype=np.float16).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "every second": np.arange(10, dtype=np.int16)[::2],
    "one number": np.array(2.5),
    "none": np.empty((0, 4), dtype=np.uint8),
    "flags": np.array([True, False]),
    "big-endian": np.arange(3, dtype=">i4"),
}


def filled(folder: Path, trials: int = 3) -> Store:
    made = store(folder)
    made.write_config({"asked": "squares"})
    for number in range(trials):
        made.put(Config(number), Outcome({"square": number**2}, {"row": np.arange(number + 1)}), 0.5)
    return made


def file_of(made: Store, number: int) -> Path:
    return made.folder / "trials" / f"{made.key(Config(number))}.json"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_trial_reads_back_as_it_was_put(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.create()
    put = made.put(Config(7), Outcome({"pair": (1, 2.5), "lost": float("nan")}, ARRAYS), 1.25)
    assert store(tmp_path).records() == [put] == [store(tmp_path).get(Config(7))]
    assert put.metrics == {"pair": [1, 2.5], "lost": None}
    assert put.config == {"number": 7, "behaviour": "square", "seconds": 0.0}
    back = store(tmp_path).arrays(put.key)
    assert back.keys() == ARRAYS.keys()
    for name, want in ARRAYS.items():
        np.testing.assert_array_equal(back[name], want)
        assert back[name].shape == want.shape
        assert back[name].dtype == want.dtype.newbyteorder("=")


def test_a_trial_without_arrays_has_none_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.create()
    record = made.put(Config(1), Outcome({}), 0.0)
    assert made.arrays(record.key) == {}
    assert made.get(Config(2)) is None
    assert (made.has(Config(1)), made.has(Config(2))) == (True, False)
    with pytest.raises(errors.StoreError, match="no such trial"):
        made.arrays("0" * 64)


@pytest.mark.parametrize(
    "wrong", [[1, 2], np.array(["text"]), np.array([object()]), np.array([1j]), np.zeros(1, np.longdouble)]
)
def test_arrays_that_cannot_be_stored_are_refused_by_name(tmp_path: Path, wrong: object) -> None:
    made = store(tmp_path)
    made.create()
    with pytest.raises(errors.LegatoTypeError, match=r"arrays\['logits'\]"):
        made.put(Config(1), Outcome({}, {"logits": wrong}), 0.0)  # type: ignore[dict-item]
    assert made.records() == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def change_a_number(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"square": 1', b'"square": 2'))


def become_a_list(path: Path) -> None:
    path.write_bytes(b"[]")


def become_noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def move_to_another_name(path: Path) -> None:
    path.rename(path.with_stem("f" * 64))
    path.with_suffix(".safetensors").rename(path.with_name("f" * 64 + ".safetensors"))


def become_another_trial(path: Path) -> None:
    path.write_bytes(path.with_name(next(p.name for p in path.parent.glob("*.json") if p != path)).read_bytes())


def lose_the_arrays(path: Path) -> None:
    path.with_suffix(".safetensors").unlink()


def change_the_arrays(path: Path) -> None:
    arrays = path.with_suffix(".safetensors")
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"\x7f")


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        empty,
        change_a_number,
        become_a_list,
        become_noise,
        move_to_another_name,
        become_another_trial,
        lose_the_arrays,
        change_the_arrays,
    ],
)
def test_a_damaged_file_is_named_counts_as_absent_and_is_set_aside(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    made = filled(tmp_path)
    before = contents(made)
    damage(file_of(made, 1))
    left = files(tmp_path)
    with pytest.warns(errors.LegatoWarning, match=r"trials/[0-9a-f]{64}\.json is damaged: .* does the trial again"):
        assert [record.config["number"] for record in made.records()] == [
            r[1]["number"] for r in before if r[1]["number"] != 1
        ]
    assert files(tmp_path) == left, "reading must change nothing"

    with pytest.warns(errors.LegatoWarning, match="is damaged"):
        made.create()
    assert [path.suffix for path in (tmp_path / "damaged").iterdir() if path.suffix == ".json"] == [".json"]
    assert len(made.records()) == 2, "nothing is left to warn about"
    made.put(Config(1), Outcome({"square": 1}, {"row": np.arange(2)}), 0.5)
    assert contents(made) == before


def test_a_look_at_whole_files_takes_no_lock(tmp_path: Path) -> None:
    made = filled(tmp_path)
    with made.lock(made.key(Config(1))):  # somebody else has it
        made.create()
    assert [path.name for path in (tmp_path / "locks").iterdir()] == ["folder.lock"]


def test_a_damaged_file_that_is_being_made_again_is_left_alone(tmp_path: Path) -> None:
    made = filled(tmp_path)
    cut(file_of(made, 1))
    with made.lock(made.key(Config(1))) as ours:
        assert ours
        store(tmp_path).create()
        assert file_of(made, 1).exists()
    with pytest.warns(errors.LegatoWarning, match="is damaged"):
        made.create()
    assert not file_of(made, 1).exists()


def test_what_is_known_is_not_read_again(tmp_path: Path) -> None:
    made = filled(tmp_path)
    known = made.records()
    for path in (tmp_path / "trials").glob("*.json"):
        path.write_bytes(b"")
    made.put(Config(7), Outcome({}), 0.0)
    assert len(made.records(known)) == 4
    file_of(made, 1).unlink()
    assert len(made.records(known)) == 3, "what has gone is gone"


def test_damaged_arrays_are_an_error_for_who_reads_them(tmp_path: Path) -> None:
    made = filled(tmp_path)
    change_the_arrays(file_of(made, 1))
    with pytest.raises(errors.StoreError, match=r"does not fit its checksum.*Fix"):
        made.arrays(made.key(Config(1)))


def test_a_trial_counts_only_once_its_arrays_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled(tmp_path, trials=0)
    order = []
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (order.append(Path(target).suffix), replace(self, target))[1]
    )
    made.put(Config(1), Outcome({}, {"row": np.arange(2)}), 0.0)
    assert order == [".safetensors", ".json"]


def test_what_a_killed_writer_left_is_no_trial_and_is_written_over(tmp_path: Path) -> None:
    made = filled(tmp_path, trials=0)
    path = file_of(made, 5)
    path.with_name(path.name + ".tmp").write_bytes(b'{"half')
    path.with_suffix(".safetensors").write_bytes(b"arrays without their trial")
    made.create()
    assert made.records() == []
    made.put(Config(5), Outcome({"square": 25}, {"row": np.arange(3)}), 0.0)
    assert made.arrays(made.key(Config(5)))["row"].tolist() == [0, 1, 2]
    assert not list(tmp_path.rglob("*.tmp"))


def test_one_trial_has_one_taker(tmp_path: Path) -> None:
    made, other = filled(tmp_path, trials=0), store(tmp_path)
    key = made.key(Config(1))
    with made.lock(key) as first, other.lock(key) as second, other.lock(made.key(Config(2))) as third:
        assert (first, second, third) == (True, False, True)
    assert (tmp_path / "locks" / f"{key}.lock").exists(), "an unfinished trial keeps its lock, on which others may wait"
    with other.lock(key) as again:
        assert again
        other.put(Config(1), Outcome({}), 0.0)
    assert not list((tmp_path / "locks").glob(f"{key}*")), "the lock of a finished trial is of no use"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_what_is_there_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    made = filled(tmp_path)
    before = files(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.StoreError, match=r"disk is full: .*Finished trials are kept\. Fix: free some space"):
        made.put(Config(9), Outcome({"square": 81}), 0.0)
    assert files(tmp_path) == before


def test_a_file_that_the_system_cuts_off_is_not_left_behind(tmp_path: Path) -> None:
    made = filled(tmp_path)
    before = files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(errors.StoreError, match="disk is full"):
            made.put(Config(9), Outcome({}, {"row": np.zeros(10_000)}), 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == before


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/legato"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        errors.StoreError, match=rf"{place}.* cannot be written \(.*\)\. Fix: choose another folder with --out"
    ):
        store(tmp_path / place).write_config({})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    made = filled(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(errors.StoreError, match="cannot be written"):
            made.create()
    finally:
        tmp_path.chmod(0o700)


def test_versions_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled(tmp_path)
    monkeypatch.setattr("legato.lab.store.__version__", "9.9.9")
    assert len(made.records()) == 3, "a newer legato still reads a folder of one version"
    with pytest.raises(
        errors.StoreError, match=rf"legato {__version__}, and this is 9\.9\.9.*--out.*legato=={__version__}"
    ):
        made.create()
    with pytest.raises(errors.StoreError, match=f"legato=={__version__}"):
        made.write_config({})
    made.put(Config(8), Outcome({}), 0.0)
    with pytest.raises(errors.StoreError, match="must not be mixed"):
        made.records()


@pytest.mark.parametrize(("study", "schema"), [("another", 1), ("sample", 2)])
def test_a_folder_has_one_study_and_one_schema(tmp_path: Path, study: str, schema: int) -> None:
    filled(tmp_path)
    with pytest.raises(errors.StoreError, match=f"study 'sample', schema 1; this is '{study}', schema {schema}.*--out"):
        Store(tmp_path, study, schema).create()


def test_the_config_says_whose_folder_it_is(tmp_path: Path) -> None:
    filled(tmp_path)
    assert read_config(tmp_path) == {"asked": "squares", "study": "sample", "schema": 1, "version": __version__}
    assert contents(open_store(tmp_path)) == contents(store(tmp_path))
    for wrong in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(wrong)
        with pytest.raises(errors.StoreError, match=r"config\.json is damaged. Fix"):
            open_store(tmp_path)
    with pytest.raises(errors.StoreError, match="is no run of legato"):
        open_store(tmp_path / "nowhere")


def test_arrays_of_the_whole_run(tmp_path: Path) -> None:
    made = filled(tmp_path)
    made.write_arrays("examples", {"rows": np.arange(3)})
    assert made.read_arrays("examples")["rows"].tolist() == [0, 1, 2]
    assert made.read_arrays("nothing") == {}
    assert made.named_arrays() == ["examples"]
    cut(tmp_path / "examples.safetensors")
    with pytest.raises(errors.StoreError, match="damaged"):
        made.read_arrays("examples")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    filled(tmp_path)
    code = (
        "import sys; from pathlib import Path; import legato.lab.runner; from legato.lab.pack import open_results;"
        f"assert len(open_results(Path({str(tmp_path)!r})).records()) == 3;"
        "print([m for m in ('torch', 'joblib', 'sklearn', 'scipy', 'ray', 'rich') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_every_file_can_be_read_by_people(tmp_path: Path) -> None:
    made = filled(tmp_path, trials=1)
    body = json.loads(file_of(made, 0).read_text())
    assert body["config"]["number"] == 0
    assert body["identity"] == {"study": "sample", "schema": 1, "kind": "Config", "differs": {"number": 0}}
    assert body["version"] == __version__
