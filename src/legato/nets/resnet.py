"""A small residual network with batch normalisation (He et al. 2016, arXiv 1512.03385, the CIFAR form with one block a stage)."""

from torch import Tensor, nn
from torch.nn import functional as F

from legato.nets.shapes import picture


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; the first may halve the picture and widen the channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        return F.relu(self.body(x) + self.shortcut(x))


def resnet(input_shape: tuple[int, ...], num_classes: int, *, width: int = 16) -> nn.Module:
    """ResNet-8: three residual blocks of `width`, 2 `width` and 4 `width` channels: [B, C, H, W] -> logits [B, num_classes].

    Args:
        input_shape: (C, H, W), of any size; made for 8 to 32 pixels.
        num_classes: number of logits.
        width: channels of the first stage.
    Raises: LegatoValueError for inputs that are no pictures.
    """
    channels, _, _ = picture("resnet", input_shape)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )
