"""What the numbers were measured with, and that it gives nobody away."""

import getpass
import json
import platform
import re
import subprocess
from pathlib import Path

import pytest
from squares import store

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
    with pytest.warns(errors.LegatoWarning, match=re.escape(f"torch was {first['torch']} and is 1.0")):
        made.create()
    made.create()  # known by now: no second warning, no second entry
    assert made.read_environment() == {**first, "also": [other]}


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
