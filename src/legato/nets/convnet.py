"""A small convolutional network for small pictures."""

from torch import nn

from legato.nets.shapes import picture


def convnet(input_shape: tuple[int, ...], num_classes: int, *, width: int = 16) -> nn.Module:
    """Two convolutions that halve the picture, then one hidden layer of 100 units: [B, C, H, W] -> logits [B, num_classes].

    Args:
        input_shape: (C, H, W), of any size; made for 8 to 32 pixels.
        num_classes: number of logits.
        width: channels of the first convolution; the second has twice as many.
    Raises: LegatoValueError for inputs that are no pictures.
    """
    channels, height, side = picture("convnet", input_shape)
    rows, columns = (-(-n // 4) for n in (height, side))  # halved twice, rounded up
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
