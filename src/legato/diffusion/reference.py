"""The reference that a preference is measured against: the same network with its adapters off, and errors that need be computed once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from legato import errors


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[int]:
    """Within, the adapters of `model` do nothing, so it is the network that they were added to; gives how many layers have some.

    What is trainable is the same afterwards. Put the pass within under `torch.no_grad()`.
    Raises: LegatoValueError for a model without adapters, adapters that are merged into the weights, and other weights that are trainable.
    """
    layers: list[Any] = []
    if any(".lora_" in name for name, _ in model.named_parameters()):
        kind = errors.require("peft.tuners.tuners_utils", extra="diffusion").BaseTunerLayer
        layers = [module for module in model.modules() if isinstance(module, kind)]
    if not layers:
        raise errors.argument(
            "reference", expected="a network with adapters, which are off for the reference", got="a network without",
            fix="add_lora(model), or give a frozen copy of the network as reference",
        )  # fmt: skip
    if any(layer.merged for layer in layers):
        raise errors.argument(
            "reference", expected="adapters beside the weights", got="adapters that are merged into them",
            fix="unmerge them: the network that they were added to is gone otherwise",
        )  # fmt: skip
    others = [name for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name]
    if others:
        raise errors.argument(
            "reference", expected="a network of which only adapters are trained", got=f"{others[0]} and {len(others) - 1} others that are trained too",
            fix="freeze them, or give a frozen copy of the network as reference: they would move both",
        )  # fmt: skip
    active = [layer for layer in layers if not layer.disable_adapters]
    trainable = [(p, p.requires_grad) for layer in active for p in layer.parameters()]
    for layer in active:
        layer.enable_adapters(False)
    try:
        yield len(layers)
    finally:
        for layer in active:
            layer.enable_adapters(True)
        for parameter, flag in trainable:  # peft makes all of an adapter trainable that it switches on
            parameter.requires_grad_(flag)


@final
class ReferenceErrors:
    """A fixed bank of timesteps and noises for each pair, and the reference's errors there once they are known.

    In epoch e each pair has its draw number e mod `draws`, so that the reference is run in the first `draws` epochs and never again.
    A finite bank changes what is sampled: a pair sees `draws` noises in all. Samples and controls must be the same in each epoch.

    Args:
        pairs: N.
        levels: T; the timesteps are uniform over 0 .. T - 1.
        draws: >= 1, of each pair.
        seed: of the bank.
    Raises: LegatoValueError for numbers out of range.
    """

    def __init__(self, pairs: int, levels: int, draws: int = 16, *, seed: int = 0) -> None:
        for name, number in (("pairs", pairs), ("levels", levels), ("draws", draws)):
            if number < 1:
                raise errors.argument(name, expected="a whole number >= 1", got=number)
        self.pairs, self.levels, self.draws, self.seed = pairs, levels, draws, seed
        self.table = torch.full((draws, pairs, 2), torch.nan, dtype=torch.float64)

    def draw(self, index: Tensor, epoch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(t [B], noise [B, ...]) of the pairs `index` [B] in an epoch, in the type and place of `like` [B, ...].

        Raises: LegatoValueError for a pair out of range.
        """
        rows = self._rows(index)
        drawn = [self._one(row, epoch % self.draws, like) for row in rows]
        t, noise = (torch.stack(parts).to(like.device) for parts in zip(*drawn, strict=True))
        return t, noise

    def read(self, index: Tensor, epoch: int, like: Tensor) -> Tensor | None:
        """[2, B] of winner and loser, in the type and place of `like`; None unless all of them are known."""
        found = self.table[epoch % self.draws, self._rows(index)].T
        return found.to(like) if bool(found.isfinite().all()) else None

    def write(self, index: Tensor, epoch: int, found: Tensor) -> None:
        """Keep [2, B]."""
        self.table[epoch % self.draws, self._rows(index)] = found.detach().cpu().double().T

    def state_dict(self) -> dict[str, Any]:
        """What is known, and what it is of."""
        return {"table": self.table, "levels": self.levels, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises: LegatoValueError for a bank of other pairs, levels, draws or seed: its errors are of other noises.
        """
        got, own = ((s["levels"], s["seed"], *s["table"].shape[:2]) for s in (state, self.state_dict()))
        if got != own:
            raise errors.argument("reference errors", expected=f"levels, seed, draws, pairs {own}", got=got)
        self.table = state["table"].clone()

    def _rows(self, index: Tensor) -> list[int]:
        rows: list[int] = index.tolist()
        if rows and not 0 <= min(rows) <= max(rows) < self.pairs:
            raise errors.argument(
                "index", expected=f"pairs in 0 .. {self.pairs - 1}", got=f"{min(rows)} .. {max(rows)}"
            )
        return rows

    def _one(self, row: int, slot: int, like: Tensor) -> tuple[Tensor, Tensor]:
        generator = Generator().manual_seed((self.seed * self.draws + slot) * self.pairs + row)
        t = torch.randint(self.levels, (), generator=generator)
        return t, torch.randn(like.shape[1:], dtype=like.dtype, generator=generator)
