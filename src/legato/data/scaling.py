"""Inputs as a network wants them: float32 with mean 0 and standard deviation 1."""

from dataclasses import replace

from torch import Tensor

from legato.data.splits import Split, Splits


def standardize(splits: Splits) -> Splits:
    """Subtract the mean and divide by the standard deviation, per channel of images (first divided by 255) or per column of vectors.

    The statistics come from the training split alone. A channel or column that is constant there becomes 0.
    """
    axes = (0, 2, 3) if splits.is_image else (0,)
    train = _float(splits.train.inputs)
    mean, deviation = train.mean(axes, keepdim=True), train.std(axes, keepdim=True, correction=0)
    constant = deviation < 1e-8

    def scaled(split: Split) -> Split:
        inputs = ((_float(split.inputs) - mean) / deviation.masked_fill(constant, 1)).masked_fill(constant, 0)
        return replace(split, inputs=inputs)

    return replace(splits, train=scaled(splits.train), validation=scaled(splits.validation), test=scaled(splits.test))


def _float(inputs: Tensor) -> Tensor:
    return inputs if inputs.is_floating_point() else inputs.float() / 255
