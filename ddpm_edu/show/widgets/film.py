"""Film: frames sent once, played and scrubbed in the page. All notebooks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import traitlets as tr

from ...errors import OptionError, ShapeError
from .. import plot
from .base import Widget, static, uint8, zoom


class Film(Widget):
    """A film to play or scrub. The frames are sent once, so it also plays in a page without a
    kernel.

    frames: uint8 (N, H, W) or (N, H, W, 3), or a list of such pictures (`plot.tile` makes one; put
    two films side by side with `np.concatenate([a, b], axis=-1)` for grey ones). captions: one text
    a frame. label: what it shows (also for screen readers). scale: screen pixels a pixel. loop:
    start again at the end.

    >>> film = Film(np.zeros((90, 28, 28), np.uint8), label="A digit", caption="All grey.")
    >>> film.shape
    [90, 28, 28, 1]

    OptionError: no frames, captions of another length, fps outside 1 ... 60. ShapeError: frames
    that are not uint8 pictures.
    """

    _esm = static("common.js") + static("film.js")
    frames = tr.Bytes().tag(sync=True)
    shape = tr.List().tag(sync=True)
    captions = tr.List().tag(sync=True)
    label = tr.Unicode().tag(sync=True)
    index = tr.Int(0).tag(sync=True, echo_update=False)
    fps = tr.Float(30).tag(sync=True)
    scale = tr.Int(1).tag(sync=True)
    loop = tr.Bool(False).tag(sync=True)

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
        start: int = 0,
    ):
        plot.require_text("label", label)
        plot.require_text("caption", caption)
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
        if captions is not None and len(captions) != n:
            raise OptionError(f"{len(captions)} captions for {n} frames: give one text a frame")
        if not 1 <= fps <= 60:
            raise OptionError(f"fps is {fps}: choose 1 to 60 frames a second")
        if not 0 <= start < n:
            raise OptionError(f"start is {start}: the frames are 0 ... {n - 1}")
        super().__init__(
            frames=frames.tobytes(),
            shape=[n, h, w, 3 if frames.ndim == 4 else 1],
            captions=list(captions or ()),
            label=label,
            caption=caption,
            alt=f"{label}: a film of {n} frames",
            fps=fps,
            scale=zoom(scale, h, w),
            loop=loop,
            index=start,
        )

    def still(self, count: int = 6) -> bytes:
        """A strip of frames from first to last, as a PNG."""
        n, h, w, channels = self.shape
        frames = np.frombuffer(self.frames, np.uint8).reshape(n, h, w, channels)
        count = max(1, min(n, count, 860 // w))
        zoom = max(1, min(self.scale, 860 // (count * w)))
        gap = np.full((h * zoom, 4, channels), 255, np.uint8)
        strip = [
            part
            for k in np.linspace(0, n - 1, count).round().astype(int)
            for part in (gap, plot.enlarge(frames[k], zoom))
        ][1:]
        return plot.small_png(
            np.concatenate(strip, axis=1).squeeze(-1)
            if channels == 1
            else np.concatenate(strip, axis=1)
        )
