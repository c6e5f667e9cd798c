"""Films, played and scrubbed in the page: pictures (Film) and points (PointFilm). All notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import traitlets as tr
from matplotlib import colormaps
from matplotlib.colors import to_hex

from ...errors import OptionError, ShapeError
from .. import plot
from .base import Widget, static, uint8, zoom

SHADES = 24  # as many colours as the page draws


class _Player(Widget):
    """What all films share. The frames are sent once, so a film also plays without a kernel."""

    frames = tr.Bytes().tag(sync=True)
    shape = tr.List().tag(sync=True)
    captions = tr.List().tag(sync=True)
    label = tr.Unicode().tag(sync=True)
    index = tr.Int(0).tag(sync=True, echo_update=False)
    fps = tr.Float(30).tag(sync=True)
    loop = tr.Bool(False).tag(sync=True)
    autoplay = tr.Bool(True).tag(sync=True)

    def __init__(self, n, captions, *, label, caption, fps, start, **traits):
        plot.require_text("label", label)
        plot.require_text("caption", caption)
        if captions is not None and len(captions) != n:
            raise OptionError(f"{len(captions)} captions for {n} frames: give one text a frame")
        if not 1 <= fps <= 60:
            raise OptionError(f"fps is {fps}: choose 1 to 60 frames a second")
        start = n // 2 if start is None else start
        if not 0 <= start < n:
            raise OptionError(f"start is {start}: the frames are 0 ... {n - 1}")
        super().__init__(
            captions=list(captions or ()),
            label=label,
            caption=caption,
            alt=f"{label}: a film of {n} frames",
            fps=fps,
            index=start,
            **traits,
        )


class Film(_Player):
    """A film of pictures.

    frames: uint8 (N, H, W) or (N, H, W, 3), or a list of such pictures (`plot.tile` makes one; put
    two films side by side with `np.concatenate([a, b], axis=-1)` for grey ones). captions: one text
    a frame. label: what it shows (also for screen readers). scale: screen pixels a pixel. loop:
    start again at the end. start: the frame shown first, the middle one by default. autoplay: play
    once when the reader first sees it.

    >>> film = Film(np.zeros((90, 28, 28), np.uint8), label="A digit", caption="All grey.")
    >>> film.shape, film.index
    ([90, 28, 28, 1], 45)

    OptionError: no frames, captions of another length, fps outside 1 ... 60. ShapeError: frames
    that are not uint8 pictures.
    """

    _esm = static("common.js") + static("transport.js") + static("film.js")
    scale = tr.Int(1).tag(sync=True)

    def __init__(
        self,
        frames,
        captions: Sequence[str] | None = None,
        *,
        label: str,
        caption: str,
        fps: float = 30,
        scale: int | None = None,
        loop: bool = False,
        start: int | None = None,
        autoplay: bool = True,
    ):
        if len(frames) == 0:
            raise OptionError("frames is empty: a film needs at least one picture")
        if not isinstance(frames, np.ndarray) and not hasattr(frames, "detach"):
            frames = [np.asarray(frame) for frame in frames]
            sizes = {frame.shape for frame in frames}
            if len(sizes) > 1:
                shapes = ", ".join(map(str, sorted(sizes)))
                raise ShapeError(
                    f"frames have different shapes ({shapes}): all must be of one size"
                )
            frames = np.stack(frames)
        frames = uint8(frames, "frames", (3, 4))
        n, h, w = frames.shape[:3]
        super().__init__(
            n,
            captions,
            label=label,
            caption=caption,
            fps=fps,
            start=start,
            loop=loop,
            autoplay=autoplay,
            frames=frames.tobytes(),
            shape=[n, h, w, 3 if frames.ndim == 4 else 1],
            scale=zoom(scale, h, w),
        )

    def still(self, count: int = 6) -> bytes:
        """A strip of frames from first to last, as a PNG."""
        n, h, w, channels = self.shape
        frames = np.frombuffer(self.frames, np.uint8).reshape(n, h, w, channels)
        count = max(min(2, n), min(n, count, 860 // (w * min(self.scale, 3))))
        zoom = max(1, min(self.scale, 860 // (count * w)))
        gap = np.full((h * zoom, 4, channels), 255, np.uint8)
        strip = [
            part
            for k in np.linspace(0, n - 1, count).round().astype(int)
            for part in (gap, plot.enlarge(frames[k], zoom))
        ][1:]
        return plot.small_webp(
            np.concatenate(strip, axis=1).squeeze(-1)
            if channels == 1
            else np.concatenate(strip, axis=1)
        )


class PointFilm(_Player):
    """A film of points in the plane that trail their paths.

    panels: {title: (N, B, 2)}, one square plane a title, side by side; N frames of the same B
    points in each. values: (B,) numbers that colour the points, such as the place on a spiral where
    each ends. limits: of both axes. trail: how many frames of its path a point shows; only one
    point in `trail_every` has a trail. side: screen pixels of a plane. The rest as for `Film`.

    >>> steps = np.zeros((30, 100, 2))
    >>> PointFilm({"x_t": steps}, values=np.arange(100), label="A cloud", caption="At rest.").shape
    [1, 30, 100]

    OptionError: no panel, fps outside 1 ... 60. ShapeError: panels of different shapes or not
    (N, B, 2), NaN or infinity in them, values of another length.
    """

    _esm = static("common.js") + static("transport.js") + static("points.js")
    titles = tr.List().tag(sync=True)
    colors = tr.List().tag(sync=True)
    groups = tr.List().tag(sync=True)  # which of the colors each point has
    side = tr.Int(420).tag(sync=True)
    trail = tr.Int(12).tag(sync=True)
    trail_every = tr.Int(8).tag(sync=True)

    def __init__(
        self,
        panels: Mapping[str, Sequence],
        captions: Sequence[str] | None = None,
        *,
        values,
        label: str,
        caption: str,
        limits: tuple[float, float] = (-3, 3),
        fps: float = 30,
        side: int = 420,
        trail: int = 12,
        trail_every: int = 8,
        loop: bool = False,
        start: int | None = None,
        autoplay: bool = True,
    ):
        if not panels:
            raise OptionError("panels is empty: give at least one, as {title: (N, B, 2) points}")
        points = [np.asarray(p, dtype=float) for p in panels.values()]
        shapes = {p.shape for p in points}
        if (
            len(shapes) > 1
            or points[0].ndim != 3
            or points[0].shape[2] != 2
            or 0 in points[0].shape
        ):
            raise ShapeError(
                f"panels have shapes {sorted(shapes)}: each must be the same (N, B, 2)"
            )
        points = np.stack(points)
        if not np.isfinite(points).all():
            raise ShapeError("panels hold NaN or infinity, so they cannot be drawn")
        values = np.asarray(values, dtype=float)
        if values.shape != points.shape[2:3]:
            raise ShapeError(f"values have shape {values.shape}, needed ({points.shape[2]},)")
        low, high = limits
        span = np.clip(((points - low) / (high - low) + 0.5) / 2, 0, 1)  # twice the plane, 0 ... 1
        rank = (values - values.min()) / (np.ptp(values) or 1)
        super().__init__(
            points.shape[1],
            captions,
            label=label,
            caption=caption,
            fps=fps,
            start=start,
            loop=loop,
            autoplay=autoplay,
            frames=(span * 65535).round().astype("<u2").tobytes(),
            shape=list(points.shape[:3]),
            titles=list(panels),
            colors=[to_hex(c) for c in colormaps["turbo"](np.linspace(0.05, 0.95, SHADES))],
            groups=(rank * (SHADES - 1)).round().astype(int).tolist(),
            side=side,
            trail=trail,
            trail_every=trail_every,
        )
        self._points, self._limits = points, limits

    def still(self, count: int = 5) -> bytes:
        """Each panel at `count` times from first to last, as a PNG."""
        panels, n, _ = self.shape
        times = np.linspace(0, n - 1, min(count, n)).round().astype(int)
        size = 8.4 / len(times)
        fig, axes = plot.axes(
            8.4, (size + 0.25) * panels, rows=panels, columns=len(times), squeeze=False
        )
        colors = np.array(self.colors)[self.groups]
        for r, (row, title, points) in enumerate(zip(axes, self.titles, self._points)):
            for ax, k in zip(row, times):
                plot.plane(ax, points[k], limits=self._limits, color=colors, size=2)
                ax.set(xticks=[], yticks=[])
                if self.captions and r == 0:
                    ax.set_title(self.captions[k], fontsize=10)
            row[0].set_ylabel(title)
        return plot.small_webp(plot.sharp(fig))

    def still_width(self) -> int:
        return round(8.4 * plot.DPI)
