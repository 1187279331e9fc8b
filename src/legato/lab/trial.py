"""A trial: a frozen config, what it measured, and the name under which both are filed."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from numpy.typing import NDArray

from legato import errors

Arrays = Mapping[str, NDArray[Any]]
EXACT = 2**53
"""Below this every whole number has one float, and every whole float one number."""


@dataclass(frozen=True)
class Outcome:
    """What a trial function returns.

    `metrics` is plain JSON: dicts with string keys, lists, tuples, strings, numbers, booleans, None. JSON knows no NaN and no
    infinity: both are stored as null and come back as None. `arrays` holds numeric arrays that are too large for JSON.
    """

    metrics: Mapping[str, Any]
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A finished trial as it is stored. `seconds` is wall time and no part of what two runs must agree on."""

    key: str
    config: dict[str, Any]
    """All fields of the config: dataclasses as dicts, tuples as lists."""
    metrics: dict[str, Any]
    seconds: float
    version: str
    """Version of legato that did the trial."""


def as_plain(config: Any) -> dict[str, Any]:
    """All fields of a frozen dataclass as JSON; dataclasses inside become dicts, tuples become lists.

    Raises: LegatoTypeError for a type, LegatoValueError for a NaN or infinity, that cannot be written and read back the same.
    """
    _check(config)
    return {f.name: _plain(getattr(config, f.name), f.name, _refuse_non_finite) for f in fields(config)}


def canonical(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from their defaults, so that a new field with a default renames no trial.

    Two equal configs have equal canonical forms: 1 and 1.0 are the same, and so are a tuple and a list. Fields stand in
    alphabetical order.
    """
    _check(config)
    told = {}
    for f in sorted(fields(config), key=lambda f: f.name):
        value = getattr(config, f.name)
        exact = _exact(_plain(value, f.name, _refuse_non_finite))
        if not _has_default(f) or exact != _exact(_plain(_default(f), f.name, _refuse_non_finite)):
            told[f.name] = canonical(value) if is_dataclass(value) else exact
    return told


def identity(study: str, schema: int, config: Any) -> dict[str, Any]:
    """Everything that a trial's name is made from."""
    return {"study": study, "schema": schema, "kind": type(config).__name__, "differs": canonical(config)}


def hash_of(named: Mapping[str, Any]) -> str:
    """sha256, as hex, of the shortest JSON with sorted keys; floats are written so that they read back exactly."""
    text = json.dumps(named, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def trial_hash(study: str, schema: int, config: Any) -> str:
    """The name of a trial: sha256 over (study, schema, class name of the config, fields that differ from their defaults).

    A default or a meaning that changes must raise `schema`, since old results would else pass for new ones.
    """
    return hash_of(identity(study, schema, config))


def plain_json(value: Any, where: str) -> Any:
    """A value as JSON that reads back equal, except that NaN and infinities become None; `where` names it in errors."""
    return _plain(value, where, _none_if_non_finite)


def _check(config: Any) -> None:
    if not is_dataclass(config) or isinstance(config, type) or not _is_frozen(type(config)):
        raise errors.argument_type("config", expected="an instance of a frozen dataclass", got=_name(config))


def _is_frozen(kind: Any) -> bool:
    return bool(kind.__dataclass_params__.frozen)


def _plain(value: Any, where: str, number: Callable[[float, str], float | None]) -> Any:
    if isinstance(value, Enum):
        raise errors.argument_type(where, expected="a plain value", got=_name(value), fix="store its .value")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return number(float(value), where)
    if isinstance(value, tuple | list):
        return [_plain(item, f"{where}[{i}]", number) for i, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{where}.{f.name}", number) for f in fields(value)}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}.{key}", number) for key, item in value.items()}
    raise errors.argument_type(
        where,
        expected="None, a number, a string, a list or tuple, a dict with string keys or a dataclass",
        got=_name(value),
        fix="a number of numpy or torch becomes plain by .item(), a path by str()",
    )


def _refuse_non_finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise errors.argument(where, expected="a finite number", got=value)
    return value


def _none_if_non_finite(value: float, where: str) -> float | None:
    return value if math.isfinite(value) else None


def _exact(plain: Any) -> Any:
    """Whole floats as whole numbers, since 1 == 1.0 but '1' is not '1.0'."""
    if isinstance(plain, float) and plain.is_integer() and abs(plain) < EXACT:
        return int(plain)
    if isinstance(plain, list):
        return [_exact(item) for item in plain]
    if isinstance(plain, dict):
        return {key: _exact(item) for key, item in plain.items()}
    return plain


def _has_default(f: "Field[Any]") -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING


def _default(f: "Field[Any]") -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _name(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    return f"{type(value).__module__}.{type(value).__qualname__}"
