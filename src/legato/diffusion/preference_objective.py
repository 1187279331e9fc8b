"""The objective of condition preference for the training loop: one noisy sample, two controls, four errors."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from legato import errors
from legato.diffusion.denoiser import Condition
from legato.diffusion.pairs import check_pairs, mean_squared_errors
from legato.diffusion.preference import ConditionPreference
from legato.diffusion.reference import ReferenceErrors
from legato.diffusion.schedule import NoiseSchedule
from legato.training import Batch

ByIndex = Callable[[Tensor], Condition]
"""index [B] -> the condition of these rows, such as their texts."""


@final
class ConditionPreferenceObjective:
    """mean E(winner) + weight * preference; a batch is (x0 [B, ...], controls [B, 2, Cc, h, w] with the winner first, index [B]).

    The winner's error is an unbiased denoising loss, so it stands in the place of the pass of its own that the released code makes.
    The model is called as model(x_t, t, control=[2, B, ...], reference=True, **condition) and gives (policy, reference), as
    `ControlledUNet` and `ConcatenatedControl` do.

    Args:
        schedule: levels and what the network predicts.
        preference: the loss of the four errors.
        weight: >= 0, of the preference. The released code multiplies the denoising loss by 0.02 to 0.1 instead, which is
            weight = 50 to 10 but for the length of the step.
        condition: of the rows, beside the control; None for none.
        cached: a bank of noises whose reference errors are kept; None draws anew in each step.
        window: levels (first, last), both included, whose pairs count in the preference; the denoising loss counts at all levels. None is
            1 .. T - 1, as in the released code. Where it leaves out pairs, gradients of accumulated batches weigh those that are left by batch.
        seed: of timesteps and noise; several processes need a seed each.
    Raises: LegatoValueError for a weight or window out of range.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        preference: ConditionPreference,
        *,
        weight: float = 1.0,
        condition: ByIndex | None = None,
        cached: ReferenceErrors | None = None,
        window: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise errors.argument("weight", expected="a number >= 0", got=weight)
        window = (1, len(schedule) - 1) if window is None else window
        if not 0 <= window[0] <= window[1] < len(schedule):
            raise errors.argument("window", expected=f"two levels in 0 .. {len(schedule) - 1}, rising", got=window)
        if cached is not None and cached.levels != len(schedule):
            raise errors.argument("cached", expected=f"a bank of {len(schedule)} levels", got=cached.levels)
        self.schedule, self.preference, self.weight = schedule, preference, weight
        self.condition, self.cached, self.window = condition, cached, window
        self.generator = Generator().manual_seed(seed)
        self.epoch, self._checked = 0, False

    def begin_epoch(self, epoch: int) -> None:
        """Say which epoch, counted from 0, is about to begin."""
        self.epoch = epoch

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The loss of a batch, a scalar.

        Raises: LegatoValueError, in the first batch, for controls that are no pairs (`check_pairs`).
        """
        x0, controls, index = batch
        pairs = self._pairs(x0, controls)
        t, noise = self._noise(x0, index)
        condition = {} if self.condition is None else self.condition(index)
        known = None if self.cached is None else self.cached.read(index, self.epoch, x0)
        x, told = self.schedule.noisy(x0, noise, t), self.schedule.told(t, x0)
        said = model(x, told, control=pairs, reference=known is None, **condition)
        target = self.schedule.target(x0, noise, t)
        if known is None:
            policy, before = said
            known = mean_squared_errors(before, target)
            if self.cached is not None:
                self.cached.write(index, self.epoch, known)
        else:
            policy = said
        found = mean_squared_errors(policy, target)
        counts = (t >= self.window[0]) & (t <= self.window[1])
        return found[0].mean() + self.weight * self.preference(found[0], found[1], known[0], known[1], counts)

    def after_step(self, model: nn.Module) -> None:
        """Nothing to do."""

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """The gradients of the loss itself."""
        return closure()

    def state_dict(self) -> dict[str, Any]:
        """The generator, the epoch, and the state of the preference and of the bank."""
        cached = None if self.cached is None else self.cached.state_dict()
        return {
            "generator": self.generator.get_state(), "epoch": self.epoch, "preference": self.preference.state_dict(), "cached": cached,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken."""
        self.generator.set_state(state["generator"].cpu())
        self.epoch = state["epoch"]
        self.preference.load_state_dict(state["preference"])
        if self.cached is not None:
            self.cached.load_state_dict(state["cached"])

    def _pairs(self, x0: Tensor, controls: Tensor) -> Tensor:
        """[2, B, ...], winner first."""
        if controls.dim() != x0.dim() + 1 or controls.shape[1] != 2:
            raise errors.argument(
                "controls", expected="shape [B, 2, Cc, h, w], winner and loser of each sample", got=list(controls.shape),
                fix="torch.stack([winner, loser], 1)",
            )  # fmt: skip
        pairs = controls.transpose(0, 1)
        if not self._checked:
            check_pairs(x0, *pairs)
            self._checked = True
        return pairs

    def _noise(self, x0: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        if self.cached is not None:
            return self.cached.draw(index, self.epoch, x0)
        t = torch.randint(len(self.schedule), (len(x0),), generator=self.generator)
        noise = torch.randn(x0.shape, dtype=x0.dtype, generator=self.generator)
        return t.to(x0.device), noise.to(x0.device)
