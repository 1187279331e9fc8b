"""The house as a whole: lazy import, README that runs, no file too long."""

import importlib
import importlib.util
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
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        exec(compile(block, path.name, "exec"), {})


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in navigation
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_public_name_is_documented():
    """A name that a room exports and no page mentions is one that nobody finds."""
    text = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    rooms = [
        importlib.import_module(f"legato.{name}") for name in ("losses", "flatness", "online", "stability", "diffusion")
    ]
    assert not [name for room in rooms for name in room.__all__ if name not in text]


def tool():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools" / "make_docs.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_benchmark_page_is_what_was_measured():
    if not (ROOT / "docs" / "benchmarks" / "losses.json").exists():
        pytest.skip("no measurement is stored")
    assert (ROOT / "docs" / "benchmarks.md").read_text() == tool().benchmarks()
    assert (ROOT / "docs" / "performance.md").read_text() == tool().performance()


def test_the_evidence_page_is_what_the_packed_results_say():
    assert (ROOT / "docs" / "evidence.md").read_text() == tool().evidence()
    for pack in (ROOT / "docs" / "evidence").glob("*.jsonl.xz"):
        assert pack.with_name(f"{pack.name.partition('.')[0]}.html").exists()


def test_torch_is_the_pinned_one():
    """Packages that pull in torchvision silently replace it."""
    import torch

    pinned = re.search(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    if importlib.util.find_spec("torchvision") is None:
        assert torch.__version__.partition("+")[0] == pinned


def test_no_file_is_too_long():
    long = [p.name for p in (ROOT / "src").rglob("*.py") if len(p.read_text().splitlines()) > 400]
    assert not long


def test_a_missing_extra_names_its_command():
    from legato import errors

    with pytest.raises(errors.MissingExtraError, match=r"pip install 'legato\[scale\]'"):
        errors.require("no_such_package_at_all", extra="scale")
