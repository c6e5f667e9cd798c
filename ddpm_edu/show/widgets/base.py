"""What all widgets share: look, caption, error line, and a still picture. All notebooks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files

import anywidget
import numpy as np
import traitlets as tr

from ...errors import OptionError, ShapeError
from .. import plot


def static(name: str) -> str:
    """The text of a file beside this one."""
    return (files(__package__) / name).read_text(encoding="utf-8")


class Widget(anywidget.AnyWidget):
    """Base of the widgets: caption, error line, and the still picture that goes into the saved
    notebook."""

    _css = static("widgets.css")
    caption = tr.Unicode().tag(sync=True)
    error = tr.Unicode().tag(sync=True)
    note = tr.Unicode().tag(sync=True)  # the warnings of the last redraw, one a line
    alt = tr.Unicode().tag(sync=True)
    drawn = tr.Int(0).tag(sync=True)  # counts pictures: the page draws when it changes

    def still(self) -> bytes:
        """The widget as it stands, as a PNG."""
        raise NotImplementedError

    def page(self) -> str:
        """The HTML that stays in the saved notebook."""
        return plot.figure_html(self.still(), self.alt, self.caption, self.still_width())

    def still_width(self) -> int | None:
        """Screen pixels of the still picture; None: as many as it has."""
        return None

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/html": self.page(), "text/plain": f"[widget: {self.alt}]"}, metadata

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Show the warnings issued meanwhile as a note under the picture: after a move in the page
        nobody would see them."""
        with warnings.catch_warnings(record=True) as caught:
            try:
                yield
            finally:
                self.note = "\n".join(dict.fromkeys(str(warning.message) for warning in caught))

    def _live(self, redraw: Callable[[], None]) -> None:
        """Redraw after a move in the page; a failure is shown under the picture instead of
        vanishing in a log."""
        try:
            redraw()
            self.error = ""
        except Exception as problem:
            self.error = ""  # so that the same failure twice is news to the page
            self.error = f"{type(problem).__name__}: {problem}"


def uint8(array, what: str, dims: tuple[int, int]) -> np.ndarray:
    """A contiguous uint8 array of `dims[0]` axes (grey) or `dims[1]` with 3 at the end (RGB); else
    ShapeError."""
    array = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    if (
        array.dtype != np.uint8
        or array.ndim not in dims
        or (array.ndim == dims[1] and array.shape[-1] != 3)
        or 0 in array.shape
    ):
        raise ShapeError(
            f"{what}: {array.dtype} of shape {array.shape}. Needed: uint8, "
            f"{'(N, H, W) or (N, H, W, 3)' if dims[0] == 3 else '(H, W) or (H, W, 3)'}, "
            "nothing empty; plot.tile(x) makes it from images in [-1, 1]"
        )
    return np.ascontiguousarray(array)


def two_names(names) -> list[str]:
    """Two texts that are not empty, else OptionError."""
    if not isinstance(names, (list, tuple)) or len(names) != 2:
        raise OptionError(f"names = {names!r:.80}: give two texts, one a picture")
    for name in names:
        plot.require_text("names", name)
    return list(names)


GAP, WIDEST = 24, 880  # screen pixels between two pictures of a still, and of the page


def spread(sizes) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Pictures of (width, height) under their names, side by side or, where the page is too narrow,
    one under the other: the width and height of all, the left and top of each."""
    wide, high = (list(side) for side in zip(*sizes))
    before = lambda sides: [sum(sides[:k]) + GAP * k for k in range(len(sides))]
    across = sum(wide) + GAP * (len(sizes) - 1)
    if across <= WIDEST:
        return (across, max(high) + GAP), [(left, GAP) for left in before(wide)]
    return (max(wide), sum(high) + GAP * len(sizes)), [(0, top + GAP) for top in before(high)]


def beside(pictures: Sequence[np.ndarray], names: Sequence[str], sizes) -> bytes:
    """Uint8 pictures at the places that `spread` gives them, under their names: a still picture."""
    (wide, high), corners = spread(sizes)
    fig, axes = plot.axes(wide / plot.DPI, high / plot.DPI, columns=len(sizes))
    fig.set_layout_engine("none")
    for ax, picture, name, (w, h), (left, top) in zip(axes, pictures, names, sizes, corners):
        ax.set_position([left / wide, 1 - (top + h) / high, w / wide, h / high])
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        ax.set_title(name)
        ax.axis("off")
    return plot.small_webp(plot.sharp(fig))


def zoom(scale: int | None, h: int, w: int, high: int = 280, wide: int = 860) -> int:
    """Screen pixels a pixel: `scale` if given, else whatever makes an h x w picture about `high`
    and at most `wide` screen pixels."""
    if scale is None:
        return int(np.clip(min(high // h, wide // w), 1, 12))
    if scale < 1:
        raise OptionError(f"scale is {scale}: it counts screen pixels a pixel, so at least 1")
    return int(scale)


VIEW = "application/vnd.jupyter.widget-view+json"


def freeze(notebook: dict) -> dict:
    """Leave only the still pictures in a notebook's saved outputs (in place; works on a dict or an
    nbformat notebook).

    For the files that ship: without a kernel JupyterLab would print "model not found" where a saved
    widget was. Running the cells brings the widgets back. Progress bars have no still picture and
    go. Also removes `metadata.widgets`, which makes GitHub refuse a notebook when it is stale.
    """
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if "text/html" in output.get("data", {}):
                output["data"].pop(VIEW, None)
        if "outputs" in cell:
            cell["outputs"] = [
                output for output in cell["outputs"] if VIEW not in output.get("data", {})
            ]
    return notebook
