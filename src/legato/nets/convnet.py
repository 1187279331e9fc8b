"""A small convolutional network for small pictures."""

from torch import nn


def convnet(input_shape: tuple[int, ...], num_classes: int, *, width: int = 16) -> nn.Module:
    """[B, C, H, W] pictures of at least 4 x 4 pixels: two strided convolutions, one hidden layer of 100 units, [B, num_classes] logits."""
    channels, height, side = input_shape
    rows, columns = ((n + 3) // 4 for n in (height, side))  # halved twice, rounded up
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * rows * columns, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )
