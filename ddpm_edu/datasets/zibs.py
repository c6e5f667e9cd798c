"""Zibs: a creature that no emoji shows, painted from a few shapes. Notebook 17.

One large eye, two feelers, two feet, a light belly; its colour and its mood are in its caption.
It stands for what a learner photographs or draws: a class that a shipped model has never seen.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import one_of, whole
from .images import from_uint8

PIXELS, LARGE = 64, 256  # of a picture; as it is painted, before it shrinks
COLOURS = {
    "red": (214, 58, 48),
    "orange": (245, 146, 40),
    "yellow": (248, 206, 60),
    "green": (98, 176, 70),
    "blue": (66, 133, 230),
    "purple": (150, 86, 190),
    "pink": (240, 130, 170),
    "brown": (140, 96, 70),
}
MOODS = ("smiling", "sleepy", "astonished")
KNOWN = 16  # of the 24 pairs of colour and mood: the others are for new prompts


class Zib(NamedTuple):
    """What a picture shows."""

    colour: str
    mood: str
    lean: float = 0.0  # of the body to the right, -1 to 1
    high: float = 0.0  # above the ground: 0 stands, 1 jumps
    look: float = 0.0  # where the eye looks, -1 to 1

    @property
    def caption(self) -> str:
        return f"{self.mood} {self.colour} zib"


def paint_zib(zib: Zib) -> np.ndarray:
    """The picture, (64, 64, 3) uint8, on white. OptionError for an unknown colour or mood."""
    from PIL import Image, ImageDraw  # here, so that importing this module stays quick

    skin = COLOURS[one_of("colour", zib.colour, tuple(COLOURS))]
    one_of("mood", zib.mood, MOODS)
    dark = tuple(int(0.7 * c) for c in skin)
    light = tuple(int(c + 0.55 * (255 - c)) for c in skin)
    page = Image.new("RGB", (LARGE, LARGE), "white")
    draw = ImageDraw.Draw(page)
    x, y = 128 + 14 * zib.lean, 154 - 18 * zib.high  # the middle of the body

    def disc(cx, cy, rx, ry, fill):
        draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=fill)

    for side in (-1, 1):
        disc(128 + 40 * side + 6 * zib.lean, y + 78 - 4 * zib.high, 32, 17, dark)  # a foot
        tip = x + side * 56 + 20 * zib.lean, y - 116
        draw.line([(x + side * 26, y - 60), tip], fill=dark, width=14)
        disc(*tip, 20, 20, (250, 190, 40))  # of a feeler
        disc(x + side * 86, y + 10 - 40 * zib.high, 24, 16, skin)  # a hand, up in a jump
    disc(x, y, 82, 80, skin)
    disc(x, y + 40, 54, 36, light)
    _face(draw, disc, zib, x, y - 20, dark)
    return np.asarray(page.resize((PIXELS, PIXELS), Image.LANCZOS))


def _face(draw, disc, zib: Zib, x: float, y: float, dark: tuple) -> None:
    """One eye and a mouth, by mood."""
    black = (40, 40, 45)
    if zib.mood == "sleepy":
        draw.arc((x - 44, y - 40, x + 44, y + 24), 10, 170, fill=black, width=14)
        return
    disc(x, y, 48, 46, dark)
    disc(x, y, 42, 40, "white")
    wide = 16 if zib.mood == "astonished" else 24
    disc(x + 14 * zib.look, y, wide, wide, black)
    if zib.mood == "smiling":
        draw.chord((x - 36, y + 26, x + 36, y + 82), 0, 180, fill=(150, 30, 40))
    else:
        disc(x, y + 66, 17, 17, black)


@dataclass(frozen=True, eq=False)
class Zibs:
    """`dataset[index]` -> (x_0 (B, 3, 64, 64) in [-1, 1], captions: list of B)."""

    zibs: tuple[Zib, ...]
    images: Tensor  # (N, 3, 64, 64) uint8

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index) -> tuple[Tensor, list[str]]:
        index = torch.arange(len(self))[index]
        return from_uint8(self.images[index]), [self.zibs[i].caption for i in index.tolist()]


def pairs(known: bool) -> list[tuple[str, str]]:
    """(colour, mood): the 16 that the training pictures show, or the 8 others, one a colour."""
    left_out = {(colour, MOODS[k % 3]) for k, colour in enumerate(COLOURS)}
    every = [(colour, mood) for mood in MOODS for colour in COLOURS]
    return [pair for pair in every if (pair not in left_out) == known]


def zibs(n: int = 16, seed: int = 0, known: bool = True) -> Zibs:
    """n pictures that go through the known pairs of colour and mood, or through the others; how
    each zib leans, jumps and looks comes from the seed."""
    whole("n", n, 1, 10_000, "pictures")
    random, kinds = np.random.default_rng(seed), pairs(known)
    chosen = []
    for k in range(n):
        lean, look = random.uniform(-1, 1, 2)
        high = random.choice([0.0, random.uniform(0.3, 1)])
        chosen.append(Zib(*kinds[k % len(kinds)], lean, float(high), look))
    pictures = np.stack([paint_zib(zib) for zib in chosen]).transpose(0, 3, 1, 2)
    return Zibs(tuple(chosen), torch.from_numpy(pictures.copy()))


def read_colours(x: Tensor) -> list[str]:
    """Of pictures (B, 3, 64, 64) in [-1, 1], the colour of COLOURS that most of the body's pixels
    come near to."""
    body = (x[:, :, 24:56, 16:48].flatten(2).mT + 1) * 127.5  # (B, pixels, 3)
    known = torch.tensor(list(COLOURS.values()), dtype=x.dtype, device=x.device)
    near = torch.cdist(body, known.expand(len(x), -1, -1)) < 60
    names = list(COLOURS)
    return [names[k] for k in near.sum(1).argmax(1).tolist()]
