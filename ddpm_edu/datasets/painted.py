"""Painted digits: MNIST digits in colour, with captions that say all there is to see. Notebook 07.

    caption = "a SIZE INK DIGIT on a GROUND ground, PLACE"
              "a large red seven on a blue ground, top left"

A picture (3, 32, 32) is ground + cover * (ink - ground); `cover` in [0, 1] is the MNIST digit,
resized. Captions and pictures determine each other, so obedience to a prompt can be counted:
metrics/obedience.py reads the five words back from the pixels.
"""

import itertools
import re
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, OptionError, fits, one_of, whole
from .images import from_uint8, mnist

PIXELS = 32
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {  # at least 55 apart in CIELAB, and 30 as seen without red, green or blue cones
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (235, 60, 15),
    "green": (0, 110, 75),
    "blue": (70, 30, 250),
    "yellow": (255, 205, 45),
    "cyan": (0, 180, 255),
    "pink": (250, 120, 160),
}
SIZES = {"small": 14, "large": 22}  # pixels of the box that MNIST's 20x20 box becomes
PLACES = {
    "top left": (-1, -1),
    "top right": (-1, 1),
    "bottom left": (1, -1),
    "bottom right": (1, 1),
    "centre": (0, 0),
}
# fmt: off
IN_PIECES = {  # MNIST digits too broken to tell large from small: always painted small
    "train": (29, 971, 8449, 14329, 22497, 29379, 29755, 35777, 36027, 42703, 42782, 44907, 49613,
              57041, 57319, 59653),
    "test": (5608, 7921),
}
# fmt: on
_WORDS = list(COLOURS), list(COLOURS), list(SIZES), list(PLACES)
_PURE = 8  # pixels of pure ink in every digit


# ---------------------------------------------------------------- the grammar


class Scene(NamedTuple):
    """What a caption says, and a painted picture shows."""

    digit: int  # 0..9
    ink: str  # of COLOURS
    ground: str  # of COLOURS, not the ink's
    size: str  # of SIZES
    place: str  # of PLACES


def caption(scene: Scene) -> str:
    """Scene(7, "red", "blue", "large", "top left") -> the sentence above. OptionError."""
    digit, ink, ground, size, place = _checked(scene)
    return f"a {size} {ink} {DIGITS[digit]} on a {ground} ground, {place}"


def parse(text: str) -> Scene:
    """The scene of a caption: parse(caption(s)) == s. OptionError for any other sentence."""
    pattern = r"a (\w+) (\w+) (\w+) on a (\w+) ground, (\w+(?: \w+)?)"
    found = re.fullmatch(pattern, text) if isinstance(text, str) else None
    if not found:
        example = caption(Scene(7, "red", "blue", "large", "top left"))
        raise OptionError(f"{text!r} is no caption of painted digits: write one like {example!r}")
    size, ink, digit, ground, place = found.groups()
    one_of("digit", digit, DIGITS)
    return _checked(Scene(DIGITS.index(digit), ink, ground, size, place))


def held_out(scene: Scene) -> bool:
    """Kept from training? (digit + ink + 3 ground) % 10 == 0, colours numbered as in COLOURS.

    56 of 560: each ink on each ground misses one digit, each digit in one ink at most one ground,
    so every two of the three have been seen together, only the three never.
    """
    digit, ink, ground = numbers_of(scene)[:3]
    return (digit + ink + 3 * ground) % 10 == 0


def scenes(held: bool | None = None) -> list[Scene]:
    """All 5,600 scenes (None), those for training (False: 5,040) or those held out (True: 560)."""
    every = map(Scene._make, itertools.product(range(10), COLOURS, COLOURS, SIZES, PLACES))
    every = [s for s in every if s.ink != s.ground]
    return [s for s in every if held is None or held_out(s) == held]


def prompts(n: int, seed: int = 0, held: bool | None = False) -> list[str]:
    """n random captions out of scenes(held); the i-th depends on (i, seed) alone."""
    choice = scenes(held)
    return [caption(choice[k]) for k in (random_bits(_counted(n), seed, 1) % len(choice)).tolist()]


def _checked(scene: Scene) -> Scene:
    """The scene with a plain Scene's types, or an OptionError that names the word."""
    if not isinstance(scene, tuple) or len(scene) != 5:
        raise OptionError(f"{scene!r} is no scene: pass Scene(digit, ink, ground, size, place)")
    scene = Scene(*scene)
    if isinstance(scene.digit, np.integer):
        scene = scene._replace(digit=int(scene.digit))
    whole("digit", scene.digit, 0, 9)
    for field, known in zip(Scene._fields[1:], (COLOURS, COLOURS, SIZES, PLACES)):
        one_of(field, getattr(scene, field), tuple(known))
    if scene.ink == scene.ground:
        raise OptionError(f"ink and ground are both {scene.ink}: choose two colours")
    return scene


def numbers_of(scene: Scene) -> tuple[int, int, int, int, int]:
    """Digit, ink, ground, size, place as numbers, in the order of COLOURS, SIZES and PLACES."""
    digit, *words = _checked(scene)
    return digit, *(known.index(w) for known, w in zip(_WORDS, words))


def scene_of(numbers: list[int]) -> Scene:
    """The scene of five numbers, as in a row of `PaintedDigits.numbers`."""
    digit, *words = numbers
    return Scene(digit, *(known[k] for known, k in zip(_WORDS, words)))


def _counted(n: int) -> np.ndarray:
    return np.arange(whole("n", n, 1))


def random_bits(index: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """63 bits for each index, from (index, seed, stream): splitmix64 (Steele et al. 2014)."""

    def mix(z):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    step = np.uint64(0x9E3779B97F4A7C15)
    start = mix(np.array([seed % 2**32 * 2**8 + stream], np.uint64) + step)
    bits = mix(start + (index.astype(np.uint64) + np.uint64(1)) * step)
    return (bits >> np.uint64(1)).astype(np.int64)


# ---------------------------------------------------------------- painting


def paint(digits: Tensor, scenes: list[Scene]) -> Tensor:
    """MNIST bytes (B, 28, 28) or (B, 1, 28, 28), painted as the scenes say: (B, 3, 32, 32) bytes.

    `Scene.digit` paints nothing: it must name the digit that the picture shows. Raises ShapeError,
    DataError for other than bytes or a picture without ink, OptionError for an unknown word.
    """
    numbers = torch.tensor([numbers_of(s) for s in scenes]).reshape(-1, 5)
    digits = digits.reshape(-1, 28, 28) if digits.shape[-2:] == (28, 28) else digits
    fits("digits", digits, (len(numbers), 28, 28), f"{len(numbers)} scenes need")
    if digits.dtype != torch.uint8:
        raise DataError(f"digits have type {digits.dtype}: paint takes MNIST's bytes, 0..255")
    if not digits.flatten(1).any(1).all():
        raise DataError("a digit without ink cannot be painted: leave empty pictures out")
    return _paint(digits, numbers)


def _paint(digits: Tensor, numbers: Tensor) -> Tensor:
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    ink, ground = (palette[numbers[:, k], :, None, None] for k in (1, 2))  # (B, 3, 1, 1)
    cover = _coverage(digits, numbers)[:, None]
    return (ground + cover * (ink - ground)).round().to(torch.uint8)


def _coverage(digits: Tensor, numbers: Tensor) -> Tensor:
    """(B, 32, 32) in [0, 1]: the digits, resized, their strokes centred where the scene says."""
    cover = torch.zeros(len(digits), PIXELS, PIXELS)
    for s, pixels in enumerate(SIZES.values()):
        boxes = _boxes(digits[numbers[:, 3] == s], pixels)
        for p, sides in enumerate(PLACES.values()):
            y, x = (PIXELS // 2 + step(pixels) * side - pixels // 2 for side in sides)
            cover[(numbers[:, 3] == s) & (numbers[:, 4] == p), y : y + pixels, x : x + pixels] = (
                boxes[numbers[numbers[:, 3] == s, 4] == p]
            )
    return cover


def _boxes(digits: Tensor, pixels: int) -> Tensor:
    """(B, pixels, pixels) in [0, 1]: digits resized from the 20 pixels they were made to fit,
    scaled so that _PURE pixels are all ink, and cut out around their strokes."""
    side = round(28 / 20 * pixels)
    cover = digits[:, None] / 255.0
    cover = F.interpolate(cover, (side, side), mode="bilinear", antialias=True)[:, 0]
    pure = cover.flatten(1).topk(_PURE).values[:, -1, None, None]
    cover = (cover / pure.clamp(min=1e-3)).clamp(max=1)
    top, bottom, left, right = extent(cover)
    cover = F.pad(cover, (pixels // 2,) * 4)  # so that a box may hang over the edge
    reach = torch.arange(pixels)
    row, column = ((ends + 1)[:, None] // 2 + reach for ends in (top + bottom, left + right))
    return cover[torch.arange(len(cover))[:, None, None], row[:, :, None], column[:, None]]


def step(pixels: int) -> int:
    """From the centre to a corner's centre: one pixel of ground remains at the edge."""
    return (PIXELS - pixels) // 2 - 1


def extent(cover: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and last row and column, each (B,), of the strokes in (B, H, W): not of specks."""
    ink = (cover > 0.5).float()[:, None]
    strokes = (ink * F.avg_pool2d(ink, 3, 1, 1))[:, 0] > 1.5 / 9  # a speck has no neighbour
    ends = []
    for line in (strokes.any(2), strokes.any(1)):
        ends += [line.byte().argmax(1), line.shape[1] - 1 - line.byte().flip(1).argmax(1)]
    return tuple(ends)


# ---------------------------------------------------------------- the dataset


@dataclass(frozen=True, eq=False)
class PaintedDigits:
    """Digits painted when they are asked for: picture i is MNIST's digit i % 60,000.

    `dataset[index]`, a tensor, list or slice -> (x_0 (B, 3, 32, 32) in [-1, 1], captions: B).
    """

    digits: Tensor  # (M, 28, 28) bytes
    numbers: Tensor  # (N, 5): digit, ink, ground, size, place, for tables of embeddings

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index) -> tuple[Tensor, list[str]]:
        return from_uint8(self.images(index)), self.captions(index)

    def images(self, index=slice(None)) -> Tensor:
        """The pictures as bytes, (B, 3, 32, 32)."""
        index = self._index(index)
        return _paint(self.digits[index % len(self.digits)], self.numbers[index])

    def scenes(self, index=slice(None)) -> list[Scene]:
        return [scene_of(row) for row in self.numbers[self._index(index)].tolist()]

    def captions(self, index=slice(None)) -> list[str]:
        return [caption(scene) for scene in self.scenes(index)]

    def _index(self, index) -> Tensor:
        every = torch.arange(len(self))
        return every[index if isinstance(index, slice) else torch.as_tensor(index).reshape(-1)]


def painted_digits(
    split: str = "train", n: int | None = None, seed: int = 0, held: bool | None = False
) -> PaintedDigits:
    """n painted digits (None: one for each digit) from MNIST's "train" or "test" digits.

    held: only combinations for training (False), only held-out ones (True), or all (None). Of the
    pairs of colours that this leaves to a digit, of the sizes and of the places each is equally
    likely; the scene of picture i depends on (i, seed) alone. DataError if MNIST is damaged.
    """
    real = mnist(split)
    index = _counted(len(real) if n is None else n)
    digit = real.labels.numpy()[index % len(real)]
    ink, ground = pairs_of(digit, index, seed, held)
    size, place = (
        random_bits(index, seed, k) % len(words) for k, words in ((2, SIZES), (3, PLACES))
    )
    size[np.isin(index % len(real), IN_PIECES[split])] = 0
    numbers = np.stack([digit, ink, ground, size, place], 1)
    return PaintedDigits(real.images[:, 0], torch.from_numpy(numbers))


def pairs_of(digit: np.ndarray, index: np.ndarray, seed: int, held: bool | None) -> np.ndarray:
    """Ink and ground, (2, N), of picture index[i], which shows digit[i]."""
    pairs, count = _pairs(held)
    return pairs[digit, random_bits(index, seed, 0) % count[digit]].T


@cache
def _pairs(held: bool | None) -> tuple[np.ndarray, np.ndarray]:
    """pairs[digit, k] = (ink, ground) for k < count[digit]."""
    numbers = sorted({numbers_of(s)[:3] for s in scenes(held)})
    lists = [[pair for d, *pair in numbers if d == digit] for digit in range(10)]
    count = np.array([len(x) for x in lists])
    return np.array([x + [x[-1]] * (count.max() - len(x)) for x in lists]), count
