"""The program that torchrun starts twice, and the runs that one process does for comparison.

`OUT`: each process writes what it found to OUT/rank0.pt or OUT/rank1.pt.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from small_run import NanAt, Sam, Stop, StoppingBatches, digits, fit, losses, net, rows, weights

from legato import errors, training
from legato.data import Batches
from legato.training import run as loop
from legato.training.objective import Batch

ROWS = 250
"""Eight batches of 32, the last of 26: 13 in each of two processes."""
PRECISE = torch.float64
EXACT: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate": 3},
    "clipped": {"clip_norm": 0.05},
    "averaged": {"ema_decay": 0.8, "accumulate": 2, "clip_norm": 0.5},
    "adam": {"optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.003)},
}
"""Options of the runs that must agree to the rounding of float64."""


def share(accelerator: Any, count: int = ROWS, **options: Any) -> Batches:
    """The batches of this process."""
    if accelerator is not None:
        options |= {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    return digits(count, dtype=PRECISE, **options)


class Uneven:
    """Three quarters of each batch go to the first process, the rest to the others."""

    def __init__(self, accelerator: Any) -> None:
        self.whole, self.accelerator = share(None), accelerator

    def __len__(self) -> int:
        return len(self.whole)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for batch in self.whole.epoch(epoch):
            cut = 3 * len(batch[0]) // 4
            own = (
                slice(None)
                if self.accelerator is None
                else (slice(cut), slice(cut, None))[self.accelerator.process_index]
            )
            yield tuple(part[own] for part in batch)  # type: ignore[misc]


def summary(fitted: training.Fitted) -> dict[str, Any]:
    return {
        "weights": weights(fitted.model),
        "losses": losses(fitted),
        "errors": [entry.get("validation_error") for entry in fitted.history],
        "steps": fitted.steps,
        "diverged": fitted.diverged,
        "best": fitted.best and fitted.best.value,
    }


def precise(**options: Any) -> training.Fitted:
    x, y, _ = rows(100, PRECISE)
    settings: dict[str, Any] = {
        "model": net().double(),
        "epochs": 3,
        "validate": lambda model: {"validation_error": float((model(x).argmax(1) != y).double().mean())},
    }
    return fit(**settings | options)


def compare(accelerator: Any) -> dict[str, dict[str, Any]]:
    """The runs that are the same in one process and in several."""
    found = {
        name: summary(precise(batches=share(accelerator), accelerator=accelerator, **options))
        for name, options in EXACT.items()
    }
    found["uneven"] = summary(precise(batches=Uneven(accelerator), accelerator=accelerator, accumulate=2))
    model = net().double()
    found["two gradients"] = summary(
        precise(model=model, objective=Sam(model), batches=share(accelerator), accelerator=accelerator, accumulate=2)
    )
    found["bf16"] = summary(
        precise(
            model=net(),
            validate=None,
            batches=digits(ROWS, **_place(accelerator)),
            accelerator=accelerator,
            autocast="bf16",
        )
    )
    return found


def _place(accelerator: Any) -> dict[str, int]:
    if accelerator is None:
        return {}
    return {"rank": accelerator.process_index, "world_size": accelerator.num_processes}


def stop_and_go_on(accelerator: Any, folder: Path, dropout: float, **options: Any) -> training.Fitted:
    """Break off in the middle of the second epoch, then go on with other weights and random numbers."""
    for after in (13, 10**6):
        torch.manual_seed(after)
        made = net(dropout).double()
        torch.manual_seed(1 + accelerator.process_index if after == 13 else 99)
        batches = StoppingBatches(share(accelerator), after)
        try:
            return precise(
                model=made, batches=batches, folder=folder, checkpoint_seconds=0, accelerator=accelerator, **options
            )
        except Stop:
            assert list(folder.glob("checkpoint-*"))
    raise AssertionError("never arrived here")


def refusal(**options: Any) -> str:
    try:
        precise(**options)
    except errors.LegatoError as problem:
        return f"{type(problem).__name__}: {problem}"
    return "no refusal"


def several_only(accelerator: Any, out: Path) -> dict[str, Any]:
    """What has no counterpart in one process."""
    loop.LOOK_EVERY = 3  # several processes look at the clock this seldom
    rank = accelerator.process_index
    found: dict[str, Any] = {}
    options = {"ema_decay": 0.8, "accumulate": 2, "clip_norm": 0.5}
    found["resumed"] = summary(stop_and_go_on(accelerator, out / "resumed", 0.0, **options))
    torch.manual_seed(1 + rank)
    made = net(0.5).double()
    torch.manual_seed(1 + rank)
    found["dropout whole"] = summary(precise(model=made, batches=share(accelerator), accelerator=accelerator))
    found["dropout resumed"] = summary(stop_and_go_on(accelerator, out / "dropout", 0.5))
    log: list[dict[str, Any]] = []
    bad = NanAt(7 if rank == 1 else -1)
    found["diverged"] = summary(
        precise(objective=bad, batches=share(accelerator), accelerator=accelerator, log=log.append)
    )
    found["logged"] = len(log)
    found["refused"] = {
        "without accelerator": refusal(batches=share(accelerator)),
        "same rows": refusal(batches=share(None), accelerator=accelerator),
        "other lengths": refusal(batches=share(accelerator, ROWS - 64 * rank), accelerator=accelerator),
    }
    os.environ["WORLD_SIZE"] = "3"
    found["refused"]["other processes"] = refusal(batches=share(accelerator), accelerator=accelerator)
    os.environ["WORLD_SIZE"] = "2"
    return found


def sharded() -> str:
    """What comes of asking Accelerate for FSDP on processors."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    asked = Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin())
    return refusal(batches=share(asked), accelerator=asked)


def main(out: Path) -> None:
    from accelerate import Accelerator

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    found: dict[str, Any] = {"compared": compare(accelerator), **several_only(accelerator, out)}
    found["refused"]["sharded"] = sharded()
    torch.save(found, out / f"rank{accelerator.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
