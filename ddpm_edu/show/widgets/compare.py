"""Compare: two pictures, one over the other, and a handle between them. Notebook 10."""

from __future__ import annotations

import numpy as np  # noqa: F401 (the doctest uses it)
import traitlets as tr

from ...errors import ShapeError, in_range
from .. import plot
from .base import Widget, beside, spread, static, two_names, uint8, zoom

SIDE = 420  # screen pixels of the longer side


class Compare(Widget):
    """Two pictures in one place: left of the handle `before`, right of it `after`. The handle is
    moved with mouse, finger or arrow keys. It works without a kernel too.

    before, after: uint8 (h, w) or (h, w, 3), as `plot.tile` makes them. They may differ in size, as
    a picture and its enlargement do, but not in proportions. names: what stands over each of them.
    start: where the handle is, 0 (left) ... 1 (right). scale: screen pixels a pixel of the larger.

    >>> small, large = np.zeros((8, 8), np.uint8), np.zeros((16, 16), np.uint8)
    >>> widget = Compare(small, large, names=("8 x 8", "16 x 16"), alt="Grey.", caption="Grey.")
    >>> widget.width, widget.height
    (192, 192)

    ShapeError: what is no picture, or two of different proportions. OptionError: a name, alt or
    caption that is empty, a start outside 0 ... 1, a scale below 1.
    """

    _esm = static("common.js") + static("compare.js")
    before = tr.Bytes().tag(sync=True)
    after = tr.Bytes().tag(sync=True)
    shapes = tr.List().tag(sync=True)  # of both pictures
    names = tr.List().tag(sync=True)
    width = tr.Int().tag(sync=True)
    height = tr.Int().tag(sync=True)
    at = tr.Float().tag(sync=True, echo_update=False)

    def __init__(self, before, after, *, names, alt, caption, start=0.5, scale=None):
        pictures = uint8(before, "before", (2, 3)), uint8(after, "after", (2, 3))
        (h, w), (H, W) = (picture.shape[:2] for picture in pictures)
        if h * W != w * H:
            raise ShapeError(
                f"after is {H} x {W}, before {h} x {w}: give two pictures of the same proportions"
            )
        for name, text in ("alt", alt), ("caption", caption):
            plot.require_text(name, text)
        larger_h, larger_w = max(h, H), max(w, W)
        scale = zoom(scale, larger_h, larger_w, SIDE, SIDE)
        super().__init__(
            before=pictures[0].tobytes(),
            after=pictures[1].tobytes(),
            shapes=[[*picture.shape, 1][:3] for picture in pictures],
            names=two_names(names),
            alt=alt,
            caption=caption,
            width=larger_w * scale,
            height=larger_h * scale,
            at=float(in_range("start", start, 0, 1)),
            drawn=1,
        )
        self._pictures = pictures

    def still(self) -> bytes:
        return beside(self._pictures, self.names, [(self.width, self.height)] * 2)

    def still_width(self) -> int:
        return spread([(self.width, self.height)] * 2)[0][0]
