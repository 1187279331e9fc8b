"""A live page of a run: TensorBoard, trackio or wandb, reached through Accelerate's trackers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from legato import errors

_TRACKERS = {"tensorboard": "TensorBoardTracker", "trackio": "TrackioTracker", "wandb": "WandBTracker"}


@final
class Tracker:
    """A `log` for `fit`: call it with an epoch's metrics; close it, or use it in `with`, when the run is over."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Send the finite numbers among `metrics`, at the optimizer step that they name."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self._backend.log(numbers, step=numbers.pop("step", None))

    def close(self) -> None:
        """Write what waits."""
        self._backend.finish()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *problem: Any) -> None:
        self.close()


def tracker(name: str, folder: Path, *, run: str = "run", config: Mapping[str, Any] | None = None) -> Tracker:
    """Open a tracker.

    Args:
        name: "tensorboard", "trackio" or "wandb".
        folder: TensorBoard and wandb write in it; trackio keeps its own folder, `$TRACKIO_DIR`.
        run: the run's name; with trackio and wandb, the project's.
        config: numbers and words shown beside the curves.
    Raises: LegatoValueError for another name; MissingExtraError when its package is not installed.
    """
    if name not in _TRACKERS:
        raise errors.choice("track", name, _TRACKERS)
    errors.require(name, extra="track")
    from accelerate import PartialState, tracking

    PartialState()  # the trackers ask it which process they are in
    place = {"tensorboard": {"logging_dir": str(folder)}, "wandb": {"dir": str(folder)}, "trackio": {}}[name]
    backend = getattr(tracking, _TRACKERS[name])(run, **place)
    backend.start()
    if config:
        backend.store_init_configuration(dict(config))
    return Tracker(backend)
