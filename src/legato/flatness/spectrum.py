"""The ends of the Hessian's spectrum: of all weights together, and of each layer or tensor alone."""

from typing import Any

from legato import errors
from legato.flatness.lanczos import Eigenpairs, lanczos
from legato.flatness.surface import Surface

GROUPS = ("layer", "tensor")


def top_eigenvalues(surface: Surface, k: int = 1, tol: float = 1e-6, **options: Any) -> Eigenpairs:
    """The k largest eigenvalues of the Hessian, sign included: the first is the curvature of the steepest valley wall.

    At a point that is no minimum they may be negative. An eigenvalue of large size and negative sign is at the other end; see
    `extreme_eigenvalues`.

    Args:
        surface: the loss; a single micro-batch that fits in memory is fastest.
        k: how many.
        tol: relative residual that is asked for; see `lanczos` for what it means, and for the cheaper rule "value".
        options: as in `lanczos`: rule, block, basis, max_products, vectors, generator.
    Raises: LegatoValueError for a number out of range, and for a loss, weights or data that are not finite.
    """
    return extreme_eigenvalues(surface, k, 0, tol, **options)


def extreme_eigenvalues(
    surface: Surface, top: int = 1, bottom: int = 1, tol: float = 1e-6, **options: Any
) -> Eigenpairs:
    """The `top` largest and the `bottom` smallest eigenvalues of the Hessian, sign included, from the same products.

    Args:
        surface, tol, options: as in `top_eigenvalues`.
        top, bottom: how many at each end.
    Returns: pairs by falling value, so that `values[0]` is the largest and `values[-1]` the smallest where both ends are asked for.
    """
    with surface.held() as product:
        return lanczos(
            product,
            surface.size,
            top=top,
            bottom=bottom,
            tol=tol,
            dtype=surface.dtype,
            device=surface.device,
            **options,
        )


def block_eigenvalues(
    surface: Surface, by: str = "layer", top: int = 1, bottom: int = 0, tol: float = 1e-6, **options: Any
) -> dict[str, Eigenpairs]:
    """The outermost eigenvalues of each diagonal block of the Hessian: how curved the loss is along the weights of one layer.

    The largest of a block is never above the largest of all, and the smallest never below the smallest.

    Args:
        surface, tol, options: as in `top_eigenvalues`.
        by: "layer", the weights of one module together, or "tensor", each alone.
        top, bottom: how many at each end; of a block with fewer weights than that, all, largest first.
    Returns: pairs for each layer or tensor, in the order of the model. A layer has the name of its module, "" for the model itself.
    Raises: LegatoValueError for an unknown grouping.
    """
    if by not in GROUPS:
        raise errors.choice("by", str(by), GROUPS)
    groups: dict[str, list[str]] = {}
    for name in surface.blocks:
        groups.setdefault(name if by == "tensor" else name.rpartition(".")[0], []).append(name)
    found = {}
    for group, names in groups.items():
        block = surface.restricted(names)
        upper = min(top, block.size)
        lower = min(bottom, block.size - upper)
        found[group] = extreme_eigenvalues(block, upper, lower, tol, **options)
    return found
