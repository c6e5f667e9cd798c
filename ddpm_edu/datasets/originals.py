"""Originals of many sizes and shapes, resized and cropped as SDXL's pictures were. Notebook 13.

    caption = "a INK DIGIT on a GROUND ground"                 "a red seven on a blue ground"

An original (3, h, w) has sides of 12 to 96 pixels, aspects from 1 : 2.7 to 2.7 : 1, and one MNIST
digit in the middle, with edges one pixel wide: a small original that is enlarged is blurred.
Training cuts a target out of it (`cut`), and the model learns three pairs of numbers with it
(Podell et al. 2023, sections 2.2 and 2.3): the original's size, the cut's top and left, the
target's size. What they did can be measured in a picture: metrics/cuts.py.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import OptionError, one_of, whole
from .images import from_uint8, mnist
from .painted import COLOURS, DIGITS, pairs_of, random_bits, scenes

SIDES = (12, 96)  # shortest and longest side of an original
WIDEST = 2.7  # its longer side by its shorter one
BOXES = (0.6, 0.75)  # of the shorter side: the box that MNIST's 20 x 20 box becomes


class Original(NamedTuple):
    """What is known of an original."""

    digit: int  # 0..9
    ink: str  # of COLOURS
    ground: str  # of COLOURS, not the ink's
    height: int
    width: int
    box: float  # the digit's box, as a share of the shorter side


class Cut(NamedTuple):
    """Where a picture comes from: SDXL's six numbers, each pair (vertical, horizontal)."""

    original: tuple[int, int]
    crop: tuple[int, int]  # pixels of the resized original left out at top and left
    target: tuple[int, int]


def caption(original: Original) -> str:
    """Original(7, "red", "blue", ...) -> "a red seven on a blue ground"."""
    return _sentence(*original[:3])


def captions(held: bool | None = None) -> list[str]:
    """Of all originals, or, as in `originals`, of those for training or of those held out."""
    every = dict.fromkeys(scene[:3] for scene in scenes(held))
    return [_sentence(*scene) for scene in every]


def _sentence(digit, ink, ground):
    return f"a {ink} {DIGITS[digit]} on a {ground} ground"


def parse(text: str) -> tuple[int, str, str]:
    """Digit, ink and ground of a caption. OptionError for any other sentence."""
    pattern = r"a (\w+) (\w+) on a (\w+) ground"
    found = re.fullmatch(pattern, text) if isinstance(text, str) else None
    if not found:
        example = '"a red seven on a blue ground"'
        raise OptionError(f"{text!r:.80} is no caption of an original: write one like {example}")
    ink, digit, ground = found.groups()
    one_of("digit", digit, DIGITS)
    for name, colour in (("ink", ink), ("ground", ground)):
        one_of(name, colour, tuple(COLOURS))
    return DIGITS.index(digit), ink, ground


# ---------------------------------------------------------------- painting and cutting


def paint(digit: Tensor, original: Original) -> Tensor:
    """An MNIST digit (28, 28), bytes, as the original (3, h, w), floats in 0..255."""
    h, w = original.height, original.width
    box = original.box * min(h, w)
    side = max(2, round(28 / 20 * box))
    cover = F.interpolate(
        digit[None, None] / 255.0, (side, side), mode="bicubic", antialias=True
    ).clamp(0, 1)[0, 0]
    steep = max(1.0, side / 28)  # so that an edge stays one pixel wide, however large
    cover = ((cover - 0.5) * steep + 0.5).clamp(0, 1)
    top, left = (h - side) // 2, (w - side) // 2
    cover = F.pad(cover, (left, w - side - left, top, h - side - top))  # cuts where negative
    ink, ground = (torch.tensor(COLOURS[c]).float()[:, None, None] for c in original[1:3])
    return ground + cover * (ink - ground)


def excess(original: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns too many once an original is resized to just cover the target."""
    return tuple(r - t for r, t in zip(_resized(original, target), target))


def cut(picture: Tensor, target: tuple[int, int], crop: tuple[int, int] = (0, 0)) -> Tensor:
    """Resized to just cover the target, then cut out from `crop` on: (3, h, w) -> (3, *target).

    OptionError for a crop that lies outside.
    """
    most = excess(tuple(picture.shape[1:]), target)
    for name, start, limit in zip(("crop top", "crop left"), crop, most):
        whole(name, start, 0, limit, "what resizing leaves over")
    size = _resized(tuple(picture.shape[1:]), target)
    resized = F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
    return resized[:, crop[0] : crop[0] + target[0], crop[1] : crop[1] + target[1]]


def _resized(original, target):
    scale = max(t / o for t, o in zip(target, original))
    return tuple(max(t, round(scale * o)) for t, o in zip(target, original))


# ---------------------------------------------------------------- the dataset


@dataclass(frozen=True, eq=False)
class Originals:
    """Originals painted when they are asked for, from MNIST's digits."""

    digits: Tensor  # (M, 28, 28) bytes
    numbers: Tensor  # (N, 5) of digit, ink, ground, height, width
    boxes: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.numbers)

    def original(self, i: int) -> Original:
        """What is known of picture i."""
        digit, ink, ground, h, w = self.numbers[i].tolist()
        colours = list(COLOURS)
        return Original(digit, colours[ink], colours[ground], h, w, self.boxes[i].item())

    def captions(self, index=None) -> list[str]:
        """Of pictures `index`, numbers; None: of all."""
        return [caption(self.original(i)) for i in (range(len(self)) if index is None else index)]

    def picture(self, i: int) -> Tensor:
        """Picture i as it was, (3, h, w), floats in 0..255."""
        return paint(self.digits[i % len(self.digits)], self.original(i))

    def sizes(self) -> Tensor:
        """Height and width of each, (N, 2)."""
        return self.numbers[:, 3:]

    def cut(self, i: int, target: tuple[int, int], crop: tuple[int, int]) -> tuple[Tensor, Cut]:
        """Picture i cut to a target: (3, *target) in [-1, 1], and where it comes from."""
        x = cut(self.picture(i), target, crop).round().clamp(0, 255).to(torch.uint8)
        return from_uint8(x), Cut(tuple(self.numbers[i, 3:].tolist()), crop, target)


def originals(
    split: str = "train", n: int | None = None, seed: int = 0, held: bool | None = False
) -> Originals:
    """n originals (None: one for each digit) from MNIST's "train" or "test" digits.

    The logarithm of the area is uniform, and that of the aspect, as far as SIDES allow. held: as
    in `painted_digits`, the same combinations of digit, ink and ground are kept from training. What
    picture i is depends on (i, seed) alone. DataError if MNIST is damaged.
    """
    real = mnist(split)
    index = np.arange(len(real) if n is None else whole("n", n, 1, 10**9))
    digit = real.labels.numpy()[index % len(real)]
    ink, ground = pairs_of(digit, index, seed, held)
    share = [random_bits(index, seed, stream) / 2**63 for stream in (4, 5, 6)]
    low, high = SIDES
    root = WIDEST ** (share[1] - 0.5)  # square root of the aspect, width by height
    least, most = low * np.maximum(root, 1 / root), high / np.maximum(root, 1 / root)
    side = least * (most / least) ** share[0]
    height, width = np.rint(side / root), np.rint(side * root)
    numbers = np.stack([digit, ink, ground, height, width], 1).astype(np.int64)
    boxes = BOXES[0] + (BOXES[1] - BOXES[0]) * share[2]
    return Originals(real.images[:, 0], torch.from_numpy(numbers), torch.from_numpy(boxes))
