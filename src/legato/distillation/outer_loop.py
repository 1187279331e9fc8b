"""The outer loop: images and step size, moved until training on them ends where experts went."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from legato import errors
from legato.distillation.augmentation import DSA
from legato.distillation.experts import Expert
from legato.distillation.flat import FlatModel
from legato.distillation.inner_loop import OuterLoss, Part, StepLoss, unrolled_grad
from legato.distillation.matching import Match, balance, mid_points, perturbed
from legato.distillation.rows import Rows
from legato.distillation.settings import Settings


class NotFiniteError(errors.LegatoError):
    """A step whose loss or gradient is not finite; images and step size are as they were before it."""


@final
class OuterLoop:
    """`loop.step()` moves the images once.

    A step draws an expert and a start epoch t, trains a student from there for N steps on the images, and takes the exact gradient of
    the matching loss at the expert's epoch t + M. Images move by SGD with momentum 0.5 and a capped gradient, log(alpha) by Adam.

    Args:
        flat: the network.
        experts: at least one; all their entries 0 .. T+ - 1 + M.
        rows: images as the network sees them, and their labels; on one device.
        settings: how.
    Raises: LegatoValueError for an expert that did not move.
    """

    def __init__(self, flat: FlatModel, experts: Sequence[Expert], rows: Rows, settings: Settings) -> None:
        _check_moves(experts, settings)
        self.flat, self.experts, self.settings = flat, experts, settings
        self.images, self.labels = rows[0].detach().clone(), rows[1]
        self.log_alpha = torch.tensor(settings.alpha, device=self.images.device).log()
        self.generator = Generator().manual_seed(settings.seed)
        self.pixels = torch.optim.SGD([self.images], settings.lr_pixels, momentum=0.5)
        self.rate = torch.optim.Adam([self.log_alpha], settings.lr_alpha)
        self.largest = settings.cap * float(self.images.norm()) / settings.lr_pixels
        self.left = torch.zeros(0, dtype=torch.int64)  # of the present permutation of the images
        self.taken = 0

    @property
    def alpha(self) -> float:
        """The learned step size, > 0."""
        return float(self.log_alpha.exp())

    def step(self) -> float:
        """Move once; gives the matching loss at the end of the student's run: below 1 it came nearer than its start.

        Raises: NotFiniteError.
        """
        settings = self.settings
        expert = self.experts[self._drawn(len(self.experts))]
        epoch = self._drawn(settings.max_start)
        start = self._start(expert, epoch)
        alpha = self.log_alpha.exp() * (balance(epoch, settings.max_start) if settings.balance else 1.0)
        batches = [self._batch() for _ in range(settings.student_steps)]
        found = unrolled_grad(
            self._step_loss(batches), start, self.images, self.labels, batches, self._outer(expert, epoch, start), alpha=alpha,
            momentum=settings.momentum, micro_batch=settings.micro_batch,
        )  # fmt: skip
        if not bool(found.loss.isfinite() & found.images_grad.isfinite().all() & found.alpha_grad.isfinite()):
            raise NotFiniteError(
                f"outer step {self.taken}: the loss or its gradient is not finite. Fix: a lower lr_pixels or alpha."
            )
        self.images.grad, self.log_alpha.grad = found.images_grad, alpha * found.alpha_grad
        nn.utils.clip_grad_norm_(self.images, self.largest)
        self.pixels.step()
        self.rate.step()
        self.taken += 1
        return float(found.losses[settings.student_steps])

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "images": self.images, "log_alpha": self.log_alpha, "generator": self.generator.get_state(), "left": self.left,
            "pixels": self.pixels.state_dict(), "rate": self.rate.state_dict(), "taken": self.taken,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken, to the same images."""
        with torch.no_grad():
            self.images.copy_(state["images"])
            self.log_alpha.copy_(state["log_alpha"])
        self.generator.set_state(state["generator"].cpu())
        self.pixels.load_state_dict(state["pixels"])
        self.rate.load_state_dict(state["rate"])
        self.left, self.taken = state["left"].cpu(), state["taken"]

    def _drawn(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.generator))

    def _start(self, expert: Expert, epoch: int) -> Tensor:
        theta = expert.at(epoch).to(self.images)
        if not self.settings.perturb:
            return theta
        moved = perturbed(self.flat.named(theta), self.settings.perturb, generator=self.generator)
        return torch.cat([part.reshape(-1) for part in moved.values()])

    def _outer(self, expert: Expert, epoch: int, start: Tensor) -> dict[int, OuterLoss]:
        s = self.settings
        goals = mid_points(s.student_steps, s.expert_epochs, s.mid_points) | {s.student_steps: (s.expert_epochs, 1.0)}
        return {step: Match(expert.at(epoch + j).to(start), start, weight) for step, (j, weight) in goals.items()}

    def _batch(self) -> Tensor:
        """The next rows of a permutation of the images, shuffled again when it is used up."""
        rows, size = len(self.images), self.settings.batch
        if size is None or size >= rows:
            return torch.arange(rows)
        if not len(self.left):
            self.left = torch.randperm(rows, generator=self.generator)
        batch, self.left = self.left[:size], self.left[size:]
        return batch

    def _step_loss(self, batches: Sequence[Tensor]) -> StepLoss:
        plain = self.flat.cross_entropy()
        if not self.settings.augment:
            return plain
        dsa = DSA()
        draws = [dsa.draw(len(batch), self.generator) for batch in batches]

        def augmented(theta: Tensor, images: Tensor, labels: Tensor, part: Part) -> Tensor:
            return plain(theta, dsa(images, draws[part.step].rows(part.start, len(images))), labels, part)

        return augmented


def _check_moves(experts: Sequence[Expert], settings: Settings) -> None:
    for i, expert in enumerate(experts):
        for epoch in range(settings.max_start):
            if torch.equal(expert.at(epoch), expert.at(epoch + settings.expert_epochs)):
                raise errors.argument(
                    "experts", expected="experts that move", got=f"expert {i} did not from epoch {epoch} to {epoch + settings.expert_epochs}",
                    fix="a larger learning_rate, or dtype=torch.float32",
                )  # fmt: skip
