"""A network as a function of one flat vector of weights."""

from collections.abc import Callable
from typing import TypeAlias, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from legato import errors
from legato.distillation.inner_loop import Part, StepLoss

NetFactory: TypeAlias = Callable[[], nn.Module]
"""Makes a network with random weights."""


@final
class FlatModel:
    """`flat(theta, inputs)`: the outputs of a network whose parameters are cut from theta [P], in the order of `named_parameters`.

    The network's own weights are neither used nor changed.

    Args:
        model: without running statistics and without dropout: calls with equal theta must be equal.
    Raises: LegatoValueError for layers with running statistics or dropout, and for a network without parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        _check(model)
        self.model = model
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.size = sum(shape.numel() for shape in self.shapes.values())

    def __repr__(self) -> str:
        return f"FlatModel({type(self.model).__name__}, {self.size} weights)"

    def __call__(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """The outputs for inputs [B, ...] at the weights theta [P]."""
        outputs: Tensor = functional_call(self.model, self.named(theta), (inputs,))
        return outputs

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Name -> view of theta [P] in the parameter's shape."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        return {
            name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), theta.split(sizes), strict=True)
        }

    def weights(self) -> Tensor:
        """The network's own weights now, a copy [P]: `.cpu()` of what is there already would be that very memory."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.model.parameters()]).clone()

    def load_(self, theta: Tensor) -> None:
        """Write theta [P] into the network."""
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), self.named(theta).values(), strict=True):
                parameter.copy_(value)

    def cross_entropy(self) -> StepLoss:
        """The `StepLoss` of classification: mean cross-entropy; labels are int64 [b] or probabilities [b, C]."""

        def step_loss(theta: Tensor, images: Tensor, labels: Tensor, part: Part) -> Tensor:
            return F.cross_entropy(self(theta, images), labels)

        return step_loss


def fresh(net: NetFactory, seed: int) -> nn.Module:
    """A network with the random weights of a seed; the global random numbers are as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return net()


def _check(model: nn.Module) -> None:
    for name, module in model.named_modules():
        word = f"{type(module).__name__} ({name or 'the network itself'})"
        if isinstance(module, _NormBase) and module.track_running_stats:
            raise errors.argument(
                "net", expected="no running statistics: going back through a run would meet other ones", got=word,
                fix="GroupNorm, or instance norm as nn.GroupNorm(channels, channels)",
            )  # fmt: skip
        if (isinstance(module, _DropoutNd) and module.p) or (isinstance(module, nn.RNNBase) and module.dropout):
            raise errors.argument(
                "net", expected="no dropout: going back through a run would draw afresh", got=word, fix="p=0"
            )
    if not list(model.parameters()):
        raise errors.argument("net", expected="a network with parameters", got=type(model).__name__)
