"""The moving average of a model's weights."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """torch's AveragedModel: average <- decay * average + (1 - decay) * weights after each step; buffers are copied.

    The first update copies the weights, so the average needs no bias correction. It is in eval mode.

    Args:
        model: the bare model; the average stands on its device.
        decay: in [0, 1); 1 / (1 - decay) steps is its memory.
    """
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.requires_grad_(False).eval()
    return average
