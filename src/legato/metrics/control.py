"""How well generated pictures keep to their control: F1 of edges, IoU of masks, SSIM and multi-scale SSIM, RMSE. A number or counts a picture."""

import torch
from torch import Tensor
from torch.nn import functional as F

from legato import errors

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, the finest first. Source: Wang, Simoncelli, Bovik 2003."""
SIGMA, REACH = 1.5, 5
"""Of the Gaussian windows, 11 x 11."""
IGNORED = 255
"""The class of pixels that have none."""


def edge_counts(detected: Tensor, control: Tensor, threshold: float = 0.5) -> Tensor:
    """int64 [N, 3] of pixels a picture: edges found, edges that are none, edges missed; an edge is what is above the threshold.

    Args:
        detected, control: [N, ...] maps in [0, 1].
        threshold: in [0, 1).
    Raises: LegatoValueError for shapes that differ, whole numbers, and values outside [0, 1].
    """
    if not 0 <= threshold < 1:
        raise errors.argument("threshold", expected="a number in [0, 1)", got=threshold)
    found, asked = (part.flatten(1) > threshold for part in _maps(detected, control))
    return torch.stack([(found & asked).sum(1), (found & ~asked).sum(1), (~found & asked).sum(1)], 1)


def f1_of_counts(counts: Tensor) -> Tensor:
    """F1 = 2 found / (2 found + none + missed) of counts [..., 3], float64 [...] in [0, 1].

    Of the sum over pictures it is the F1 of all pixels together, which is what CPO and ControlNet++ report. Where there is no edge and
    none was found it is 1; torchmetrics says 0.
    """
    found, none, missed = counts.double().unbind(-1)
    total = 2 * found + none + missed
    return torch.where(total > 0, 2 * found / total, 1.0)


def iou_counts(detected: Tensor, control: Tensor, num_classes: int, ignored: int = IGNORED) -> Tensor:
    """int64 [N, C, 2] of pixels a picture and class: in both masks, in either of them; pixels that the control ignores count nowhere.

    Args:
        detected: int64 [N, H, W], classes in 0 .. C - 1.
        control: int64 [N, H, W], also `ignored`.
        num_classes: C.
        ignored: the class that is none; a detected one outside 0 .. C - 1 is an error all the same.
    Raises: LegatoValueError for shapes, types or classes that do not fit.
    """
    for name, part in (("detected", detected), ("control", control)):
        if part.dtype != torch.int64 or part.dim() != 3 or part.shape != control.shape:
            got = f"{part.dtype} of shape {list(part.shape)}"
            raise errors.argument(name, expected="int64 classes [N, H, W], equal shapes", got=got)
    kept = (control != ignored).flatten(1)
    found, asked = detected.flatten(1), control.flatten(1)
    for name, classes in (("detected", found[kept]), ("control", asked[kept])):
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            got = f"{int(classes.min())} .. {int(classes.max())}"
            raise errors.argument(name, expected=f"classes in 0 .. {num_classes - 1}, or {ignored} to ignore", got=got)
    pairs = [((found == c) & kept, (asked == c) & kept) for c in range(num_classes)]
    return torch.stack([torch.stack([(a & b).sum(1), (a | b).sum(1)], 1) for a, b in pairs], 1)


def miou_of_counts(counts: Tensor) -> float:
    """Mean over classes of IoU, each of all pictures together: counts [N, C, 2] -> [0, 1]; classes in no mask are left out, NaN if all are."""
    both, either = counts.double().sum(0).unbind(-1)
    return float((both / either)[either > 0].mean())


def rmse(detected: Tensor, control: Tensor, unit: float = 255.0) -> Tensor:
    """Root of the mean squared difference of maps in [0, 1], a picture, times `unit`: float64 [N] in steps of a byte.

    Source: CPO reports the mean over pictures for depth.
    """
    a, b = _maps(detected, control)
    return unit * (a - b).square().flatten(1).mean(1).sqrt()


def structural_similarity(detected: Tensor, control: Tensor) -> Tensor:
    """SSIM of maps [N, C, H, W] in [0, 1] under Gaussian windows, float64 [N]; the border is mirrored, so that all pixels count.

    Source: Wang et al. 2004; windows, constants and border as in torchmetrics.
    """
    a, b = _maps(detected, control)
    _check_size(a, 1)
    return _similarity(a, b)[0]


def multi_scale_similarity(detected: Tensor, control: Tensor, scales: int = 5) -> Tensor:
    """MS-SSIM of maps [N, C, H, W] in [0, 1], float64 [N] in [0, 1]: product over scales of contrast^w, of SSIM^w at the coarsest.

    What CPO and ControlNet++ print as "SSIM" is this, with 5 scales, for which a side needs 176 pixels.

    Args:
        scales: 1 .. 5, the finest ones, each half as large as the one before; their weights are scaled to the sum of all five if there are fewer.
    Raises: LegatoValueError for shapes, types, values or scales that do not fit.
    Source: Wang, Simoncelli, Bovik 2003; negative contrasts count 0, as in torchmetrics.
    """
    a, b = _maps(detected, control)
    if not 1 <= scales <= len(WEIGHTS):
        raise errors.argument("scales", expected=f"a whole number in 1 .. {len(WEIGHTS)}", got=scales)
    _check_size(a, scales)
    weights, parts = WEIGHTS[:scales], []
    for k in range(scales):
        whole, contrast = _similarity(a, b)
        parts.append((whole if k == scales - 1 else contrast).clamp(min=0))
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    scale = sum(WEIGHTS) / sum(weights)
    return torch.stack([part ** (scale * weight) for part, weight in zip(parts, weights, strict=True)]).prod(0)


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM [N] over all pixels, and its contrast part [N] over those whose window is within the picture."""

    def mean(of: Tensor) -> Tensor:
        channels = of.shape[1]
        across, down = (kernel.expand(channels, 1, *kernel.shape) for kernel in (window[None], window[:, None]))
        wide = F.pad(of, (REACH,) * 4, mode="reflect")
        return F.conv2d(F.conv2d(wide, across, groups=channels), down, groups=channels)

    away = torch.arange(-REACH, REACH + 1, dtype=torch.float64)
    window = torch.exp(-(away**2) / (2 * SIGMA**2))
    window = window / window.sum()
    # of the products after the border is mirrored, as of the pictures: mirroring and squaring commute
    ma, mb = mean(a), mean(b)
    va, vb = (mean(a * a) - ma**2).clamp(min=0), (mean(b * b) - mb**2).clamp(min=0)
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * (mean(a * b) - ma * mb) + c2) / (va + vb + c2)
    whole = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1) * contrast
    within = contrast[:, :, REACH:-REACH, REACH:-REACH]
    return whole.flatten(1).mean(1), within.flatten(1).mean(1)


def _check_size(maps: Tensor, scales: int) -> None:
    if maps.dim() != 4:
        raise errors.argument("detected", expected="maps [N, C, H, W]", got=f"shape {list(maps.shape)}")
    least = (2 * REACH + 1) * 2 ** (scales - 1)
    if min(maps.shape[2:]) < least:
        raise errors.argument(
            "detected", expected=f"sides of {least} pixels at least for {scales} scales", got=list(maps.shape[2:]),
            fix="fewer scales, or larger pictures",
        )  # fmt: skip


def _maps(detected: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU without a graph."""
    if detected.shape != control.shape or detected.dim() < 2 or len(detected) == 0:
        raise errors.argument(
            "detected",
            expected=f"the control's shape, {list(control.shape)}, with a picture at least",
            got=list(detected.shape),
        )
    for name, part in (("detected", detected), ("control", control)):
        if not part.is_floating_point():
            raise errors.argument(
                name, expected="floating point maps in [0, 1]", got=part.dtype,
                fix="maps / 255; whole numbers wrap around where they are turned over or subtracted",
            )  # fmt: skip
        if not (float(part.min()) >= 0 and float(part.max()) <= 1):
            got = f"{float(part.min()):g} .. {float(part.max()):g}"
            raise errors.argument(name, expected="values in [0, 1]", got=got, fix="maps / 255, without NaN")
    a, b = (part.detach().double().cpu() for part in (detected, control))
    return a, b
