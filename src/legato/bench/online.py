"""What decisions cost: the step on the simplex against softmax, and whole episodes against the loop that a user would write."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from legato.bench.case import Case
from legato.bench.memory import traced_peak_bytes
from legato.bench.online_peers import PlainLearner, has_river, newton, river_rounds, softmax
from legato.bench.timing import Step
from legato.online import FTRL, random_linear_mdp
from legato.online.learners import DilatedFTRL, log_barrier, magnitude_reduced
from legato.online.paths import Dice, roll_out
from legato.online.simplex import log_barrier_step

STATES = (100_000, 10)
"""States and actions of one step on the simplex."""
SMALL, LARGE = (3, 4, 4, 6), (10, 50, 8, 20)
"""H, S, A and d of two processes."""
EPISODES = 100_000
"""What the rates are chosen for."""
DRAWS = 100
"""For the sampled reduction of Algorithm 2."""
ROUNDS = 500
IN_A_CALL = 32
"""Episodes of all runs together that a call plays at least: a run plays one after the other, with its arrays in the cache."""
TABLES = 8
"""Tables of losses, one after the other and again."""
LOOP = "the loop in plain numpy (our reimplementation)"


def cases(official: Path | None = None) -> list[Case]:
    """Every case of the room; `official` is of no use here."""
    return [*step_cases(), *episode_cases(), *bandit_cases()]


def step_cases(shape: tuple[int, int] = STATES) -> list[Case]:
    """The log-barrier step on losses of this shape."""
    ours = partial(simplex_step, log_barrier_step, shape)
    rows = [
        _case("log-barrier step", "softmax in numpy", shape, ours, partial(simplex_step, softmax, shape), bar=8.0),
        _case("log-barrier step", "Newton in plain numpy (our reimplementation)", shape, ours, partial(simplex_step, newton, shape)),
    ]  # fmt: skip
    if find_spec("numba"):
        compiled = partial(simplex_step, partial(log_barrier_step, compiled=True), shape)
        rows.append(
            _case("log-barrier step, numba", "softmax in numpy", shape, compiled, partial(simplex_step, softmax, shape), bar=4.0)
        )  # fmt: skip
    return rows


def episode_cases(small: tuple[int, ...] = SMALL, large: tuple[int, ...] = LARGE) -> list[Case]:
    """Whole episodes: play, estimate, bonus, step. Seeds side by side are one play of ours, and as many plays of the loop."""
    first, second = log_barrier(), magnitude_reduced(reduction_samples=DRAWS)
    asked: list[tuple[str, DilatedFTRL, tuple[int, ...], int, float | None, float | None]] = [
        ("Algorithm 1", first, small, 1, None, None),
        ("Algorithm 1", first, small, 64, 0.1, 30_000),
        ("Algorithm 1", first, large, 1, None, 1500),
        ("Algorithm 1", first, large, 16, None, 1500),
        ("Algorithm 2, sampled", second, large, 16, None, 300),
    ]
    return [
        _case(
            f"{part}, {runs} seed{'s' if runs > 1 else ''}", LOOP, shape, partial(episode_step, learner, shape, runs),
            partial(loop_step, learner, shape, runs), bar=bar, work=runs * _episodes(runs), rate_bar=rate,
        )
        for part, learner, shape, runs, bar, rate in asked
    ]  # fmt: skip


def bandit_cases(rounds: int = ROUNDS) -> list[Case]:
    """A learner of two arms, round after round; river's overflows when it is used for long."""
    if not has_river():
        return []
    lasts = river_rounds(100 * rounds)
    peer = f"river's Exp3, which fails in round {lasts + 1:,}" if lasts < 100 * rounds else "river's Exp3"
    return [
        _case(f"FTRL, {rounds} rounds", peer, (2,), partial(ftrl_step, rounds), lambda: partial(river_rounds, rounds))
    ]


def _case(part: str, peer: str, shape: tuple[int, ...], ours: Callable[[], Step], other: Callable[[], Step], *, bar: float | None = None,
          work: int = 1, rate_bar: float | None = None) -> Case:  # fmt: skip
    return Case(part, peer, shape, ours, other, bar, work=work, rate_bar=rate_bar, peak=traced_peak_bytes)


def simplex_step(step: Callable[..., NDArray[np.float64]], shape: tuple[int, int]) -> Step:
    """Probabilities of all states from losses that lie some units apart."""
    losses = 5 * np.random.default_rng(0).normal(size=shape)
    return lambda: step(losses, 1.0)


def episode_step(learner: DilatedFTRL, shape: tuple[int, ...], runs: int) -> Step:
    """The next episodes of all runs, as `legato.online.run` plays it, without its books."""
    mdp = random_linear_mdp(shape[1], shape[2], shape[0], shape[3])
    play, dice, tables = learner.start(mdp, EPISODES, range(runs)), Dice(range(runs), 2 * shape[0]), _tables(shape)

    def step() -> None:
        for _ in range(_episodes(runs)):
            play.update(roll_out(mdp, play.policies(), tables[play.episode % TABLES], dice.roll()))

    return step


def loop_step(learner: DilatedFTRL, shape: tuple[int, ...], runs: int) -> Step:
    """The same by a loop over runs that each learn alone."""
    mdp = random_linear_mdp(shape[1], shape[2], shape[0], shape[3])
    tuning, tables = learner.tuning(mdp, EPISODES), _tables(shape)
    plain = [PlainLearner(mdp, tuning, seed, learner.reduction_samples or 0) for seed in range(runs)]

    def step() -> None:
        for run in plain:
            for k in range(_episodes(runs)):
                run.episode(tables[k % TABLES])

    return step


def _episodes(runs: int) -> int:
    """Episodes of each run in a call."""
    return max(1, IN_A_CALL // runs)


def ftrl_step(rounds: int) -> Step:
    """A learner from its first round on, with losses of 0 and 1."""

    def step() -> None:
        learner = FTRL("entropy", 2, 0.25, names=["a", "b"])
        for _ in range(rounds):
            arm = learner.sample()
            learner.update(arm, float(arm == "b"))

    return step


def _tables(shape: Sequence[int]) -> NDArray[np.float64]:
    """[TABLES, H, S, A]."""
    return np.random.default_rng(1).random((TABLES, *shape[:3]))
