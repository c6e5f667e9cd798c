"""Playground: draw points, and a small network learns in the page to find them. Notebook 02."""

from __future__ import annotations

import numpy as np
import traitlets as tr

from ...errors import OptionError
from ...schedule import Schedule
from .. import plot
from .base import Widget, static
from .drag import _pairs

LIMIT, SIDE, STILL = 3.0, 400, 25  # of the plane; screen pixels; the time of the still picture


class Playground(Widget):
    """A plane to draw on, and beside it what a network makes of noise, trained in the page.

    points: (N, 2) to begin with, within -3 ... 3, or None for a spiral. No kernel is needed once it
    is shown: the network, its gradients, Adam and DDIM are written out in playground.js.
    `widget.points` holds what was drawn when training last began: x, y, x, y, ...

    >>> pad = Playground([[0.0, 1.0], [1.0, 0.0]], alt="A playground", caption="Draw.")
    >>> pad.points
    [0.0, 1.0, 1.0, 0.0]

    ShapeError: points that are not (N, 2). OptionError: points outside the plane.
    """

    _esm = static("common.js") + static("playground.js")
    points = tr.List().tag(sync=True, echo_update=False)

    def __init__(self, points=None, *, alt: str, caption: str):
        for name, text in ("alt", alt), ("caption", caption):
            plot.require_text(name, text)
        pairs = [] if points is None else _pairs(points, "points")
        if pairs and np.abs(pairs).max() > LIMIT:
            raise OptionError(f"points reach {np.abs(pairs).max():g}: scale them into -3 ... 3")
        super().__init__(alt=alt, caption=caption, points=[v for pair in pairs for v in pair])

    def still(self) -> bytes:
        """The points, and beside them density and score at a middle time, by the exact formula."""
        x_0 = np.array(self.points).reshape(-1, 2) if self.points else _spiral()
        at = lambda n: np.stack(np.meshgrid(*2 * [np.linspace(-LIMIT, LIMIT, n)]), -1)
        fig, (left, right) = plot.axes(2 * SIDE / plot.DPI, SIDE / plot.DPI, columns=2)
        left.scatter(*x_0.T, s=4, color=plot.OKABE_ITO["blue"], linewidths=0)
        fine = at(80)
        q = np.sqrt(_noised(x_0, fine)[0])
        levels = np.linspace(0, q.max(), 9)[1:]
        right.contourf(*np.moveaxis(fine, -1, 0), q, levels, cmap="Blues", vmax=2 * q.max())
        grid = at(15)
        score = _noised(x_0, grid)[1]
        size = np.linalg.norm(score, axis=-1, keepdims=True)
        score = score / size * np.tanh(size / 2)
        right.quiver(*np.moveaxis(grid, -1, 0), *np.moveaxis(score, -1, 0), color="#B34700")
        for ax, title in (left, "Draw here"), (right, f"Density and score at $t = {STILL}$"):
            ax.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", title=title)
            ax.set(xticks=[], yticks=[])
        return plot.small_webp(plot.sharp(fig))

    def still_width(self) -> int:
        return 2 * SIDE


def _spiral() -> np.ndarray:
    r = 1.5 * np.pi * (1 + 2 * np.linspace(0, 1, 400))
    return np.stack([r * np.cos(r), r * np.sin(r)], 1) / 6


def _noised(x_0: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Density q(x_t), up to a factor, and its score at points x (..., 2) at the time STILL of the
    page's schedule: a mixture of one bell a point of the data."""
    s, n = Schedule.cosine(100).signal_noise(STILL - 1)
    away = s * x_0 - x[..., None, :]  # (..., N, 2)
    bells = np.exp(-(away**2).sum(-1) / (2 * n**2)) + 1e-30
    q = bells.sum(-1)
    return q, (bells[..., None] * away).sum(-2) / q[..., None] / n**2
