"""What the numbers were measured with, and that it gives nobody away."""

import getpass
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import pytest
from squares import Config, run, store, study

from legato import __version__, errors
from legato.lab import environment


def test_it_names_what_decides_numbers_and_nobody(tmp_path: Path) -> None:
    noted = environment.describe()
    assert noted["legato"] == __version__
    assert noted["python"] == platform.python_version()
    assert {"cpu", "cores", "gpu", "torch", "numpy", "commit", "system"} <= noted.keys()
    text = json.dumps(noted)
    for secret in (platform.node(), str(Path.home()), str(Path.cwd())):
        assert secret not in text
    assert getpass.getuser() not in noted.values()


def test_the_first_environment_stays_and_others_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(tmp_path)
    made.create()
    first = made.read_environment()
    other = {**environment.describe(), "torch": "1.0"}
    monkeypatch.setattr(environment, "describe", lambda: other)
    made.create()
    assert made.read_environment() == first, "a look at the folder measures nothing"
    with pytest.warns(errors.LegatoWarning, match=re.escape(f"torch was {first['torch']} and is 1.0")):
        made.note_environment()
    made.note_environment()  # known by now: no second warning, no second entry
    assert made.read_environment() == {**first, "also": [other]}


def test_no_file_of_a_run_names_host_user_or_folder(tmp_path: Path) -> None:
    run(study([Config(1)], tmp_path / "diary"), store(tmp_path / "run"), progress=False)
    text = "".join(path.read_text() for path in (tmp_path / "run").rglob("*.json"))
    for secret in (str(tmp_path), str(Path.home()), platform.node()):
        assert secret not in text


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_is_the_one_of_the_package_only(tmp_path: Path) -> None:
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("a = 1\n")
    assert environment.commit(package) is None, "no checkout"
    git(tmp_path, "init", "-q")
    assert environment.commit(package) is None, "a checkout, but not of this package"
    git(tmp_path, "add", "src")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes").write_text("beside the package")
    assert environment.commit(package) == head
    (package / "__init__.py").write_text("a = 2\n")
    assert environment.commit(package) == head + "+"


def test_a_look_at_the_commit_touches_nothing_and_minds_no_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "__init__.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    os.utime(tmp_path / "__init__.py", (1, 1))  # git would note that only the time has changed
    index = (tmp_path / ".git" / "index").read_bytes()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert environment.commit(tmp_path) == head
    assert (tmp_path / ".git" / "index").read_bytes() == index
