"""`legato online`: decisions under the costs of a file, against the best fixed policy, simple controllers and a perfect forecast."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.data import costs as fetched
from legato.data.pool import fingerprint
from legato.lab import runner
from legato.lab.pack import open_results
from legato.lab.statistics import Estimate, t_interval
from legato.lab.store import Store
from legato.lab.trial import Outcome
from legato.online.baselines import BestResponse, Exp3, Hedge, Uniform
from legato.online.learners import Learner, log_barrier, luo, magnitude_reduced
from legato.online.readers import CostProblem, cost_problem, read_costs, read_model
from legato.online.regret import best_each_episode, run

STUDY, SCHEMA = "online-costs", 1
LEARNERS: Mapping[str, Callable[..., Learner]] = {
    "log-barrier": log_barrier, "mr": magnitude_reduced, "luo": luo, "exp3": Exp3, "hedge": Hedge, "uniform": Uniform,
}  # fmt: skip
UNIFORM, YESTERDAY, FORECAST, BEST = "uniform", "follow-yesterday", "perfect forecast", "best fixed policy"
SEES = {
    "bandit": "own path", "full": "all, after", "none": "nothing", "before": "all, before", "hindsight": "hindsight",
}  # fmt: skip

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """Which costs, which machine, and who plays."""

    costs: str
    """A CSV file, or a name of `legato.data.costs`."""
    model: Path
    learners: tuple[str, ...] = ("log-barrier", "mr", "hedge")
    """Names of `LEARNERS`; `name:rate` sets the factor on the learning rate. Uniform play always stands beside them."""
    episodes: int | None = None
    """None is as many as the file has."""
    seeds: int = 5
    """Runs of each learner that draws lots."""
    window: int = 7
    """Episodes whose mean the controller plans on."""

    def __post_init__(self) -> None:
        for name in ("episodes", "seeds", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise errors.argument(name, expected="a whole number >= 1", got=value)
        for text in self.learners:
            make_learner(text)
        if not any(_kind(text) == "learner" for text in self.learners):
            raise errors.argument(
                "learners",
                expected=f"one or more of {', '.join(LEARNERS)}, and not uniform alone",
                got=list(self.learners),
            )


@dataclass(frozen=True)
class Played:
    """One trial: a player of a problem, in a few runs side by side."""

    problem: str
    """Fingerprint of prices and machine."""
    player: str
    episodes: int
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Row:
    """One line of the table. Costs are expected ones, in the units of the file."""

    name: str
    kind: str
    """learner, controller, or bound for what nobody can play."""
    sees: str
    cost: Estimate
    """Of all episodes; over the runs."""
    regret: Estimate
    """The same, less the cost of the best fixed policy in hindsight."""
    gap: float | None
    """Share of the way from uniform play to the best fixed policy; None where there is no way."""
    tuning: str = ""


@dataclass(frozen=True)
class Answer:
    """All that the command prints and the page shows."""

    about: Mapping[str, Any]
    prices: Numbers
    """[K, H] of the file."""
    rows: tuple[Row, ...]
    at: NDArray[np.int64]
    """[C], episodes played."""
    curves: Mapping[str, Numbers] = field(default_factory=dict)
    """Name -> [N, C], cost so far above that of the policy that is the best so far."""
    policies: Mapping[str, Numbers] = field(default_factory=dict)
    """Name -> [H, S, A], the policy after the last episode, averaged over the runs."""

    @property
    def verdict(self) -> str:
        """Who is cheapest; a simple controller that beats every learner comes first."""
        learners = sorted((r for r in self.rows if r.kind == "learner"), key=lambda r: r.cost.mean)
        controllers = [r for r in self.rows if r.kind == "controller"]
        best = learners[0]
        ahead = sorted((r for r in controllers if r.cost.mean < best.cost.mean), key=lambda r: r.cost.mean)
        behind = [r for r in controllers if r not in ahead]
        if ahead:
            words = f"{_list(ahead)} beat every learner, whose best is {_told(best)}"
            words = words if len(ahead) > 1 else words.replace(" beat ", " beats ", 1)
        else:
            words = f"{_told(best)} is the cheapest player, before {_list(behind)}"
        costs = {r.name: amount(r.cost.mean) for r in self.rows}
        best_of_all = f"in hindsight the best fixed policy costs {costs[BEST]}, and a perfect forecast would have cost {costs[FORECAST]}"
        return f"{words[0].upper()}{words[1:]}; {best_of_all}"


def ask(question: Question, folder: Path, *, data_dir: str | None = None, workers: int = 1, progress: bool = True) -> Answer:  # fmt: skip
    """Play it all, or what of it is not yet in `folder`, and sum up.

    Raises: DataError and DataNotFoundError for files that cannot be used, LegatoValueError for what cannot be asked.
    """
    problem, name = _problem(question, data_dir)
    scale, mdp = np.array([problem.low, problem.high]), problem.mdp
    mark = fingerprint([problem.costs, problem.amount, problem.base, scale, mdp.transitions, mdp.initial])
    episodes = question.episodes or len(problem.costs)
    players = list(dict.fromkeys([*question.learners, UNIFORM, YESTERDAY, f"mean of {question.window}", FORECAST]))
    store = Store(folder, STUDY, SCHEMA)
    store.write_config({
        "costs": name, "model": question.model.name, "machine": problem.mdp.name, "rows": len(problem.costs), "episodes": episodes,
        "players": players, "seeds": question.seeds, "states": problem.states, "actions": problem.actions,
        "low": problem.low, "high": problem.high, "problem": mark, "notes": list(fetched.NOTES) if name in fetched.NAMES else [],
    })  # fmt: skip
    store.write_arrays("prices", {"prices": problem.costs})
    asked = [_trial_of(mark, player, episodes, question.seeds) for player in players]
    runner.run(
        runner.Study(partial(play, problem), lambda records: asked), store, workers=min(workers, len(asked)), progress=progress
    )  # fmt: skip
    return answer(folder)


def play(problem: CostProblem, config: Played, folder: Path) -> Outcome:
    """One trial: cumulative expected costs of a player, and the policy that it ends with."""
    if config.player == FORECAST:
        rows = min(config.episodes, len(problem.costs))
        each = best_each_episode(problem.mdp, problem.adversary, rows)
        return Outcome({"sees": "before", "tuning": ""}, {"each": problem.money(each, 1)})
    learner = make_learner(config.player)
    found = run(problem.mdp, problem.adversary, learner, config.episodes, config.seeds)
    told = str(found.tuning) if config.player.partition(":")[0] in LEARNERS and config.player != UNIFORM else ""
    arrays = {
        "at": found.at, "values": problem.money(found.values, found.at), "best": problem.money(found.best, found.at),
        "best_actions": found.best_actions, "policy": found.policies.mean(0),
    }  # fmt: skip
    sees = "none" if config.player == UNIFORM else learner.start(problem.mdp, 1, [0]).feedback
    return Outcome({"sees": sees, "tuning": told}, arrays)


def make_learner(text: str) -> Learner:
    """`log-barrier`, `log-barrier:30` or the name of a controller.

    Raises: LegatoValueError for an unknown name, or a rate that is none.
    """
    name, colon, rate = text.partition(":")
    if name == YESTERDAY:
        return BestResponse(1)
    if name.startswith("mean of ") and name[8:].isdigit():
        return BestResponse(int(name[8:]))
    if name not in LEARNERS:
        raise errors.choice("learner", name, LEARNERS)
    if not colon:
        return LEARNERS[name]()
    try:
        value = float(rate)
    except ValueError:
        value = np.nan
    if name == UNIFORM or not 0 < value < np.inf:
        raise errors.argument("learner", expected="a name, or NAME:RATE with a rate > 0; uniform has none", got=text)
    return LEARNERS[name](rate=value)


def answer(path: Path) -> Answer:
    """Read a finished run from its folder or pack alone."""
    store = open_results(path)
    about = store.read_config()
    known = {
        (r.config["problem"], r.config["player"], r.config["episodes"], len(r.config["seeds"])): r
        for r in store.records()
    }
    wanted = {p: _trial_of(about["problem"], p, about["episodes"], about["seeds"]) for p in about["players"]}
    try:
        records = {p: known[c.problem, p, c.episodes, len(c.seeds)] for p, c in wanted.items()}
    except KeyError as problem:
        raise errors.StoreError(f"{path}: not finished. Fix: give the command that began it again.") from problem
    arrays = {player: store.arrays(record.key) for player, record in records.items()}
    each = arrays.pop(FORECAST)["each"]
    first = arrays[UNIFORM]
    at, best = first["at"], first["best"]
    curves = {player: found["values"] - best for player, found in arrays.items()}
    curves[FORECAST] = (_cumulative(each, at) - best)[None]
    told = {p: (_kind(p), r.metrics["sees"], r.metrics["tuning"]) for p, r in records.items()}
    told[BEST], curves[BEST] = ("bound", "hindsight", ""), np.zeros((1, len(at)))
    rows = [
        _row(player, *said, curves[player][:, -1], curves[UNIFORM][0, -1], best[-1]) for player, said in told.items()
    ]
    policies = {BEST: np.eye(len(about["actions"]))[first["best_actions"]]}
    policies |= {player: found["policy"] for player, found in arrays.items() if player != UNIFORM}
    ordered = sorted(rows, key=lambda row: row.cost.mean)
    return Answer(about, store.read_arrays("prices")["prices"], tuple(ordered), at, curves, policies)


def _problem(question: Question, data_dir: str | None) -> tuple[CostProblem, str]:
    """The problem, and the name of its costs."""
    named = question.costs in fetched.NAMES
    prices = fetched.read_days(question.costs, data_dir)[0] if named else read_costs(question.costs)
    model = cost_problem(prices, read_model(question.model), source=question.model.name)
    return model, question.costs if named else Path(question.costs).name


def _trial_of(problem: str, player: str, episodes: int, seeds: int) -> Played:
    """Only what draws lots is run with more than one seed."""
    name = player.partition(":")[0]
    draws = name in LEARNERS and name not in (UNIFORM, "hedge")
    return Played(problem, player, episodes, tuple(range(seeds if draws else 1)))


def _kind(player: str) -> str:
    if player == FORECAST:
        return "bound"
    return "learner" if player.partition(":")[0] in LEARNERS and player != UNIFORM else "controller"


def _row(
    name: str, kind: str, sees: str, tuning: str, regret: Numbers, uniform: float, best: float
) -> Row:  # fmt: skip
    gap = None if uniform <= 1e-9 * max(1.0, abs(best)) else 1 - float(regret.mean()) / float(uniform)
    return Row(name, kind, SEES[sees], _estimate(best + regret), _estimate(regret), gap, tuning)


def _estimate(values: Numbers) -> Estimate:
    """The mean over the runs; a single run is either exact or says nothing of the others, and gets no interval."""
    if len(values) == 1:
        return Estimate(float(values[0]), float(values[0]), float(values[0]), 1)
    return t_interval(values)


def _cumulative(each: Numbers, at: NDArray[np.int64]) -> Numbers:
    """Sums over the first `at` episodes of what begins again after its last entry."""
    sums = np.concatenate([[0.0], np.cumsum(each)])
    return np.asarray(at // len(each) * sums[-1] + sums[at % len(each)])


def amount(value: float) -> str:
    """`12,345` or `1.234`: four digits, and no power of ten."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _told(row: Row) -> str:
    return f"{row.name} at {amount(row.cost.mean)}"


def _list(rows: Sequence[Row]) -> str:
    words = [_told(row) for row in rows]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
