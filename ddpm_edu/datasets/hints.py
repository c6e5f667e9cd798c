"""Hints for a ControlNet, made from pictures: edges, strokes, blurred colours. Notebook 10.

Each takes pictures (B, C, H, W) in [-1, 1] and gives (B, 3, H, W) in [-1, 1]; lines are white on
black, as the official ControlNets have them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ShapeError, fits, in_range, whole, within

SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8  # d/dx


def edges(x: Tensor, threshold: float = 0.3) -> Tensor:
    """Lines, one pixel wide, where the colour changes most.

    The slope of each channel (Sobel), of which the steepest counts; kept where it is no less than
    at both neighbours across the edge, and above `threshold` of the picture's steepest.
    """
    in_range("threshold", threshold, 0, 1, "0.3 is usual")
    slope, across = _slopes(x)
    rows, columns = F.max_pool2d(slope, (1, 3), 1, (0, 1)), F.max_pool2d(slope, (3, 1), 1, (1, 0))
    crest = slope >= torch.where(across, rows, columns)
    steep = slope > threshold * slope.amax((2, 3), keepdim=True).clamp(min=1e-2)
    return _lines(crest & steep)


def strokes(x: Tensor, threshold: float = 0.3) -> Tensor:
    """The edges as a broad pen draws them, three pixels wide: a rough hint."""
    return F.max_pool2d(edges(x, threshold), 3, 1, 1)


def blurred(x: Tensor, size: int = 8) -> Tensor:
    """Mean colours of squares of `size` pixels, smoothly joined: colours without shapes."""
    _pictures(x)
    whole("size", size, 1, min(x.shape[2:]))
    means = F.avg_pool2d(x.float(), size, ceil_mode=True, count_include_pad=False)
    smooth = F.interpolate(means, x.shape[2:], mode="bilinear")
    if x.shape[1] not in (1, 3):
        raise ShapeError(f"x has {x.shape[1]} channels: colours are 1 (grey) or 3")
    return smooth.expand(-1, 3, -1, -1)


HINTS = {"edges": edges, "strokes": strokes, "blurred": blurred}


def _slopes(x):
    """(B, 1, H, W): the steepest channel's slope, and whether it leads along a row."""
    _pictures(x)
    kernels = torch.stack([SOBEL, SOBEL.T])[:, None].to(x.device)
    padded = F.pad(x.float().flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    dx, dy = F.conv2d(padded, kernels).unflatten(0, x.shape[:2]).unbind(2)  # (B, C, H, W)
    slope, channel = torch.hypot(dx, dy).max(1, keepdim=True)
    return slope, dx.gather(1, channel).abs() >= dy.gather(1, channel).abs()


def _pictures(x):
    fits("x", x, ("B", "C", "H", "W"), "hints are made from")
    within("x", x, beyond=0.1)  # bright ones are no mistake: what counts is where they change


def _lines(there: Tensor) -> Tensor:
    return (2 * there.float() - 1).expand(-1, 3, -1, -1)
