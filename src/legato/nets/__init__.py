"""Small reference networks, and the way to a network of the user's own: `pkg.module:factory`."""

from torch import nn

from legato import errors
from legato.nets.blocks import blocks
from legato.nets.convnet import convnet
from legato.nets.denoiser import MLPDenoiser
from legato.nets.mlp import mlp
from legato.nets.own import Factory, own
from legato.nets.resnet import resnet
from legato.nets.standardise import Standardise

__all__ = ["MLPDenoiser", "Standardise", "blocks", "build", "convnet", "mlp", "resnet"]
NAMED: dict[str, Factory] = {"mlp": mlp, "convnet": convnet, "blocks": blocks, "resnet": resnet}


def build(spec: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The network that `spec` names, with torch's usual initialisation, so that `torch.manual_seed` fixes it.

    Args:
        spec: mlp, convnet, blocks, resnet, or `pkg.module:factory`, the import path (the current folder counts) of a
            `factory(input_shape, num_classes) -> Module`.
        input_shape: shape of one input: (D,) or (C, H, W).
        num_classes: number of logits.
    Raises: LegatoValueError for an unknown name, inputs that the network cannot take, and a path that cannot be imported or
        called or whose network does not map [B, *input_shape] to [B, num_classes].
    """
    shape = tuple(input_shape)
    if spec in NAMED:
        return NAMED[spec](shape, num_classes)
    if ":" not in spec:
        raise errors.choice("model", spec, [*NAMED, "pkg.module:factory"])
    return own(spec, shape, num_classes)
