"""The house as a whole: lazy import, README that runs, no file too long."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_import_costs_nothing():
    program = "import sys, legato; assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules); legato.CompSumLoss"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_public_names_exist():
    import legato

    for name in legato.__all__:
        assert getattr(legato, name)


@pytest.mark.parametrize("path", [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")], ids=lambda p: p.name)
def test_code_blocks_of_the_documents_run(path):
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, path.name, "exec"), {})


def test_no_file_is_too_long():
    long = [p.name for p in (ROOT / "src").rglob("*.py") if len(p.read_text().splitlines()) > 400]
    assert not long


def test_a_missing_extra_names_its_command():
    from legato import errors

    with pytest.raises(errors.MissingExtraError, match=r"pip install 'legato\[scale\]'"):
        errors.require("no_such_package_at_all", extra="scale")
