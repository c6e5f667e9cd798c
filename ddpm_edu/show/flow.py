"""Pictures of flow matching: steps side by side, the blocks of DiT and MM-DiT. Notebook 16.

picker({"plain": {1: x, 2: y}, "distilled": {1: z, 2: w}}, alt=..., caption=...)
fig, ax = plot.axes(8, 3); draw_streams(ax)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ..errors import OptionError
from . import plot
from .widgets import Slider, SliderPicture

PICTURE, TEXT, BOTH, TIME = "#CFE3F1", "#F7C9A8", "#D8D0E8", "#E8E8E8"


class Picker(SliderPicture):
    """What `picker` returns."""

    def still(self) -> bytes:
        """As on the screen: pixels of 32 x 32 pictures are large enough, and the file small."""
        return plot.small_webp(plot.pixels(self._fig))


def picker(
    pictures: Mapping[str, Mapping[int, object]],
    *,
    alt: str,
    caption: str | Callable,
    start: int | None = None,
    label: str = "steps",
) -> Picker:
    """One row of pictures a model, redrawn as the slider goes through the numbers of steps.

    pictures: {model: {steps: (B, C, H, W) in [-1, 1]}}, the same steps for each. alt, caption: text
    with {steps}, or functions of `steps`. OptionError where the steps differ.
    """
    steps = sorted(next(iter(pictures.values()), {}))
    if any(sorted(row) != steps for row in pictures.values()):
        raise OptionError(f"pictures: give each model the same steps, here {steps}")
    sheet = lambda name, n: plot.tile(pictures[name][n], gap=2)
    height, width = sheet(next(iter(pictures)), steps[0]).shape[:2]

    def draw(axes, steps):
        shown = {}
        for ax, name in zip(np.ravel(axes), pictures):
            shown[name] = ax.imshow(sheet(name, steps), interpolation="nearest", cmap="gray")
            ax.set_title(name, fontsize=11, loc="left")
            ax.axis("off")

        def update(steps):
            for name, image in shown.items():
                image.set_data(sheet(name, steps))

        return update

    return Picker(
        draw,
        Slider("steps", steps, start or steps[0], label=label),
        alt=alt,
        caption=caption,
        width=8.2,
        height=len(pictures) * (8.2 * height / width + 0.28),
        rows=len(pictures),
    )


def box(ax, x: float, y: float, text: str, color: str, width: float = 1.5, height: float = 0.5):
    """A rounded box around (x, y) with a text in it."""
    corner = x - width / 2, y - height / 2
    style = "round,pad=0.02,rounding_size=0.08"
    ax.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=color, edgecolor="#444444")
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=8.5)


def arrow(ax, start, end, color="#444444", bend: float = 0.0) -> None:
    style = f"arc3,rad={bend}"
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=color,
                        connectionstyle=style, shrinkA=0, shrinkB=0)
    )  # fmt: skip


def draw_block(ax) -> None:
    """A DiT block, from left to right: what the time's embedding shifts, scales and gates."""
    places = [
        (1.3, "adaLN", PICTURE), (3.1, "attention", PICTURE), (4.9, "gate", TIME),
        (7.6, "adaLN", PICTURE), (9.4, "mlp", PICTURE), (11.2, "gate", TIME),
    ]  # fmt: skip
    for x, text, color in places:
        box(ax, x, 0, text, color)
    box(ax, 6.2, 2.1, "time $t$ and text: SiLU, one linear layer that starts at 0", TIME, 8.2)
    for start, end in ((-0.3, 0.5), (2.1, 2.3), (3.9, 4.1), (8.4, 8.6), (10.2, 10.4), (12, 13.3)):
        arrow(ax, (start, 0), (end, 0))
    for x in (6.3, 12.6):
        ax.plot([x], [0], "o", markersize=13, color="white", markeredgecolor="#444444", zorder=3)
        ax.text(x, 0, "+", ha="center", va="center", fontsize=12, zorder=4)
    for start, end in ((0, 6.3), (6.6, 12.6)):
        arrow(ax, (start, -0.05), (end, -0.2), bend=0.22)
    arrow(ax, (5.65, 0), (6.1, 0))
    arrow(ax, (6.5, 0), (6.8, 0))
    for x, text in zip((1.3, 4.9, 7.6, 11.2), ("shift, scale", "gate") * 2):
        arrow(ax, (x if 2.2 < x < 10.2 else min(max(x, 2.3), 10.1), 1.85), (x, 0.28))
        ax.text(x + (0.9 if x < 2 else 0.12), 0.95, text, fontsize=8, ha="left", va="center")
    ax.text(-0.4, 0.3, "tokens $x$", fontsize=9, ha="left")
    ax.set(xlim=(-0.5, 13.5), ylim=(-1.6, 2.5))
    ax.axis("off")


def draw_streams(ax) -> None:
    """A block of two streams at the left, one of a single stream at the right; no residuals."""
    for y, name, color in ((1.15, "text", TEXT), (-1.15, "picture", PICTURE)):
        box(ax, 0.7, y, f"{name}\ntokens", color, 1.5, 0.95)
        box(ax, 2.8, y, "adaLN,\nQ, K, V", color, 1.5, 0.95)
        box(ax, 7.2, y, "linear,\ngate", color, 1.4, 0.95)
        box(ax, 9.2, y, "adaLN,\nmlp, gate", color, 1.7, 0.95)
        for start, end in (((1.45, y), (2.05, y)), ((7.9, y), (8.35, y))):
            arrow(ax, start, end)
        arrow(ax, (3.55, y), (4.1, y * 0.3))
        arrow(ax, (5.9, y * 0.3), (6.5, y))
        arrow(ax, (10.05, y), (11.25, y * 0.3))
    box(ax, 5.0, 0, "attention\nover both", BOTH, 1.8, 0.95)
    box(ax, 12.2, 0, "text, picture:\none row", BOTH, 1.9, 0.95)
    box(ax, 14.5, 0, "adaLN", BOTH, 1.3, 0.8)
    box(ax, 16.6, 0.62, "attention", BOTH, 1.5, 0.7)
    box(ax, 16.6, -0.62, "mlp", BOTH, 1.5, 0.7)
    box(ax, 18.7, 0, "linear,\ngate", BOTH, 1.4, 0.95)
    for start, end in (
        ((13.3, 0), (13.85, 0)), ((15.15, 0), (15.85, 0.55)), ((15.15, 0), (15.85, -0.55)),
        ((17.35, 0.55), (18.0, 0.1)), ((17.35, -0.55), (18.0, -0.1)), ((19.4, 0), (20, 0)),
    ):  # fmt: skip
        arrow(ax, start, end)
    ax.text(5.0, 2.0, "two streams: each kind of token has weights of its own", ha="center")
    ax.text(16.6, 2.0, "one stream", ha="center")
    ax.plot([10.65, 10.65], [-1.8, 2.2], color="#BBBBBB", linestyle=":", linewidth=1)
    ax.set(xlim=(-0.2, 20.1), ylim=(-1.8, 2.4))
    ax.axis("off")
