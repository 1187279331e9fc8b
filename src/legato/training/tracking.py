"""A live page of a run: TensorBoard, trackio or wandb, reached through Accelerate's trackers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from legato import errors

PROJECT = "legato"
"""What trackio and wandb group the runs under."""

_TRACKERS = {"tensorboard": "TensorBoardTracker", "trackio": "TrackioTracker", "wandb": "WandBTracker"}


@final
class Tracker:
    """A `log` for `fit`: call it with an epoch's metrics; close it, or use it in `with`, when the run is over."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Send the finite numbers among `metrics`, at the optimizer step that they name."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        step = numbers.pop("step", None)
        self._backend.log({name: value for name, value in numbers.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        """Write what waits."""
        self._backend.finish()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *problem: Any) -> None:
        self.close()


def tracker(name: str, folder: Path, *, run: str = "run", config: Mapping[str, Any] | None = None) -> Tracker:
    """Open a tracker.

    It makes Accelerate's state of this process, so an Accelerator with settings of its own must be made before it.

    Args:
        name: "tensorboard", "trackio" or "wandb".
        folder: TensorBoard and wandb write in it; trackio keeps its own folder, `$TRACKIO_DIR`.
        run: the run's name, and with TensorBoard its folder in `folder`; trackio and wandb file it under `legato`.
        config: shown beside the curves; what is no number or string is shown as its text.
    Raises: LegatoValueError for another name; MissingExtraError when its package is not installed.
    """
    if name not in _TRACKERS:
        raise errors.choice("track", name, _TRACKERS)
    errors.require(name, extra="track")
    from accelerate import PartialState, tracking

    PartialState()  # the trackers ask it which process they are in
    backend = getattr(tracking, _TRACKERS[name])(**_settings(name, Path(folder), run))
    backend.start()
    if config:
        plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in config.items()}
        backend.store_init_configuration(plain)
    return Tracker(backend)


def _settings(name: str, folder: Path, run: str) -> dict[str, Any]:
    if name == "tensorboard":
        return {"run_name": run, "logging_dir": str(folder)}
    if name == "wandb":
        folder.mkdir(parents=True, exist_ok=True)  # else wandb writes to the system's temporary folder
        return {"run_name": PROJECT, "name": run, "dir": str(folder)}
    # trackio would measure processor, network and graphics card of its own accord.
    return {"run_name": PROJECT, "name": run, "embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
