"""A store as one file: it says the same as the folder, always in the same bytes, and notices damage."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from squares import Config, contents, store

from legato import errors
from legato.lab.pack import open_pack, open_results, pack
from legato.lab.store import Store
from legato.lab.trial import Outcome


@pytest.fixture
def made(tmp_path: Path) -> Store:
    made = store(tmp_path / "run")
    made.write_config({"asked": "squares"})
    for number in range(4):
        arrays = {"logits": np.full((50, 3), number, np.float16), "prediction": np.arange(5)} if number % 2 else {}
        made.put(Config(number), Outcome({"square": number**2}, arrays), 0.25 * number)
    made.write_arrays("examples", {"rows": np.arange(3)})
    return made


def test_a_pack_says_the_same_as_its_folder(made: Store, tmp_path: Path) -> None:
    pack(made, tmp_path / "run.jsonl.xz", leave_out=())
    packed = open_results(tmp_path / "run.jsonl.xz")
    folder = open_results(made.folder)
    assert contents(packed) == contents(folder) == contents(made)
    assert packed.records() == folder.records()
    assert packed.read_config() == folder.read_config()
    assert packed.read_environment() == folder.read_environment() != {}
    assert packed.named_arrays() == ["examples"]
    assert packed.read_arrays("examples")["rows"].tolist() == [0, 1, 2]
    assert packed.read_arrays("nothing") == {}
    with pytest.raises(errors.StoreError, match="no such trial"):
        packed.arrays("0" * 64)


def test_logits_stay_behind(made: Store, tmp_path: Path) -> None:
    pack(made, tmp_path / "small.xz")
    packed = open_pack(tmp_path / "small.xz")
    names = sorted(tuple(packed.arrays(record.key)) for record in packed.records())
    assert names == [(), (), ("prediction",), ("prediction",)]


def test_equal_stores_give_equal_bytes(made: Store, tmp_path: Path) -> None:
    pack(made, tmp_path / "one.xz")
    pack(made, tmp_path / "two.xz")
    pack(open_pack(tmp_path / "one.xz"), tmp_path / "three.xz")
    one, two, three = ((tmp_path / f"{name}.xz").read_bytes() for name in ("one", "two", "three"))
    assert one == two == three


def test_a_pack_is_lines_of_json(made: Store, tmp_path: Path) -> None:
    pack(made, tmp_path / "run.xz")
    lines = [json.loads(line) for line in lzma.decompress((tmp_path / "run.xz").read_bytes()).splitlines()]
    assert lines[0]["config"]["asked"] == "squares"
    assert [line["trial"]["key"] for line in lines[1:5]] == sorted(made.finished())


def test_a_damaged_pack_is_named(made: Store, tmp_path: Path) -> None:
    pack(made, tmp_path / "run.xz")
    whole = (tmp_path / "run.xz").read_bytes()
    middle = len(whole) // 2
    broken = tmp_path / "broken.xz"
    for content in (
        whole[:middle],
        whole[:-1],
        b"",
        b"text",
        whole[:middle] + b"\0\0\0" + whole[middle + 3 :],
        lzma.compress(b"[1]\n"),
    ):
        broken.write_bytes(content)
        with pytest.raises(errors.StoreError, match=r"broken\.xz is no pack of legato, or is damaged. Fix"):
            open_pack(broken)
    with pytest.raises(errors.StoreError, match="No such file"):
        open_pack(tmp_path / "absent.xz")
    with pytest.raises(errors.StoreError, match="is no run of legato"):
        open_results(tmp_path / "absent.xz")


def test_a_later_format_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "new.xz").write_bytes(lzma.compress(b'{"pack": 2, "other": "things"}\n'))
    with pytest.raises(errors.StoreError, match=r"format 2.*newer legato"):
        open_pack(tmp_path / "new.xz")
