"""Inputs as a network wants them: float32 with mean 0 and standard deviation 1, or images in 0 .. 1."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from legato.data.splits import Split, Splits


def standardize(splits: Splits) -> Splits:
    """Subtract the mean and divide by the standard deviation, per channel of images (first divided by 255) or per column of vectors.

    The statistics come from the training split alone. A channel or column that is constant there becomes 0.
    """
    shape = [1, -1, *[1] * (splits.train.inputs.dim() - 2)]
    mean, deviation = (statistic.view(shape) for statistic in moments(splits))
    constant = deviation < 1e-8
    divisor = deviation.masked_fill(constant, 1)

    def scaled(inputs: Tensor) -> Tensor:  # in place, on a copy: each new buffer would cost more than the sums
        copy = inputs.clone() if inputs.is_floating_point() else _unit(inputs)
        return copy.sub_(mean).div_(divisor).masked_fill_(constant, 0)

    return _with_inputs(splits, scaled)


def moments(splits: Splits) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the training split, [C] for each channel (of 0 .. 1) or [D] for each column."""
    train = _unit(splits.train.inputs)
    axes = (0, 2, 3) if splits.is_image else (0,)
    return train.mean(axes), train.std(axes, correction=0)


def to_unit(splits: Splits) -> Splits:
    """Images as float32 in 0 .. 1; vectors as they are."""
    return _with_inputs(splits, _unit)


def _with_inputs(splits: Splits, change: Callable[[Tensor], Tensor]) -> Splits:
    def changed(split: Split) -> Split:
        return replace(split, inputs=change(split.inputs))

    return replace(
        splits, train=changed(splits.train), validation=changed(splits.validation), test=changed(splits.test)
    )


def _unit(inputs: Tensor) -> Tensor:
    return inputs if inputs.is_floating_point() else inputs.float().div_(255)
