"""Pad: draw on a small picture, or mark a part of it, and see what becomes of it. Notebook 10."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import traitlets as tr
from torch import Tensor

from ...errors import DataError, OptionError, fits, pixels, whole
from .. import plot
from .base import beside, spread, static, two_names, zoom
from .controls import Choice  # noqa: F401 (the doctest uses it)
from .panel import _Pixels, _require_arguments

SIDE = 320  # screen pixels of the drawing's longer side
MASKS = {"mask": 1, "no mask": 0}  # the two paints of the mask brush


class Pad(_Pixels):
    """A picture to draw on with mouse, finger, pen or keys; beside it what `render` makes of it.

    render(picture, mask, **values) -> uint8 (h, w) or (h, w, 3), as `plot.tile` makes it: called
    when the pen is lifted and when a control moves. It gets the two properties

        pad.picture   (1, 3, H, W) in [-1, 1]
        pad.mask      (1, 1, H, W) of 0 and 1

    picture: what is drawn on, (1, 3, H, W) in [-1, 1]. colors: the palette, {name: (red, green,
    blue)} of 0 ... 255, such as datasets.painted.COLOURS; its first colour is an empty sheet's,
    the second is on the brush at first.
    mask: (1, 1, H, W) of 0 and 1 adds a brush that marks pixels; without it the mask stays 0.
    With colors alone readers draw, with mask alone they mark, with both they do both. names: the
    headings of drawing and result. alt: of the result; alt and caption as for `SliderPicture`.
    brush: pixels across. cell: screen pixels a pixel of the drawing (default: about 320 high).
    The controls stand below; there may be none.

    >>> def darker(picture, mask, by):
    ...     return plot.tile(picture - by * mask)
    >>> by = Choice("by", [0.5, 1.0])
    >>> pad = Pad(darker, by, picture=torch.ones(1, 3, 8, 8), mask=torch.ones(1, 1, 8, 8),
    ...           alt="Darker by {by}", caption="Mark what becomes darker.")
    >>> pad.mask.sum().item(), pad.alt
    (64.0, 'Darker by 0.5')

    OptionError: nothing to paint with, more than 10 paints, a colour that is none, a brush wider
    than the picture. ShapeError, DataError: a picture or mask that is none, masks of another size.
    """

    _moved, _least = "asked", 0
    _esm = static("common.js") + static("controls.js") + static("pad.js")
    sheet = tr.CBytes().tag(sync=True, echo_update=False)  # (H, W, 4): red, green, blue, mask
    start = tr.Bytes().tag(sync=True)  # the sheet before the first stroke
    size = tr.List().tag(sync=True)
    paints = tr.List().tag(sync=True)
    names = tr.List().tag(sync=True)
    brush = tr.Int(3).tag(sync=True)
    cell = tr.Int(1).tag(sync=True)
    asked = tr.Int(0).tag(sync=True, echo_update=False)  # counts the page's requests ...
    answered = tr.Int(0).tag(sync=True)  # ... and this the newest one that was drawn

    def __init__(
        self,
        render: Callable,
        *controls,
        picture: Tensor,
        colors: Mapping[str, tuple[int, int, int]] = {},
        mask: Tensor | None = None,
        names: tuple[str, str] = ("Draw here", "What becomes of it"),
        alt,
        caption,
        idle=None,
        brush: int = 3,
        cell: int | None = None,
    ):
        _require_arguments(render, ("picture", "mask"), [c.name for c in controls])
        sheet = _sheet(picture, mask)
        h, w = sheet.shape[:2]
        if cell is not None:
            whole("cell", cell, 1, 64, "screen pixels a pixel")
        self._render = render
        super().__init__(
            controls,
            alt=alt,
            caption=caption,
            idle=idle,
            kind="pad",
            raw=True,
            sheet=sheet.tobytes(),
            start=sheet.tobytes(),
            size=[h, w],
            names=two_names(names),
            paints=_paints(colors, mask is not None),
            brush=whole("brush", brush, 1, max(h, w), "pixels across"),
            cell=zoom(cell, h, w, SIDE, SIDE),
        )

    @property
    def picture(self) -> Tensor:
        """What is drawn: (1, 3, H, W) in [-1, 1]."""
        colours = torch.from_numpy(self._pixels()[..., :3].astype(np.float32))
        return (colours / 127.5 - 1).permute(2, 0, 1)[None]

    @property
    def mask(self) -> Tensor:
        """What is marked: (1, 1, H, W), 1 inside and 0 outside."""
        return torch.from_numpy(self._pixels()[..., 3].astype(np.float32))[None, None]

    def _pixels(self) -> np.ndarray:
        return np.frombuffer(self.sheet, np.uint8).reshape(*self.size, 4)

    def move(self, **values) -> None:
        with self.hold_trait_notifications():
            super().move(**values)
            self.asked += 1

    def _image(self, values: dict) -> bytes:
        image = self._sent(self._render(self.picture, self.mask, **values))
        h, w = self.shape[:2]
        self.scale = zoom(None, h, w, self.size[0] * self.cell, 530)
        return image

    def _redraw(self) -> None:
        try:
            super()._redraw()
        finally:
            self.answered = self.asked

    def _sizes(self) -> list:
        (h, w), (rows, columns) = self.size, self.shape[:2]
        return [(w * self.cell, h * self.cell), (columns * self.scale, rows * self.scale)]

    def still(self) -> bytes:
        return beside((self._hatched(), self._enlarged()), self.names, self._sizes())

    def _hatched(self) -> np.ndarray:
        """The drawing as large as on the screen, its mask as black and white stripes."""
        shown = plot.enlarge(self._pixels(), self.cell)
        stripes = np.add.outer(*map(np.arange, shown.shape[:2])) % 10 < 5
        marked = np.where(stripes, 255, 0)[..., None] * 0.65 + shown[..., :3] * 0.35
        return np.where(shown[..., 3:] == 1, marked, shown[..., :3]).astype(np.uint8)

    def page(self) -> str:
        note = "To draw, run this cell: drawing needs a running kernel."
        alt = f"{self.names[0]}: the drawing it starts from. {self.names[1]}: {self.alt}"
        return plot.figure_html(self.still(), alt, f"{self.caption} {note}", self.still_width())

    def still_width(self) -> int:
        return spread(self._sizes())[0][0]


def _sheet(picture: Tensor, mask: Tensor | None) -> np.ndarray:
    """(H, W, 4) uint8: red, green, blue, mask."""
    fits("picture", picture, (1, 3, "H", "W"), "a pad takes")
    pixels("picture", picture)
    h, w = picture.shape[2:]
    mask = torch.zeros(1, 1, h, w) if mask is None else mask
    fits("mask", mask, (1, 1, h, w), "this picture takes")
    if not ((mask == 0) | (mask == 1)).all():
        raise DataError("mask holds other numbers than 0 and 1: pass (mask > 0.5).float()")
    colours = ((picture.detach().cpu().float() + 1) * 127.5).round()
    return torch.cat([colours, mask.detach().cpu()], 1)[0].permute(1, 2, 0).numpy().astype(np.uint8)


def _paints(colors: Mapping, marks: bool) -> list[dict]:
    """What the page paints with: a colour, or a value of the mask."""
    if not isinstance(colors, Mapping):
        raise OptionError(f"colors = {colors!r:.80}: give a dict, {{name: (red, green, blue)}}")
    for name, color in colors.items():
        three = isinstance(color, (tuple, list)) and len(color) == 3
        if not three or not all(isinstance(c, int) and 0 <= c <= 255 for c in color):
            raise OptionError(f"colors[{name!r}] is {color!r}: give (red, green, blue), 0 ... 255")
    paints = [{"name": name, "color": list(color)} for name, color in colors.items()]
    paints += [{"name": name, "mask": value} for name, value in MASKS.items()] if marks else []
    if not 0 < len(paints) <= 10:
        raise OptionError(
            f"colors make {len(paints)} paints, with the mask's two if there is a mask: "
            "give 1 to 10, one a digit key"
        )
    return paints
