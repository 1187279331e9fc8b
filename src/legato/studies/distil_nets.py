"""Networks for distillation: factories that make a fresh one each time."""

from collections.abc import Callable
from functools import partial

from torch import nn

from legato import nets


def build(
    spec: str, input_shape: tuple[int, ...], num_classes: int, width: int = 16, depth: int | None = None
) -> Callable[[], nn.Module]:
    """A factory of the network that `spec` names, as `legato.nets.build` knows it; auto is blocks for pictures, else mlp.

    Width and depth are those of blocks; depth None goes by the size of the pictures.
    """
    if spec == "auto":
        spec = "blocks" if len(input_shape) == 3 else "mlp"
    if spec == "blocks":
        return partial(nets.blocks, input_shape, num_classes, width=width, depth=depth)
    return partial(nets.build, spec, input_shape, num_classes)
