"""Attacks of other packages on the same model and the same inputs: torchattacks and AutoAttack, if they are installed.

Both want inputs in [0, 1] and one radius in that unit. The adapters rescale from the bounds that the model's inputs have, and back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.losses.attacks import Attack, held_still
from legato.losses.ball import Bound

INSTALL = {
    "torchattacks": "pip install --no-deps torchattacks==3.5.1",
    "autoattack": "pip install --no-deps git+https://github.com/fra31/auto-attack",
}
NORMS = {"linf": "Linf", "l2": "L2"}


def run_torchattacks(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    radius: float | None,
    bounds: tuple[Bound, Bound],
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Attacked inputs [B, ...] from the class `name` of torchattacks, such as "PGD", "APGD", "CW" or "AutoAttack".

    The package needs torch alone for this, though it asks for torchvision when it is installed with its dependencies.

    Args:
        model: inputs [B, ...] -> scores [B, C]; attacked in evaluation mode, and given back in the mode it was in.
        x, y: clean inputs within bounds, and classes int64 [B].
        radius: in the units of x, handed over as `eps`; None for attacks that have none. Which norm it is in is the attack's affair.
        bounds: as in `legato.losses.attacks.pgd`, finite and of one width everywhere.
        seed: of torch's global random numbers while the attack runs; they are put back afterwards.
        options: of the attack, in its own words and in units of [0, 1]: `alpha=2/255, steps=10`.
    Raises: MissingExtraError without the package; LegatoValueError for an unknown attack and for bounds or inputs that do not fit.
    """
    package = _required("torchattacks")
    made = getattr(package, name, None)
    if not isinstance(made, type):
        raise errors.choice("name", name, [n for n, value in vars(package).items() if isinstance(value, type)])
    unit = _Unit(model, bounds)
    eps = {} if radius is None else {"eps": _checked(radius, bounds, "linf", x, y) / unit.width}
    with held_still(model, "eval"), _seeded(x, seed):
        attacked: Tensor = made(unit, **eps, **options)(unit.shrink(x), y)
    return unit.stretch(attacked.detach()).to(x)


def run_autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    bounds: tuple[Bound, Bound],
    norm: str = "linf",
    version: str = "standard",
    batch_size: int = 250,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Attacked pictures [B, C, H, W] from AutoAttack, the usual yardstick. On the device of x, where the package assumes a GPU.

    Args:
        model, x, y, bounds: as in `run_torchattacks`.
        radius: > 0, in the units of x.
        norm: "linf" or "l2".
        version: "standard", "plus", "rand" or "custom" of the package. "standard" tries 9 wrong classes, so it asks for at least 10 and,
            with fewer, wants `version="custom", attacks_to_run=[...]`.
        batch_size: rows at a time.
        seed: of its starts; torch's global random numbers are put back afterwards.
        options: of `autoattack.AutoAttack`, in its own words.
    Raises: MissingExtraError without the package; LegatoValueError for inputs that are no pictures and for bounds that do not fit.
    """
    package = _required("autoattack")
    if norm not in NORMS:
        raise errors.choice("norm", str(norm), NORMS)
    if x.dim() != 4:
        raise errors.argument(
            "inputs", expected="pictures [B, C, H, W], as AutoAttack does", got=f"shape {list(x.shape)}"
        )
    unit = _Unit(model, bounds)
    eps = _checked(radius, bounds, norm, x, y) / unit.width
    settings = {"norm": NORMS[norm], "eps": eps, "version": version, "seed": seed, "verbose": False, **options}
    with held_still(model, "eval"), _seeded(x, seed):
        attack = package.AutoAttack(unit, device=str(x.device), **settings)
        attacked: Tensor = attack.run_standard_evaluation(unit.shrink(x), y, bs=batch_size)
    return unit.stretch(attacked.detach()).to(x)


@final
class _Unit(nn.Module):
    """A model on inputs that were shrunk from their bounds to [0, 1]."""

    def __init__(self, model: nn.Module, bounds: tuple[Bound, Bound]) -> None:
        super().__init__()
        self.model = model
        low, high = (torch.as_tensor(bound, dtype=torch.float64).cpu() for bound in bounds)
        widths = high - low
        if not bool(widths.isfinite().all()) or float(widths.max() - widths.min()) > 1e-6 * float(widths.max()):
            raise errors.argument(
                "bounds", expected="finite bounds of one width, since these packages know one radius",
                got=f"widths from {float(widths.min()):.6g} to {float(widths.max()):.6g}",
                fix="make the standardisation the model's first layer and attack inputs in [0, 1]",
            )  # fmt: skip
        self.low, self.width = low, float(widths.mean())
        self.training = False  # so that no package calls train() on it, and with it on layers that are frozen

    def forward(self, u: Tensor) -> Tensor:
        """The model's scores for inputs u in [0, 1]."""
        scores: Tensor = self.model(self.stretch(u))
        return scores

    def stretch(self, u: Tensor) -> Tensor:
        """From [0, 1] to the bounds."""
        return u * self.width + self.low.to(u)

    def shrink(self, x: Tensor) -> Tensor:
        """From the bounds to [0, 1]; rounding may not leave it."""
        return ((x.detach() - self.low.to(x)) / self.width).clamp(0, 1)


def _checked(radius: float, bounds: tuple[Bound, Bound], norm: str, x: Tensor, y: Tensor) -> float:
    """The radius, once it and the inputs have passed the checks of our own attacks."""
    Attack(radius, bounds, norm).check(x, y, values=True)
    return radius


@contextmanager
def _seeded(x: Tensor, seed: int) -> Iterator[None]:
    """torch's global random numbers from `seed`, and afterwards as they were."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        yield


def _required(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as problem:
        text = f"{package} is needed here and is not installed. Fix: {INSTALL[package]}."
        raise errors.MissingExtraError(text) from problem
