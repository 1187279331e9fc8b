"""The text form in which a user names what is done against instability: `none`, `qk-norm+z-loss:1e-4`, `warmup:0.25`, `mup:full`, `all`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from legato import errors
from legato.studies.language import LanguageConfig

NONE, ALL = "none", "all"


@dataclass(frozen=True)
class Remedy:
    """One part of an arm."""

    summary: str
    changes: Callable[[str], dict[str, Any]]
    """Its value as text -> the fields of `LanguageConfig` that it sets."""
    default: str = ""
    """The value where none is given; empty for a part without one."""
    choices: tuple[str, ...] = ()
    """The words it may have; empty for a number."""


REMEDIES: Mapping[str, Remedy] = {
    "qk-norm": Remedy("layer normalisation of queries and keys", lambda _: {"qk_norm": True}),
    "z-loss": Remedy(
        "and a coefficient times the mean square of log Z", lambda value: {"objective": f"ce+z-loss:coefficient={value}"}, "0.0001"
    ),
    "warmup": Remedy("the share of the steps in which the learning rate rises", lambda value: {"warmup": float(value)}, "0.25"),
    "decay": Remedy(
        "weight decay: independent of the learning rate (1e-4), or times the learning rate (0.1)",
        lambda value: {"decay": value, "weight_decay": {"independent": 1e-4, "conventional": 0.1}[value]},
        "independent", ("independent", "conventional"),
    ),
    "weight-decay": Remedy("the weight decay itself; 0 is none", lambda value: {"weight_decay": float(value)}, "0"),
    "mup": Remedy(
        "learning rates and first weights that change with the width", lambda value: {"mup": value}, "full",
        ("simple", "intermediate", "full"),
    ),
    "muon": Remedy("Muon for the matrices inside", lambda _: {"optimizer": "muon"}),
    "eps": Remedy("AdamW's eps", lambda value: {"eps": float(value)}, "1e-15"),
}  # fmt: skip
WHOLE = "qk-norm+z-loss+warmup+decay:independent+mup:full"
"""What `all` stands for."""


def parse_arm(text: str) -> dict[str, Any]:
    """The fields of `LanguageConfig` that an arm sets.

    Raises: LegatoValueError for an unknown part or word (the nearest is named), a value that is no number >= 0, and a part given twice.
    """
    if text == NONE:
        return {}
    fields: dict[str, Any] = {}
    pieces = (WHOLE if text == ALL else text).split("+")
    names = [piece.partition(":")[0] for piece in pieces]
    if len(set(names)) < len(names):
        raise errors.argument("arms", expected="each part once", got=repr(text), fix="leave one of the two out")
    for piece in pieces:
        name, _, value = piece.partition(":")
        if name not in REMEDIES:
            raise errors.choice(f"arms ({text!r})", name, [NONE, ALL, *REMEDIES])
        fields |= REMEDIES[name].changes(_value(REMEDIES[name], name, value))
    return fields


def with_arm(setting: LanguageConfig, text: str) -> LanguageConfig:
    """The setting with what an arm changes in it."""
    return replace(setting, **parse_arm(text))


def _value(remedy: Remedy, name: str, text: str) -> str:
    value = text or remedy.default
    if not remedy.default:
        if text:
            raise errors.argument(f"arms ({name})", expected="no value", got=text, fix=name)
    elif remedy.choices:
        if value not in remedy.choices:
            raise errors.choice(f"arms ({name})", value, remedy.choices)
    elif not _is_number(value):
        raise errors.argument(f"arms ({name})", expected="a number >= 0", got=value, fix=f"{name}:{remedy.default}")
    return value


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False
