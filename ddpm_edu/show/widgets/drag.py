"""DragPoint: move a start point over a plane and watch its paths. Notebooks 00 and 02."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import traitlets as tr

from ...errors import OptionError, ShapeError
from .. import plot
from .base import Widget, static


class DragPoint(Widget):
    """A plane with a point to drag (mouse, touch, arrow keys; Shift for big steps) and the paths
    that start there.

    points: (n, 2) data shown as a grey cloud, or None. trace(xy) -> {name: (m, 2) path}, called on
    every move with a float array of 2; the names must stay the same. limits: (low, high) of both
    axes. start: where the point is first. size: pixels. note: words about a path, (m, 2) -> str,
    read out after its end.

    >>> home = lambda xy: {"straight home": np.linspace(xy, [0, 0], 5)}
    >>> widget = DragPoint(None, home, alt="A path to the origin", caption="Drag it.")
    >>> widget.summary
    'start (1.00, 1.00)\\nstraight home ends at (0.00, 0.00)'

    OptionError: limits that do not increase, start outside them, trace gives no path. ShapeError:
    points or paths that are not (n, 2).
    """

    _esm = static("common.js") + static("drag.js")
    xy = tr.List().tag(sync=True, echo_update=False)
    paths = tr.Dict().tag(sync=True)
    styles = tr.Dict().tag(sync=True)
    points = tr.List().tag(sync=True)
    limits = tr.List().tag(sync=True)
    size = tr.Int(420).tag(sync=True)
    label = tr.Unicode().tag(sync=True)
    summary = tr.Unicode().tag(sync=True)

    def __init__(
        self,
        points,
        trace: Callable[[np.ndarray], Mapping],
        *,
        alt: str,
        caption: str,
        limits: tuple[float, float] = (-3, 3),
        start: tuple[float, float] = (1, 1),
        label: str = "start point",
        size: int = 420,
        note: Callable[[np.ndarray], str] | None = None,
    ):
        for name, text in ("alt", alt), ("caption", caption), ("label", label):
            plot.require_text(name, text)
        low, high = map(float, limits)
        if not low < high:
            raise OptionError(f"limits are ({low:g}, {high:g}): the first must be below the second")
        if not all(low <= v <= high for v in start):
            raise OptionError(
                f"start {tuple(start)} lies outside the plane {low:g} ... {high:g}: move it "
                "inside or widen limits"
            )
        self._trace, self._note = trace, note
        cloud = [] if points is None else _pairs(points, "points")
        super().__init__(
            alt=alt,
            caption=caption,
            points=cloud,
            limits=[low, high],
            xy=[float(v) for v in start],
            label=label,
            size=size,
        )
        self._redraw()
        self.observe(lambda change: self._live(self._redraw), "xy")

    def _redraw(self) -> None:
        with self._noting():
            paths = {
                name: _pairs(path, f"path {name!r}")
                for name, path in self._trace(np.array(self.xy)).items()
            }
        if not paths:
            raise OptionError("trace returned no path: it must give {name: (n, 2) array}")
        with self.hold_sync():
            if not self.styles:
                self.styles = {
                    name: {"color": color, "dash": dash}
                    for name, (color, dash) in zip(
                        paths, _SVG_STYLES * (1 + len(paths) // len(_SVG_STYLES))
                    )
                }
            words = lambda path: f", {self._note(np.array(path))}" if self._note else ""
            ends = [
                f"{name} ends at {_spoken(path[-1])}{words(path)}" for name, path in paths.items()
            ]
            self.summary = "\n".join([f"start {_spoken(self.xy)}", *ends])
            self.paths = paths
            self.drawn += 1

    def still(self) -> bytes:
        fig, ax = plot.axes(self.size / plot.DPI, self.size / plot.DPI)
        plot.plane(ax, self.points or None, limits=tuple(self.limits), color="#B4B4B4")
        for (name, path), (color, dash) in zip(self.paths.items(), plot.STYLES * 9):
            ax.plot(*np.array(path).T, color=color, linestyle=dash, label=name)
            ax.plot(*path[-1], "o", color=color)
        ax.plot(*self.xy, "ko", markersize=9)
        ax.legend(fontsize=8)
        return plot.small_webp(plot.sharp(fig))

    def still_width(self) -> int:
        return self.size


_SVG_STYLES = list(
    zip(
        plot.OKABE_ITO.values(),
        ["none", "7 4", "9 3 2 3", "2 3", "14 4", "1 4", "9 3 2 3 2 3", "4 7"],
    )
)


def _spoken(point) -> str:
    return "({:.2f}, {:.2f})".format(*(round(v, 2) + 0.0 for v in point))  # + 0.0: no "-0.00"


def _pairs(points, what: str) -> list:
    """(n, 2) numbers, n at least 1, as a list of rounded pairs for the page; else ShapeError."""
    array = np.asarray(points.detach().cpu() if hasattr(points, "detach") else points, dtype=float)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0:
        raise ShapeError(f"{what}: shape {array.shape}, needed (n, 2) with n at least 1")
    if not np.isfinite(array).all():
        raise ShapeError(f"{what}: holds NaN or infinity, so it cannot be drawn")
    return array.round(4).tolist()
