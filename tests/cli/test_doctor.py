"""`legato doctor`: all is well here, and each thing that can break is named with its remedy."""

import json
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch

from legato import errors
from legato.cli import main
from legato.studies import compare, doctor
from legato.studies.doctor import Check


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Without the self-test, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "self_test", lambda: Check("self-test", "comparison", "fine", "left out"))
    monkeypatch.setattr(doctor, "workers", lambda: Check("self-test", "workers", "fine", "left out"))


def test_everything_works_here_and_nothing_is_left_behind(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["works"] is True
    found = {(check["group"], check["name"]): check for check in told["checks"]}
    assert found["versions", "torch"]["found"] == torch.__version__
    assert found["self-test", "comparison"]["found"].startswith("trains, judges and draws a page of")
    assert found["self-test", "workers"]["found"] == "start, and answer"
    assert found["data", "digits"]["status"] == "fine"
    assert {group for group, _ in found} >= {"versions", "extras", "data", "devices", "folders", "self-test"}
    assert all(
        check["fix"] for check in told["checks"] if check["group"] in ("extras", "data") and check["status"] == "absent"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_is_broken_ends_with_status_one_and_its_remedy(quick, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["doctor"]) == 1
    told = capsys.readouterr()
    assert "broken" in told.out
    assert told.err.splitlines()[-1] == (
        f"legato: cache: {tmp_path}/file/legato cannot be written (Not a directory). "
        "Fix: set XDG_CACHE_HOME to a folder that you can write."
    )
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["works"] is False


def test_what_is_absent_is_named_with_its_command_and_no_fault(quick, monkeypatch, capsys):
    absent = Check("extras", "fast", "absent", "numba[x]: not installed", "pip install 'legato[fast]'")
    monkeypatch.setattr(doctor, "extras", lambda: [absent])
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "numba[x]: not installed" in told
    assert "  pip install 'legato[fast]'" in told.splitlines()


REQUIRED = (
    "numpy>=2",
    "torch>=99",
    "ghost>=1",
    "ray>=2; extra == 'scale'",
    "numpy>=1; extra == 'fast'",
    "legato[fast]; extra == 'all'",
)


def fake(monkeypatch, here):
    def version(package):
        if package not in here:
            raise PackageNotFoundError(package)
        return here[package]

    names = SimpleNamespace(get_all=lambda key: ["all", "dev", "fast", "scale"])
    monkeypatch.setattr(doctor, "distribution", lambda name: SimpleNamespace(requires=REQUIRED, metadata=names))
    monkeypatch.setattr(doctor, "version", version)


def test_packages_are_held_against_what_legato_asks_for(monkeypatch):
    fake(monkeypatch, {"numpy": "2.4", "torch": "2.13.0+cpu"})
    found = {check.name: check for check in doctor.versions()[2:]}
    assert found == {
        "numpy": Check("versions", "numpy", "fine", "2.4"),
        "torch": Check("versions", "torch", "broken", "2.13.0+cpu, and >=99 is needed", "pip install 'torch>=99'"),
        "ghost": Check("versions", "ghost", "broken", "not installed", "pip install 'ghost>=1'"),
    }
    assert doctor.extras() == [
        Check("extras", "fast", "fine", "numpy 2.4"),
        Check("extras", "scale", "absent", "ray: not installed", "pip install 'legato[scale]'"),
    ]


def test_legato_on_the_path_alone_is_said(monkeypatch):
    def nowhere(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "distribution", nowhere)
    assert [check.name for check in doctor.versions()] == ["python", "legato"]
    assert doctor.extras()[0].fix == "pip install legato"


def test_a_full_disk_and_a_folder_of_data_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=doctor.LEAST_FREE - 1))
    assert {(check.name, check.status) for check in doctor.folders()} == {
        (name, "broken") for name in ("cache", "runs", "temporary")
    }
    assert doctor.folders()[1].fix.startswith("free some space, or ")
    (problem,) = doctor.data(str(tmp_path / "none"))
    assert problem.status == "broken"
    assert str(tmp_path / "none") in problem.found


@pytest.mark.parametrize(("kind", "status"), [("cpu", "fine"), ("meta", "broken")])
def test_a_sum_is_computed_on_every_accelerator(monkeypatch, kind, status):
    """A meta tensor has no values, so reading its sum fails as a device that does not work would."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    first, *others = doctor.devices()
    assert first.found.endswith("of torch")
    assert [(check.name, check.status) for check in others] == [(f"{kind}:0", status), (f"{kind}:1", status)]
    assert all(("--device cpu" in check.fix) == (status == "broken") for check in others)


@pytest.mark.parametrize(
    ("problem", "found", "fix"),
    [
        (errors.StoreError("the disk is full. Fix: free some space."), "the disk is full", "free some space"),
        (RuntimeError("out of memory"), "out of memory", doctor.REPORT),
    ],
)
def test_a_comparison_that_fails_is_broken(monkeypatch, problem, found, fix):
    def fail(config):
        raise problem

    monkeypatch.setattr(compare, "run", fail)
    assert doctor.self_test() == Check("self-test", "comparison", "broken", found, fix)


def test_processes_that_cannot_be_started_are_broken(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no semaphores here")

    monkeypatch.setattr("joblib.Parallel", refuse)
    assert doctor.workers() == Check(
        "self-test", "workers", "broken", "no semaphores here", "give commands --workers 1"
    )
