"""Every message that legato gives to its user: what argument, what was expected, what came, and the likely fix."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any


class LegatoError(Exception):
    """Base of every error that legato raises on purpose; its text is meant for the user, not for a developer."""


class LegatoValueError(LegatoError, ValueError):
    """An argument has a value or shape that cannot be used."""


class LegatoTypeError(LegatoError, TypeError):
    """An argument has a type that cannot be used."""


class DataError(LegatoError, ValueError):
    """A data set was found but cannot be used as it is."""


class DataNotFoundError(LegatoError, FileNotFoundError):
    """A data set was in none of the places that were searched."""


class MissingExtraError(LegatoError, ImportError):
    """An optional dependency is not installed."""


class CheckpointError(LegatoError, OSError):
    """A checkpoint cannot be read, or does not fit."""


class StoreError(LegatoError, OSError):
    """The folder of results cannot be read or written."""


class TrialError(LegatoError, RuntimeError):
    """One or more trials of a study failed; the finished ones are kept."""


class DeviceError(LegatoError, RuntimeError):
    """The device or the number of processes is not the one that was asked for."""


class LegatoWarning(UserWarning):
    """Something that training survives but the user should know."""


def message(subject: str, *, expected: str, got: object, fix: str = "") -> str:
    """`subject: expected ...; got .... Fix: ....`, the one form of every complaint."""
    text = f"{subject}: expected {expected}; got {got}."
    return f"{text} Fix: {fix}." if fix else text


def argument(name: str, *, expected: str, got: object, fix: str = "") -> LegatoValueError:
    """The error for an argument whose value is wrong."""
    return LegatoValueError(message(name, expected=expected, got=got, fix=fix))


def argument_type(name: str, *, expected: str, got: object, fix: str = "") -> LegatoTypeError:
    """The error for an argument whose type is wrong."""
    return LegatoTypeError(message(name, expected=expected, got=got, fix=fix))


def choice(name: str, got: str, choices: Iterable[str]) -> LegatoValueError:
    """The error for a word that is not one of `choices`; names the nearest one."""
    known = sorted(choices)
    near = get_close_matches(got, known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]!r}?" if near else ""
    text = f"{name}: expected one of {', '.join(known)}; got {got!r}."
    return LegatoValueError(f"{text} {fix[0].upper()}{fix[1:]}" if fix else text)


def require(module: str, *, extra: str) -> Any:
    """Import an optional `module`, or say which extra of legato brings it."""
    try:
        return import_module(module)
    except ImportError as problem:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{package} is needed here and is not installed. Fix: pip install 'legato[{extra}]'."
        ) from problem
