"""Turner: a picture that is turned, flipped or cut up, and then reads another way. Notebook 10."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import traitlets as tr

from ...errors import OptionError, ShapeError
from .. import plot
from .base import Widget, beside, beside_width, static, uint8, zoom

SIDE = 360  # screen pixels of the longer side


class Turner(Widget):
    """A picture and what becomes of it under `view`: a click, a slider or a key takes the reader
    from the first reading to the second and back. It works without a kernel too.

    picture: uint8 (h, w) or (h, w, 3), as `plot.tile` makes it. view: a function of a tensor
    (B, C, h, w) that moves its pixels about: x.rot90(1, (2, 3)), x.flip(2), tiles in another order;
    the same one with which the anagram was drawn. Quarter and half turns are turned in the page,
    flips flipped over; of any other view each pixel travels. names: how it reads, before and after.
    scale: screen pixels a pixel.

    >>> picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    >>> widget = Turner(picture, lambda x: x.rot90(1, (2, 3)), names=("six", "nine"),
    ...                 alt="Grey squares", caption="Turn it.")
    >>> widget.motion, (widget.second == np.rot90(picture)).all().item()
    ('turn 90', True)

    ShapeError: what is no picture, or a view that changes its size. OptionError: a view that is no
    permutation of the pixels, a name, alt or caption that is empty, a scale below 1.
    """

    _esm = static("common.js") + static("turner.js")
    picture = tr.Bytes().tag(sync=True)
    shape = tr.List().tag(sync=True)
    places = tr.List().tag(sync=True)  # pixel places[k] of the picture goes to place k
    motion = tr.Unicode().tag(sync=True)
    names = tr.List().tag(sync=True)
    scale = tr.Int(1).tag(sync=True)
    at = tr.Float(0).tag(sync=True, echo_update=False)  # 0: first reading, 1: second

    def __init__(self, picture, view: Callable, *, names, alt, caption, scale=None):
        picture = uint8(picture, "picture", (2, 3))
        for name, text in ("names", names[0]), ("names", names[1]), ("alt", alt):
            plot.require_text(name, text)
        plot.require_text("caption", caption)
        h, w = picture.shape[:2]
        places = _places(view, h, w)
        grid = np.arange(h * w).reshape(h, w)
        known = {name: move(grid) for name, move in MOTIONS.items()}
        same = lambda a: a.shape == (h, w) and np.array_equal(a.ravel(), places)
        motion = next((name for name, moved in known.items() if same(moved)), "permute")
        super().__init__(
            picture=picture.tobytes(),
            shape=[*picture.shape, 1][:3],
            places=places.tolist() if motion == "permute" else [],
            motion=motion,
            names=list(names),
            alt=alt,
            caption=caption,
            scale=zoom(max(1, SIDE // max(h, w)) if scale is None else scale, h, w),
            drawn=1,
        )
        self.first = picture
        self.second = picture.reshape(h * w, -1)[places].reshape(picture.shape)

    def _sizes(self) -> list:
        h, w = self.shape[:2]
        return [(w * self.scale, h * self.scale)] * 2

    def still(self) -> bytes:
        return beside((self.first, self.second), self.names, self._sizes())

    def still_width(self) -> int:
        return beside_width(self._sizes())


MOTIONS = {  # what the page can show as a turn or a flip
    "turn 90": np.rot90,
    "turn 180": lambda x: np.rot90(x, 2),
    "turn 270": lambda x: np.rot90(x, 3),
    "flip": np.flipud,
    "mirror": np.fliplr,
}


def _places(view: Callable, h: int, w: int) -> np.ndarray:
    """The (h w) pixel numbers as `view` arranges them; else ShapeError or OptionError."""
    moved = view(torch.arange(h * w, dtype=torch.float32).reshape(1, 1, h, w))
    if tuple(moved.shape) != (1, 1, h, w):
        raise ShapeError(
            f"view makes (1, 1, {h}, {w}) into {tuple(moved.shape)}: it must keep the size"
        )
    places = moved.round().long().ravel().numpy()
    if not np.array_equal(np.sort(places), np.arange(h * w)):
        raise OptionError("view is no permutation of the pixels: each must come once, unchanged")
    return places
