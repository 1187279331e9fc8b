"""Processes from plain arrays, from a Gymnasium environment's table, and from a small state machine with a file of costs."""

import csv
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from legato import errors
from legato.online.adversaries import Replay
from legato.online.mdp import Array, LinearMDP
from legato.online.rules import parse_rule

LARGEST = 1 << 26
"""Numbers in the table of transitions of a state machine, 512 MB."""
KEYS = ("name", "states", "actions", "start", "transitions", "level", "amount", "base", "cost", "range")
HUGE = 1e300
PLAIN_COST = "base + price * amount"


def from_arrays(
    transitions: ArrayLike,
    *,
    features: ArrayLike | None = None,
    initial: ArrayLike | int = 0,
    horizon: int | None = None,
    rescale: bool = False,
    name: str = "process",
) -> LinearMDP:
    """A process from arrays.

    Args:
        transitions: [H, S, A, S], or [S, A, S] with a horizon: the same in every step.
        features: [H, S, A, d] or [S, A, d], no longer than 1; None is one-hot.
        initial: the first state, or its chances [S].
        rescale: divide all features by the largest length, where that is above 1.
    Raises: LegatoValueError that names the first (h, s, a) where something is wrong.
    """
    table = np.asarray(transitions, dtype=np.float64)
    if table.ndim == 3:
        if horizon is None or horizon < 1:
            raise errors.argument("horizon", expected="a whole number >= 1, for transitions [S, A, S]", got=horizon)
        table = np.broadcast_to(table, (horizon, *table.shape))
    elif horizon is not None and horizon != len(table):
        raise errors.argument("horizon", expected=f"{len(table)}, the steps of the transitions", got=horizon)
    phi = None if features is None else np.asarray(features, dtype=np.float64)
    if phi is not None:
        if phi.ndim == 3:
            phi = np.broadcast_to(phi, (len(table), *phi.shape))
        longest = float(np.sqrt((phi**2).sum(-1)).max())
        if rescale and 1 < longest < math.inf:
            phi = phi / longest
    first = np.asarray(initial)
    if first.ndim == 0:
        first = np.eye(table.shape[1])[_state(int(first), table.shape[1])]
    return LinearMDP(np.array(table), np.asarray(first, dtype=np.float64), phi, name=name)


def _state(number: int, states: int) -> int:
    if not 0 <= number < states:
        raise errors.argument("initial", expected=f"a state in 0 .. {states - 1}", got=number)
    return number


def from_gymnasium(env: Any, horizon: int, *, name: str | None = None) -> tuple[LinearMDP, Array]:
    """The exact dynamics of a toy-text environment, and its rewards as losses in [0, 1].

    Reads `env.unwrapped.P[s][a]`, a list of (probability, next state, reward, done), and `initial_state_distrib` where there is one.
    What is done leads to one more, absorbing state, in which every loss is that of a reward of 0. Features are one-hot.

    Args:
        env: such as gymnasium.make("FrozenLake-v1").
        horizon: steps an episode.
    Returns: the process with S + 1 states, and losses [H, S + 1, A] = (largest reward - expected reward) / (largest - smallest).
    Raises: LegatoValueError for an environment without such a table.
    """
    table = getattr(getattr(env, "unwrapped", env), "P", None)
    if not isinstance(table, Mapping) or not table:
        raise errors.argument(
            "env", expected="an environment with a table env.unwrapped.P, as the toy-text ones have", got=type(env).__name__,
            fix="pass arrays to from_arrays",
        )  # fmt: skip
    states, actions = len(table), len(table[0])
    moves, rewards = np.zeros((states + 1, actions, states + 1)), np.zeros((states + 1, actions))
    moves[states, :, states] = 1
    seen = [0.0]
    for s, row in table.items():
        for a, outcomes in row.items():
            for chance, after, reward, done in outcomes:
                moves[s, a, states if done else after] += chance
                rewards[s, a] += chance * reward
                seen.append(float(reward))
    low, high = min(seen), max(seen)
    losses = (high - rewards) / (high - low) if high > low else np.zeros_like(rewards)
    start = getattr(env.unwrapped, "initial_state_distrib", None)
    initial = np.eye(states + 1)[0] if start is None else np.append(np.asarray(start, dtype=np.float64), 0.0)
    spec = getattr(env, "spec", None)
    label = name or getattr(spec, "id", None) or type(getattr(env, "unwrapped", env)).__name__
    return from_arrays(moves, initial=initial, horizon=horizon, name=label), np.tile(losses, (horizon, 1, 1))


@dataclass(frozen=True, eq=False)
class CostProblem:
    """A state machine whose steps cost base + price * amount, on average over where they lead, and the prices of many episodes."""

    mdp: LinearMDP
    amount: Array
    """[H, S, A], in units that the price is for."""
    base: Array
    """[H, S, A], in units of money."""
    costs: Array
    """[K, H], the prices."""
    low: float
    """The cost of a step that is a loss of 0."""
    high: float
    """The cost of a step that is a loss of 1."""
    states: tuple[str, ...]
    actions: tuple[str, ...]

    @property
    def adversary(self) -> Replay:
        """The losses (cost - low) / (high - low) of each episode, in the order of the file."""
        width = self.high - self.low
        return Replay(self.costs, self.amount / width, (self.base - self.low) / width, name="costs of the file")

    def money(self, losses: ArrayLike, episodes: ArrayLike) -> Array:
        """What a sum of losses over that many episodes is in the units of the file."""
        return np.asarray(losses) * (self.high - self.low) + self.low * self.mdp.horizon * np.asarray(episodes)


def read_problem(costs: str | Path, model: str | Path) -> CostProblem:
    """A file of costs and a state machine, see docs/methods/online-mdp.md for both.

    Raises: DataNotFoundError for a file that is not there; DataError that names the file and the place where it is wrong.
    """
    prices = read_costs(costs)
    return cost_problem(prices, read_model(model), source=Path(model).name)


def read_costs(path: str | Path) -> Array:
    """[K, H] numbers from a CSV file: a row an episode, a column a step. A first row that holds no number is a header.

    Raises: DataNotFoundError for a file that is not there; DataError that names the first row and column without a finite number, or
        the first row of another length.
    """
    name = Path(path).name
    try:
        rows = [(at, row) for at, row in enumerate(csv.reader(_text(path).splitlines()), 1) if row]
    except csv.Error as problem:
        raise errors.DataError(f"{name}: not a CSV file: {problem}.") from problem
    if rows and not any(_number(cell) is not None for cell in rows[0][1]):
        rows = rows[1:]
    if not rows:
        raise errors.DataError(f"{name}: expected rows of numbers, one an episode; got none.")
    width, out = len(rows[0][1]), []
    for number, row in rows:
        if len(row) != width:
            raise errors.DataError(f"{name}, row {number}: expected {width} columns; got {len(row)}.")
        values = [_number(cell) for cell in row]
        if None in values:
            column = values.index(None)
            raise errors.DataError(
                f"{name}, row {number}, column {column + 1}: expected a finite number; got {row[column]!r}. "
                "Fix: a column for each step of an episode and none besides; fill gaps beforehand."
            )
        out.append(values)
    return np.array(out, dtype=np.float64)


def read_model(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises: DataNotFoundError for a file that is not there, DataError for one that is not TOML.
    """
    try:
        return tomllib.loads(_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise errors.DataError(f"{Path(path).name}: not TOML: {problem}.") from problem


def _text(path: str | Path) -> str:
    file = Path(path)
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as problem:
        raise errors.DataNotFoundError(errors.message("file", expected="one that exists", got=str(path))) from problem
    except UnicodeDecodeError as problem:
        raise errors.DataError(errors.message(file.name, expected="text in UTF-8", got=f"byte {problem.start} that is none")) from problem  # fmt: skip
    except OSError as problem:
        raise errors.DataError(f"{file.name}: cannot be read ({problem.strerror}).") from problem


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def cost_problem(prices: Array, model: Mapping[str, Any], *, source: str = "model") -> CostProblem:
    """Put prices [K, H] and a state machine together; `source` is what messages call the machine.

    model holds `states` and `actions` (names, or how many), `start` (a state, or its chances), `transitions` (for each action the next
    state of each state, or its chances), `amount` (for each action a number, or one for each state), and may hold `base` like amount,
    `range` = [low, high] of the cost of a step, and `name`. Instead of base + price * amount, `cost` may be a formula of `price`,
    `amount`, `base`, `level` (a number for each state; where it is left out, its place in `states`) and `change` (level after less level
    before): see `legato.online.rules`.

    Raises: DataError that names the key that is missing, unknown or wrong.
    """
    for key in model:
        if key not in KEYS:
            raise errors.DataError(str(errors.choice(f"{source}, key", key, KEYS)))
    states, actions = _names(model, "states", source), _names(model, "actions", source)
    horizon = prices.shape[1]
    if (size := horizon * len(states) ** 2 * len(actions)) > LARGEST:
        raise errors.DataError(
            errors.message(source, expected=f"at most {LARGEST:,} transitions, steps x states x actions x states", got=f"{size:,}")
        )  # fmt: skip
    moves = _moves(model, states, actions, source)
    base, amount = _costs(model, states, actions, moves, source)
    shape = (horizon, *amount.shape)
    base, amount = np.array(np.broadcast_to(base, shape)), np.array(np.broadcast_to(amount, shape))
    low, high = _range(model.get("range"), prices, amount, base, source)
    start = _chances(model.get("start", 0), states, f"{source}, start")
    mdp = from_arrays(moves, initial=start, horizon=horizon, name=str(model.get("name", source)))
    return CostProblem(mdp, amount, base, prices, low, high, states, actions)


def _moves(model: Mapping[str, Any], states: tuple[str, ...], actions: tuple[str, ...], source: str) -> Array:
    """[S, A, S], the chances of the next states."""
    moves = np.zeros((len(states), len(actions), len(states)))
    table = _table(_entry(model, "transitions", source), actions, f"{source}, transitions")
    for a, action in enumerate(actions):
        row = _entry(table, action, f"{source}, transitions")
        if not isinstance(row, list) or len(row) != len(states):
            raise errors.DataError(
                f"{source}, transitions, {action}: expected {len(states)} entries, one a state; got {row!r}."
            )
        for s, entry in enumerate(row):
            moves[s, a] = _chances(entry, states, f"{source}, transitions, {action}, {states[s]}")
    return moves


def _costs(
    model: Mapping[str, Any], states: tuple[str, ...], actions: tuple[str, ...], moves: Array, source: str
) -> tuple[Array, Array]:
    """base and amount of each state and action [S, A]: means over the next states of what the formula says."""
    rule = model.get("cost", PLAIN_COST)
    if not isinstance(rule, str):
        raise errors.DataError(errors.message(f"{source}, cost", expected="a formula in quotes", got=repr(rule)))
    level = _numbers(model.get("level", list(range(len(states)))), len(states), f"{source}, level")
    names = {"level": level[:, None, None], "change": (level - level[:, None])[:, None]}
    amount = _entry(model, "amount", source) if rule == PLAIN_COST else model.get("amount", {})
    missing = None if rule == PLAIN_COST else 0.0
    names["amount"] = _amounts(amount, states, actions, f"{source}, amount", missing=missing)[..., None]
    names["base"] = _amounts(model.get("base", {}), states, actions, f"{source}, base", missing=0.0)[..., None]
    base, slope = parse_rule(rule, names, f"{source}, cost")
    return (base * moves).sum(-1), (slope * moves).sum(-1)


def _entry(table: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in table:
        raise errors.DataError(f"{where}: expected a key {key!r}; got {', '.join(table) or 'none'}.")
    return table[key]


def _table(value: Any, actions: Sequence[str], where: str) -> Mapping[str, Any]:
    """A table whose keys are actions."""
    if not isinstance(value, Mapping):
        raise errors.DataError(f"{where}: expected a table with {', '.join(actions)}; got {value!r}.")
    for key in value:
        if key not in actions:
            raise errors.DataError(str(errors.choice(f"{where}, action", key, actions)))
    return value


def _names(model: Mapping[str, Any], key: str, source: str) -> tuple[str, ...]:
    value = _entry(model, key, source)
    counted = isinstance(value, int) and not isinstance(value, bool)
    if counted and value > LARGEST:
        raise errors.DataError(errors.message(f"{source}, {key}", expected=f"at most {LARGEST:,}", got=f"{value:,}"))
    names = tuple(map(str, range(value) if counted else value if isinstance(value, list) else ()))
    if not names or len(set(names)) != len(names):
        raise errors.DataError(f"{source}, {key}: expected different names, or a number >= 1; got {value!r}.")
    return names


def _chances(entry: Any, states: tuple[str, ...], where: str) -> Array:
    """A state by name or number, or the chances of all."""
    if isinstance(entry, str) and entry in states:
        return np.asarray(np.eye(len(states))[states.index(entry)])
    if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(states):
        return np.asarray(np.eye(len(states))[entry])
    if isinstance(entry, list) and len(entry) == len(states) and all(map(_is_number, entry)):
        chances = np.array(entry, dtype=np.float64)
        if abs(chances.sum() - 1) <= 1e-8 and (chances >= 0).all():
            return chances
    raise errors.DataError(
        f"{where}: expected one of {', '.join(states)}, or {len(states)} chances that sum to 1; got {entry!r}."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE  # false for NaN


def _numbers(value: Any, count: int, where: str) -> Array:
    """A number, or one for each state."""
    column = value if isinstance(value, list) else [value] * count
    if len(column) != count or not all(map(_is_number, column)):
        raise errors.DataError(f"{where}: expected a number, or {count} of them, one a state; got {value!r}.")
    return np.array(column, dtype=np.float64)


def _amounts(
    value: Any, states: Sequence[str], actions: Sequence[str], where: str, *, missing: float | None = None
) -> Array:
    """[S, A] from a table with a number, or one for each state, for each action."""
    table = _table(value, actions, where)
    entries = [_entry(table, a, where) if missing is None else table.get(a, missing) for a in actions]
    return np.stack(
        [_numbers(entry, len(states), f"{where}, {a}") for a, entry in zip(actions, entries, strict=True)], 1
    )


def _range(given: Any, prices: Array, amount: Array, base: Array, source: str) -> tuple[float, float]:
    """The costs of a step that are a loss of 0 and of 1: the given ones, or the extremes of the file."""
    tops, bottoms = prices.max(0)[:, None, None], prices.min(0)[:, None, None]
    ends = np.stack([base + tops * amount, base + bottoms * amount])
    low, high = float(ends.min()), float(ends.max())
    if not math.isfinite(high - low):
        raise errors.DataError(errors.message(f"{source}, cost", expected="costs whose range is finite", got=f"{low:g} to {high:g}"))  # fmt: skip
    if given is None:
        return (low, high) if high > low else (low, low + 1.0)
    if not (
        isinstance(given, list) and len(given) == 2 and all(map(_is_number, given))
        and given[0] <= low and high <= given[1] and given[0] < given[1]
    ):  # fmt: skip
        raise errors.DataError(
            f"{source}, range: expected [low, high] with all costs, {low:g} to {high:g}, between them; got {given!r}."
        )
    return float(given[0]), float(given[1])
