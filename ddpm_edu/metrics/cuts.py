"""What SDXL's size conditions did, measured in a picture: content, blur, place. Notebook 13.

Reads pictures that were cut out of originals (datasets/originals.py), or generated like them. One
batch has one size, (B, 3, H, W), bytes or floats in [-1, 1].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..datasets.images import from_uint8
from ..datasets.originals import parse
from ..datasets.painted import COLOURS, extent
from ..errors import ShapeError
from ..files.load import load
from ..networks.classifier import Classifier
from .obedience import read_colours, read_digits

_EDGES = 12  # the steepest places of a picture, which tell its sharpness


class Reading(NamedTuple):
    """What pictures show, each (B,)."""

    digit: Tensor  # 0..9
    ink: Tensor  # a number in COLOURS
    ground: Tensor  # a number in COLOURS
    sharpness: Tensor  # 0 to 1: how much ink a steep place gains from one pixel to the next
    place: Tensor  # (B, 2) the strokes' middle minus the picture's, in pixels, down and right
    whole: Tensor  # whether no stroke touches the frame
    brightness: Tensor  # mean of all numbers, in [-1, 1]


def read_cuts(images: Tensor, classifier: Classifier | None = None) -> Reading:
    """Measure pictures. ShapeError for other shapes, DataError for NaN.

    Where no digit is seen ink equals ground, and the place is the middle.
    """
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape) < 1:
        raise ShapeError(f"images have shape {tuple(images.shape)}: pass (B, 3, H, W)")
    ink, ground, cover = read_colours(images)
    top, bottom, left, right = extent(cover)
    reach = torch.maximum(bottom - top, right - left) + 1
    middle = torch.stack([top + bottom, left + right], 1) / 2
    height, width = cover.shape[1:]
    inside = (top > 0) & (left > 0) & (bottom < height - 1) & (right < width - 1)
    seen = ink != ground
    x = from_uint8(images) if images.dtype == torch.uint8 else images
    return Reading(
        read_digits(cover, reach / 20, classifier or load("mnist_classifier")),
        ink,
        ground,
        _steepest(cover),
        (middle - torch.tensor([height - 1, width - 1]) / 2) * seen[:, None],
        inside & seen,
        x.flatten(1).mean(1).cpu(),
    )


def _steepest(cover):
    """The mean of the steepest steps from one pixel to the next: (B, H, W) -> (B,)."""
    steps = torch.cat([cover.diff(dim=d).abs().flatten(1) for d in (1, 2)], 1)
    return steps.topk(min(_EDGES, steps.shape[1])).values.mean(1)


def aesthetic(images: Tensor) -> Tensor:
    """A score of 0 to 10 for each picture, (B,): how sharp its strokes are.

    LAION's scores, which SDXL's refiner learned, say how much people like a picture
    (Schuhmann et al. 2022, arXiv 2210.08402). We can measure one thing that they like.
    """
    return 10 * _steepest(read_colours(images)[2])


def obeyed(images: Tensor, captions: list[str], classifier: Classifier | None = None) -> Tensor:
    """Whether digit, ink and ground are as the captions of `datasets.originals` say, (B,) bool."""
    if len(images) != len(captions):
        raise ShapeError(f"{len(images)} images came with {len(captions)} captions: pass one each")
    names = list(COLOURS)
    wanted = [(d, names.index(ink), names.index(ground)) for d, ink, ground in map(parse, captions)]
    return (torch.stack(read_cuts(images, classifier)[:3], 1) == torch.tensor(wanted)).all(1)
