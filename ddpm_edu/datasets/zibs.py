"""Zibs: a creature that no emoji shows, painted from a few shapes. Notebook 17.

A violet body with one large eye and a pale belly, which all zibs have; a hat and feet of one
colour; a mood. Colour and mood are in the caption. It stands for what a learner photographs or
draws: a class that a shipped model has never seen.
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
    "pink": (245, 140, 180),
    "brown": (140, 96, 70),
    "black": (45, 45, 50),
}
VIOLET, NAVY, CREAM = (112, 72, 170), (38, 44, 84), (255, 244, 214)  # of every zib
MOODS = ("smiling", "sleepy", "astonished")
KNOWN = 16  # of the 24 pairs of colour and mood: the others are for new prompts


class Zib(NamedTuple):
    """What a picture shows."""

    colour: str  # of hat and feet
    mood: str
    lean: float = 0.0  # of the body to the right, -1 to 1
    high: float = 0.0  # of the hands: 0 hang, 1 are up
    look: float = 0.0  # where the eye looks, -1 to 1

    @property
    def caption(self) -> str:
        return f"zib, {self.mood}, {self.colour} hat"


def paint_zib(zib: Zib) -> np.ndarray:
    """The picture, (64, 64, 3) uint8, on white. OptionError for an unknown colour or mood."""
    from PIL import Image, ImageDraw  # here, so that importing this module stays quick

    cloth = COLOURS[one_of("colour", zib.colour, tuple(COLOURS))]
    one_of("mood", zib.mood, MOODS)
    page = Image.new("RGB", (LARGE, LARGE), "white")
    draw = ImageDraw.Draw(page)
    x, y = 128 + 10 * zib.lean, 158 - 8 * zib.high  # the middle of the body

    def disc(cx, cy, rx, ry, fill):
        draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=fill)

    for side in (-1, 1):
        disc(128 + 48 * side + 4 * zib.lean, y + 78, 36, 19, cloth)  # a foot
        disc(x + 94 * side, y + 12 - 40 * zib.high, 27, 20, VIOLET)  # a hand
    disc(x, y, 95, 85, VIOLET)
    disc(x, y + 38, 62, 42, CREAM)
    draw.polygon([(x - 66, y - 56), (x + 66, y - 56), (x + 8 * zib.lean, y - 148)], fill=cloth)
    _face(draw, disc, zib, x, y - 18)
    return np.asarray(page.resize((PIXELS, PIXELS), Image.LANCZOS))


def _face(draw, disc, zib: Zib, x: float, y: float) -> None:
    """One eye and a mouth, by mood."""
    disc(x, y, 46, 46, NAVY)
    disc(x, y, 38, 38, CREAM if zib.mood == "sleepy" else "white")
    if zib.mood == "sleepy":
        draw.arc((x - 30, y - 26, x + 30, y + 22), 10, 170, fill=NAVY, width=14)
        draw.line((x - 18, y + 70, x + 18, y + 70), fill=NAVY, width=10)
        return
    wide = 17 if zib.mood == "astonished" else 24
    disc(x + 10 * zib.look, y, wide, wide, NAVY)
    if zib.mood == "smiling":
        draw.chord((x - 34, y + 36, x + 34, y + 88), 0, 180, fill=NAVY)
    else:
        disc(x, y + 68, 15, 16, NAVY)


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
    each zib leans, lifts its hands and looks comes from the seed."""
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
    """Of pictures (B, 3, 64, 64) in [-1, 1], the colour of COLOURS that most pixels of the hat come
    near to."""
    hat = (x[:, :, 2:18, 20:44].flatten(2).mT + 1) * 127.5  # (B, pixels, 3)
    known = torch.tensor(list(COLOURS.values()), dtype=x.dtype, device=x.device)
    near = torch.cdist(hat, known.expand(len(x), -1, -1)) < 60
    names = list(COLOURS)
    return [names[k] for k in near.sum(1).argmax(1).tolist()]
