"""Pictures that only one objective gets right, kept beside the results so that the page needs no data set."""

import numpy as np
from numpy.typing import NDArray

from legato.data import Splits
from legato.lab.store import Store
from legato.studies.result import Result

MOST = 24
NAME = "examples"


def save(store: Store, result: Result, splits: Splits) -> None:
    """Write up to 24 test pictures; nothing for data without pictures or for a single objective."""
    if not splits.is_image or len(result.plan.arms) < 2:
        return
    found = [pick for noise in result.plan.label_noise for pick in _only_one_right(result, noise)]
    share = max(1, MOST // (len(result.plan.label_noise) * len(result.plan.arms)))
    kept = [pick for group in _by_arm(found) for pick in group[:share]][:MOST]
    rows = np.array([row for row, _, _, _ in kept], dtype=np.int64)
    store.write_arrays(
        NAME,
        {
            "images": splits.test.inputs.numpy()[rows],
            "arm": np.array([arm for _, arm, _, _ in kept], dtype=np.int64),
            "noise": np.array([noise for _, _, noise, _ in kept], dtype=np.float64),
            "margin": np.array([margin for _, _, _, margin in kept], dtype=np.float64),
            "true": splits.test.targets.numpy()[rows],
        },
    )


def _only_one_right(result: Result, noise: float) -> list[tuple[int, int, float, float]]:
    """(test row, arm, noise, margin): items where one arm is right in most seeds and every other arm in few, widest margin first."""
    right = np.stack([_share_right(result, noise, arm) for arm in result.plan.arms])
    picks = []
    for arm in range(len(right)):
        margin = right[arm] - np.delete(right, arm, axis=0).max(axis=0)
        rows = [row for row in np.argsort(-margin, kind="stable")[:MOST] if margin[row] >= 0.5]
        picks += [(int(row), arm, noise, float(margin[row])) for row in rows]
    return picks


def _share_right(result: Result, noise: float, arm: str) -> NDArray[np.float64]:
    tables = [result.arrays(config) for config in result.readings(noise, arm)]
    shares: NDArray[np.float64] = (
        np.stack([t["prediction"] == t["true"] for t in tables]).astype(np.float64).mean(axis=0)
    )
    return shares


def _by_arm(picks: list[tuple[int, int, float, float]]) -> list[list[tuple[int, int, float, float]]]:
    groups: dict[tuple[float, int], list[tuple[int, int, float, float]]] = {}
    for pick in picks:
        groups.setdefault((pick[2], pick[1]), []).append(pick)
    return list(groups.values())
