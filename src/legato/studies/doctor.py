"""Is everything here that legato needs, and does it work? One check for each thing, with the remedy where it does not."""

import contextlib
import io
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Literal

from legato import __version__, errors
from legato.data.places import cache_folder, data_folder, shown
from legato.data.table import TABLE
from legato.lab import environment

Status = Literal["fine", "absent", "broken"]
NOT_FOR_USERS = ("all", "dev", "docs")
"""Extras that are made of others, or serve the development of legato."""
LEAST_FREE = 100 * 2**20
"""Bytes below which a disk counts as full."""
REPORT = "send what `legato doctor --json` prints with your report"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    group: str
    name: str
    status: Status
    """absent: optional, and not here. broken: legato needs it, and it does not work."""
    found: str
    fix: str = ""
    """What mends it, or brings what is absent."""


def examine(data_dir: str | None = None) -> Iterator[Check]:
    """Every check, the quick ones first.

    Args:
        data_dir: folder of data sets to look in first; default: $LEGATO_DATA.
    """
    for look in (versions, extras, lambda: data(data_dir), devices, folders):
        yield from look()
    yield workers()
    yield self_test()


def versions() -> list[Check]:
    """Python, legato, and each package that it cannot do without."""
    commit = environment.commit(environment.PACKAGE)
    own = f"{__version__}, commit {commit}" if commit else __version__
    checks = [_check("versions", "python", platform.python_version()), _check("versions", "legato", own)]
    for name, needed in _requirements(""):
        problem = _lacks(name, needed)
        status: Status = "broken" if problem else "fine"
        fix = f"pip install '{name}{needed}'" if problem else ""
        checks.append(Check("versions", name, status, problem or version(name), fix))
    return checks


def extras() -> list[Check]:
    """Each extra of legato: which versions it has here, or the command that brings it."""
    try:
        known = distribution("legato").metadata.get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return [Check("extras", "all", "absent", "legato is on the path, but not installed", "pip install legato")]
    return [_extra(name) for name in sorted(set(known) - set(NOT_FOR_USERS))]


def data(data_dir: str | None = None) -> list[Check]:
    """Each data set that is called by a name: where it lies, or the command that fetches it."""
    try:
        folder = data_folder(data_dir)
    except errors.DataNotFoundError as problem:
        fix = "name a folder that exists, or unset LEGATO_DATA"
        return [Check("data", "folder", "broken", str(problem).rstrip("."), fix)]
    places = {name: entry.where(folder) for name, entry in TABLE.items()}
    return [
        Check("data", name, "fine" if place else "absent", place or "nowhere", "" if place else TABLE[name].get)
        for name, place in places.items()
    ]


def devices() -> list[Check]:
    """Cores, and every accelerator that torch sees; on each a sum is computed."""
    import torch
    from joblib import cpu_count

    checks = [_check("devices", "cpu", f"{cpu_count()} cores, {torch.get_num_threads()} threads of torch")]
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return [*checks, Check("devices", "accelerator", "absent", "none; everything runs on the CPU")]
    for number in range(torch.accelerator.device_count()):
        device = torch.device(kind.type, number)
        name = torch.cuda.get_device_name(device) if kind.type == "cuda" else kind.type
        try:
            right = torch.arange(4.0, device=device).sum().item() == 6
            checks.append(
                _check("devices", str(device), name) if right else _bad_device(device, f"{name} sums wrongly")
            )
        except RuntimeError as problem:
            checks.append(_bad_device(device, f"{name}: {_first_line(problem)}"))
    return checks


def folders() -> list[Check]:
    """Where legato writes: its cache, the runs of this folder, and the system's temporary folder."""
    return [
        _writable("cache", cache_folder(), "set XDG_CACHE_HOME to a folder that you can write"),
        _writable("runs", Path("runs"), "change to a folder that you can write, or give commands --out FOLDER"),
        _writable("temporary", Path(tempfile.gettempdir()), "set TMPDIR to a folder that you can write"),
    ]


def workers() -> Check:
    """Whether processes can be started beside this one."""
    from joblib import Parallel, delayed

    try:
        seen = set(Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(4)))
    except (OSError, RuntimeError, ImportError) as problem:
        return Check("self-test", "workers", "broken", _first_line(problem), "give commands --workers 1")
    alone = os.getpid() in seen
    return _check("self-test", "workers", "none beside this process" if alone else "start, and answer")


def self_test() -> Check:
    """A tiny comparison from data to page, in a folder of its own that is removed."""
    from legato.studies import compare
    from legato.studies.config import CompareConfig

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        tiny = CompareConfig(
            data="digits", objectives=("ce", "comp-sum:1.7"), seeds=2, learning_rates=(0.1,), epochs=1, rows=200,
            workers=1, out=Path(folder) / "run",
        )  # fmt: skip
        return _tried("comparison", lambda: compare.run(tiny).page())


def _tried(name: str, make: Callable[[], Path]) -> Check:
    try:
        size = make().stat().st_size
    except (errors.LegatoError, OSError, ImportError, RuntimeError) as problem:
        found, _, fix = str(problem).partition(" Fix: ")
        return Check("self-test", name, "broken", found.rstrip("."), fix.rstrip(".") or REPORT)
    return _check("self-test", name, f"trains, judges and draws a page of {size / 1024:.0f} KiB")


def _check(group: str, name: str, found: str) -> Check:
    return Check(group, name, "fine", found)


def _requirements(extra: str) -> list[tuple[str, str]]:
    """(package, versions) that legato asks for, of one extra or, with "", of itself; none where it is not installed."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in distribution("legato").requires or []]
    except PackageNotFoundError:
        return []
    own = [r for r in asked if (r.marker.evaluate({"extra": extra}) if r.marker else not extra)]
    return [(r.name, str(r.specifier)) for r in own if r.name != "legato"]


def _lacks(package: str, needed: str) -> str:
    """What is wrong with the installed version; "" where nothing is."""
    from packaging.specifiers import SpecifierSet

    try:
        here = version(package)
    except PackageNotFoundError:
        return "not installed"
    return "" if SpecifierSet(needed).contains(here, prereleases=True) else f"{here}, and {needed} is needed"


def _extra(name: str) -> Check:
    asked = _requirements(name)
    lacking = [f"{package}: {problem}" for package, needed in asked if (problem := _lacks(package, needed))]
    if lacking:
        return Check("extras", name, "absent", "; ".join(lacking), f"pip install 'legato[{name}]'")
    return _check("extras", name, ", ".join(f"{package} {version(package)}" for package, _ in asked))


def _bad_device(device: object, found: str) -> Check:
    fix = "update its driver, or install the torch that fits it; until then --device cpu"
    return Check("devices", str(device), "broken", found, fix)


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]


def _writable(name: str, folder: Path, fix: str) -> Check:
    """Try the folder, or the nearest one above that exists, where it would be made."""
    where = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=where):
            free = shutil.disk_usage(where).free
    except OSError as problem:
        return Check("folders", name, "broken", f"{shown(folder)} cannot be written ({problem.strerror})", fix)
    found = f"{shown(folder)}: writable, {free / 2**30:.1f} GiB free"
    return Check("folders", name, "broken", found, f"free some space, or {fix}") if free < LEAST_FREE else _check("folders", name, found)  # fmt: skip
