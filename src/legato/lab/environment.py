"""What the numbers were measured with: processor, cores, versions and commit; never a host, a user or a path."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from legato import __version__

PACKAGE = Path(__file__).resolve().parents[1]


def describe() -> dict[str, str | int | None]:
    """CPU model, cores, graphics processor, and the versions that decide numbers."""
    return {
        "legato": __version__,
        "commit": commit(PACKAGE),
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")},
    }


def commit(package: Path) -> str | None:
    """The git commit of the checkout that `package` belongs to, with "+" where files of the package differ from it.

    None for an installed package, also when a virtual environment inside somebody's checkout holds it.
    """

    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook has its own

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package), *arguments]  # a look writes nothing
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=ours)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
