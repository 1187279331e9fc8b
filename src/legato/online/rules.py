"""What a step costs, as a formula in words of a state machine: `price * max(change, 0) / 0.9 + 0.01 * abs(change)`.

A formula is data, not code: it is taken apart by Python's parser, and only numbers, names, + - * / and the functions min, max and abs
are understood. Each part is a pair (base, slope) of arrays, so that the whole is base + price slope, exactly.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from legato import errors
from legato.online.mdp import Array

LONGEST = 300
PRICE = "price"
FUNCTIONS: Mapping[str, Callable[..., Any]] = {"min": np.minimum, "max": np.maximum, "abs": np.abs}
SUMS: Mapping[type[ast.operator], Callable[..., Any]] = {ast.Add: operator.add, ast.Sub: operator.sub}
WORDS = "numbers, names, + - * / ( ), min, max and abs"

Pair = tuple[Any, Any]


def parse_rule(text: str, names: Mapping[str, Array], where: str) -> tuple[Array, Array]:
    """Evaluate a formula on arrays, apart from the price.

    Args:
        text: the formula, at most 300 characters. The price may be added and subtracted, and multiplied or divided by what has none.
        names: what else it may speak of; the arrays broadcast together.
        where: what complaints begin with.
    Returns: base and slope, of the shape that the names broadcast to: a step costs base + price * slope.
    Raises: DataError that quotes the part which is not understood, or says that a value is not finite.
    """
    if len(text) > LONGEST:
        raise errors.DataError(
            errors.message(where, expected=f"at most {LONGEST} characters", got=f"{len(text)} of them")
        )
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as problem:
        raise errors.DataError(errors.message(where, expected=f"a formula of {WORDS}", got=repr(text))) from problem
    with np.errstate(all="ignore"):
        parts = _Rule(text.strip(), names, where).of(tree.body)
    shape = np.broadcast_shapes(*(np.shape(value) for value in names.values()))
    base, slope = (np.array(np.broadcast_to(part, shape), dtype=np.float64) for part in parts)
    if not (np.isfinite(base).all() and np.isfinite(slope).all()):
        raise errors.DataError(
            errors.message(where, expected="a finite cost in each state and action", got=f"none from {text!r}")
        )
    return base, slope


class _Rule:
    """One formula, and what its complaints need."""

    def __init__(self, text: str, names: Mapping[str, Array], where: str) -> None:
        self._text, self._names, self._where = text, names, where

    def of(self, node: ast.expr) -> Pair:
        """(base, slope) of a part."""
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return float(value), 0.0
            case ast.Name(id=name):
                return self._named(name)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                base, slope = self.of(inner)
                return -base, -slope
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
                (a, b), (c, d) = self.of(left), self.of(right)
                return SUMS[type(op)](a, c), SUMS[type(op)](b, d)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return self._product(left, right)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                base, slope = self.of(left)
                under = self._plain(right)
                return np.divide(base, under), np.divide(slope, under)
            case ast.Call(func=ast.Name(id=name), args=[_, *_] as args, keywords=[]) if name in FUNCTIONS:
                return self._call(name, [self._plain(part) for part in args]), 0.0
        raise errors.DataError(errors.message(self._where, expected=WORDS, got=repr(self._quote(node))))

    def _named(self, name: str) -> Pair:
        if name == PRICE:
            return 0.0, 1.0
        if name not in self._names:
            raise errors.DataError(str(errors.choice(f"{self._where}, name", name, [PRICE, *self._names])))
        return self._names[name], 0.0

    def _product(self, left: ast.expr, right: ast.expr) -> Pair:
        (a, b), (c, d) = self.of(left), self.of(right)
        if np.any(b) and np.any(d):
            self._refuse_price(left)
        return a * c, a * d + b * c

    def _plain(self, node: ast.expr) -> Any:
        """A part without the price."""
        base, slope = self.of(node)
        if np.any(slope):
            self._refuse_price(node)
        return base

    def _call(self, name: str, values: list[Any]) -> Any:
        if (len(values) == 1) != (name == "abs"):
            raise errors.DataError(
                errors.message(self._where, expected="abs of one value, min and max of several", got=f"{name} of {len(values)}")
            )  # fmt: skip
        out = FUNCTIONS[name](*values[:2])
        for value in values[2:]:
            out = FUNCTIONS[name](out, value)
        return out

    def _refuse_price(self, node: ast.expr) -> None:
        raise errors.DataError(
            errors.message(
                self._where, expected="a price that is only added, or multiplied or divided by what has none", got=repr(self._quote(node)),
                fix="put such a step into the file of costs itself",
            )
        )  # fmt: skip

    def _quote(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._text, node) or self._text
