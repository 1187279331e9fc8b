"""What the numbers were measured with: processor, cores and versions; never a host, a user or a path."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from legato import __version__


def describe() -> dict[str, str | int]:
    """CPU model, cores, and the versions that decide numbers."""
    return {
        "legato": __version__,
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy", "scikit-learn")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
