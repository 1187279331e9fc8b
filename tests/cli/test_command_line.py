"""The command as a user starts it, in a process of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest


def legato(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "legato", *words], capture_output=True, text=True, env=os.environ, check=False, **options
    )


def test_help_needs_no_torch():
    program = "import sys, legato.cli\ntry: legato.cli.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout


def test_listings():
    assert "fashion-mini" in legato("data").stdout
    assert "comp-sum" in legato("objectives").stdout


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["compare", "digits", "--objectives", "comp-sun:1"], 2, "Did you mean 'comp-sum'"),
        (["compare", "digits", "--sedes", "3"], 2, "--seeds"),
        (["page", "nowhere"], 1, "is no run of legato"),
    ],
)
def test_mistakes_are_one_line_without_traceback(words, status, text, tmp_path):
    done = legato(*words, cwd=tmp_path)
    assert done.returncode == status
    assert text in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


SMALL = [
    "compare",
    "digits",
    "--objectives",
    "ce",
    "comp-sum:1.7",
    "--seeds",
    "2",
    "--learning-rates",
    "0.1",
    "0.3",
    "--epochs",
    "2",
    "--workers",
    "2",
    "--out",
    "run",
]


def test_a_run_ends_with_table_verdict_code_and_page(tmp_path):
    done = legato(*SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("comp-sum tau=1.7", "On the labels as they are", "criterion = ", "page: run/index.html"):
        assert text in done.stdout
    assert (tmp_path / "run" / "index.html").exists()


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "legato", *SMALL, "--epochs", "40"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list((tmp_path / "run" / "trials").glob("*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in said
