"""Every promise of docs/reliability.md names tests, and they exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "reliability.md").read_text()
PROMISES = [
    line.strip("| ").split(" | ")
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| promise")
]


def test_there_are_promises_for_each_fault():
    *faults, last = TEXT.split("\n## ")[1:]
    assert last.startswith("What is not promised")
    assert all("| `tests/" in fault for fault in faults)


@pytest.mark.parametrize(("promise", "shown"), PROMISES, ids=lambda words: words[:30])
def test_a_promise_has_tests_that_exist(promise, shown):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown)
    assert named, promise
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"
