"""Turner: a picture that is turned, flipped or cut up, and then reads another way. Notebook 10."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import traitlets as tr

from ...errors import OptionError, ShapeError
from .base import beside, spread, static, two_names, zoom
from .controls import Slider  # noqa: F401 (the doctest uses it)
from .panel import _filled, _Pixels, _require_arguments

SIDE = 360  # screen pixels of the longer side


class Turner(_Pixels):
    """A picture and what becomes of it under `view`: a click, a slider or a key takes the reader
    from the first reading to the second and back.

    picture: uint8 (h, w) or (h, w, 3), as `plot.tile` makes it. view: a function of a tensor
    (B, C, h, w) that moves its pixels about: x.rot90(1, (2, 3)), x.flip(2), tiles in another order;
    the same one with which the anagram was drawn. Quarter and half turns are turned in the page,
    flips flipped over; of any other view each pixel travels. names: how it reads, before and after.
    alt, caption: as for `SliderPicture`. scale: screen pixels a pixel.

    >>> squares = np.arange(64, dtype=np.uint8).reshape(8, 8)
    >>> widget = Turner(squares, lambda x: x.rot90(1, (2, 3)), names=("six", "nine"),
    ...                 alt="Grey squares", caption="Turn it.")
    >>> widget.motion, (widget.second == np.rot90(squares)).all().item()
    ('turn 90', True)

    With controls, which stand above, both are functions of their values: picture(**values) and
    view(x, **values); names may hold {name} too. Without, it works without a kernel as well.

    >>> widget = Turner(lambda k: squares * k, lambda x, k: x.flip(2), Slider("k", [1, 2]),
    ...                 names=("{k}", "{k} flipped"), alt="Squares", caption="Flip it.")
    >>> widget.move(k=2); widget.motion, widget.names
    ('flip', ['2', '2 flipped'])

    ShapeError: what is no picture, or a view that changes its size. OptionError: a view that is no
    permutation of the pixels, a name, alt or caption that is empty, a scale below 1.
    """

    _least = 0
    _esm = static("common.js") + static("controls.js") + static("turner.js")
    places = tr.List().tag(sync=True)  # pixel places[k] of the picture goes to place k
    motion = tr.Unicode().tag(sync=True)
    names = tr.List().tag(sync=True)
    at = tr.Float(0).tag(sync=True, echo_update=False)  # 0: first reading, 1: second

    def __init__(self, picture, view: Callable, *controls, names, alt, caption, scale=None):
        for function in (picture, view) if controls else (view,):
            leading = ("x",) if function is view else ()
            _require_arguments(function, leading, [c.name for c in controls])
        self._render = picture if controls else lambda: picture
        self._view, self._names, self._scale = view, two_names(names), scale
        super().__init__(controls, alt=alt, caption=caption, kind="turner", raw=True)

    def _image(self, values: dict) -> bytes:
        image = self._sent(self._render(**values), "picture")
        h, w, channels = self.shape
        self.first = np.frombuffer(image, np.uint8).reshape((h, w, 3) if channels == 3 else (h, w))
        places = _places(lambda x: self._view(x, **values), h, w)
        self.second = self.first.reshape(h * w, channels)[places].reshape(self.first.shape)
        self.motion = _motion(places.reshape(h, w))
        self.places = places.tolist() if self.motion == "permute" else []
        self.names = [_filled(name, values) for name in self._names]
        self.scale = zoom(self._scale, h, w, SIDE, SIDE)
        self.at = 0
        return image

    def _sizes(self) -> list:
        h, w = self.shape[:2]
        return [(w * self.scale, h * self.scale)] * 2

    def still(self) -> bytes:
        return beside((self.first, self.second), self.names, self._sizes())

    def still_width(self) -> int:
        return spread(self._sizes())[0][0]


MOTIONS = {  # what the page can show as a turn or a flip
    "turn 90": np.rot90,
    "turn 180": lambda x: np.rot90(x, 2),
    "turn 270": lambda x: np.rot90(x, 3),
    "flip": np.flipud,
    "mirror": np.fliplr,
}


def _motion(places: np.ndarray) -> str:
    """The name of the turn or flip that arranges the pixel numbers so, "permute" for any other."""
    grid = np.arange(places.size).reshape(places.shape)
    return next((n for n, move in MOTIONS.items() if np.array_equal(move(grid), places)), "permute")


def _places(view: Callable, h: int, w: int) -> np.ndarray:
    """The (h w) pixel numbers as `view` arranges them; else ShapeError or OptionError."""
    moved = view(torch.arange(h * w, dtype=torch.float32).reshape(1, 1, h, w))
    if not isinstance(moved, torch.Tensor):
        raise ShapeError(f"view gives a {type(moved).__name__}: let it return a tensor")
    if tuple(moved.shape) != (1, 1, h, w):
        raise ShapeError(
            f"view makes (1, 1, {h}, {w}) into {tuple(moved.shape)}: it must keep the size"
        )
    places = moved.round().long().ravel().numpy()
    if not np.array_equal(np.sort(places), np.arange(h * w)):
        raise OptionError("view is no permutation of the pixels: each must come once, unchanged")
    return places
