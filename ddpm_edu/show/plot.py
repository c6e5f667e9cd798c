"""Still pictures: one style, colours for the colour-blind too, alt text. All notebooks.

    fig, ax = plot.axes(width=6, height=3)
    plot.curves(ax, t, {"linear": a, "cosine": b}, xlabel="t", ylabel="alpha_bar")
    plot.figure(fig, alt="Two falling curves", caption="Signal left after t steps.")

A notebook's plain `display(fig)` drops the alt text in JupyterLab. `figure` writes an HTML figure
with the picture inside (a data URI), which JupyterLab, GitHub's notebook view and the book all
show.
"""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from ..errors import OptionError, ShapeError

DPI = 100
OKABE_ITO = {  # Okabe and Ito, "Color Universal Design" (2008)
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
    "yellow": "#F0E442",
}
DASHES = ["-", "--", "-.", ":", (0, (7, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2, 1, 2)), (0, (3, 4))]
STYLES = list(zip(OKABE_ITO.values(), DASHES))  # the i-th series: its own colour AND its own dash


def axes(width: float = 7, height: float = 3, *, rows: int = 1, columns: int = 1, **subplots):
    """A white figure in house style, width x height inches (100 pixels an inch; keep the width at
    most 8.5).

    Returns (fig, ax), with ax an array as in `plt.subplots` when there are several. It never
    touches pyplot, so nothing has to be closed and nothing is shown twice.

    >>> fig, (left, right) = axes(8, 3, columns=2, sharey=True)
    """
    fig = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    ax = fig.subplots(rows, columns, **subplots)
    for one in np.ravel(ax):
        tidy(one)
    return fig, ax


def tidy(ax: Axes) -> Axes:
    """House style for one Axes: no box, faint grid, small type. `axes` has already called it."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9, length=3)
    ax.locator_params(nbins=5)  # most of the time of drawing goes into ticks
    ax.xaxis.label.set_size(10)
    ax.yaxis.label.set_size(10)
    ax.title.set_size(11)
    return ax


class Picture:
    """A picture with alt text and a caption; what `figure` and `image_grid` return. Shown when it
    ends a cell, or by `display`."""

    def __init__(self, png: bytes, *, alt: str, caption: str):
        require_text("alt", alt)
        require_text("caption", caption)
        self.png, self.alt, self.caption = png, alt, caption

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {
            "text/html": figure_html(self.png, self.alt, self.caption),
            "text/plain": f"[picture: {self.alt}]",
        }


def figure(fig: Figure, *, alt: str, caption: str) -> Picture:
    """Turn a matplotlib Figure into a `Picture` and close it.

    alt says what a reader who cannot see the picture needs to know; caption is printed below.
    Either empty: OptionError.

    >>> fig, ax = axes(); _ = ax.plot([1, 2])
    >>> figure(fig, alt="A rising line", caption="It rises.").alt
    'A rising line'
    """
    picture = Picture(small_png(pixels(fig)), alt=alt, caption=caption)
    if (
        "matplotlib.pyplot" in sys.modules
    ):  # a pyplot figure left open would be drawn a second time under the cell
        sys.modules["matplotlib.pyplot"].close(fig)
    return picture


def curves(
    ax: Axes,
    x,
    series: Mapping[str, Sequence[float]],
    *,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    logx: bool = False,
    logy: bool = False,
    labels: bool = True,
    linewidth: float = 1.8,
) -> list:
    """Draw one line a series over the same x, each with its own colour and dash, and its name at
    its right end.

    Returns the Line2D objects (for `set_ydata` in a widget). labels=False draws a legend instead of
    direct labels.

    >>> fig, ax = axes()
    >>> lines = curves(ax, [0, 1, 2], {"linear": [3, 2, 1], "cosine": [3, 3, 1.5]}, xlabel="t")
    """
    if not series:
        raise OptionError("series is empty: give at least one curve, as {name: values}")
    x = np.asarray(x, dtype=float)
    lines = []
    for (name, y), (color, dash) in zip(series.items(), STYLES * (1 + len(series) // len(STYLES))):
        y = np.asarray(y, dtype=float)
        if y.shape != x.shape:
            raise ShapeError(
                f"curve {name!r} has shape {y.shape} but x has {x.shape}: give one value for each x"
            )
        lines += ax.plot(x, y, color=color, linestyle=dash, linewidth=linewidth, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if logx:
        ax.set_xscale("log")
    if logy:
        ax.set_yscale("log")
    if labels:
        label_lines(ax, lines)
    else:
        ax.legend(frameon=False, fontsize=9, handlelength=3.2)
    return lines


def label_lines(ax: Axes, lines) -> None:
    """Write each line's name at its right end, in its colour, moved apart where they would
    touch."""
    ends = []
    for line in lines:
        x, y = line.get_data()
        for last in np.flatnonzero(np.isfinite(x) & np.isfinite(y))[-1:]:
            ends.append((x[last], y[last], line))
    points_high = ax.get_position().height * ax.figure.get_size_inches()[1] * 72
    to_points = lambda x, y: (
        ax.transAxes.inverted().transform(ax.transData.transform((x, y)))[1] * points_high
    )
    ends.sort(key=lambda end: to_points(*end[:2]))
    floor = -np.inf
    for x, y, line in ends:
        at = to_points(x, y)
        floor = max(at, floor + 11)  # 11 points: one line of 9-point type
        ax.annotate(
            line.get_label(),
            (x, y),
            xytext=(5, floor - at),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=darker(line.get_color()),
            annotation_clip=False,
        )


def darker(color) -> tuple:
    """The same hue dark enough to read as small text on white."""
    rgb = np.array(to_rgb(color))
    while (
        0.2126 * rgb[0] ** 2.2 + 0.7152 * rgb[1] ** 2.2 + 0.0722 * rgb[2] ** 2.2 > 0.18
    ):  # contrast 4.5 : 1
        rgb = rgb * 0.95
    return tuple(rgb)


def loss_curve(
    ax: Axes,
    losses: Mapping[str, Sequence[float]] | Sequence[float],
    *,
    smooth: float = 0.95,
    every: int = 1,
    ylabel: str = "loss",
    logy: bool = True,
) -> list:
    """Training losses: each raw value faint, a running mean (bias-corrected, decay `smooth`) on
    top.

    losses: one list, or {name: list} to compare runs. every: training steps between two values.

    >>> fig, ax = axes()
    >>> lines = loss_curve(ax, {"healthy": [1, .5, .3], "broken": [1, 1, 1]}, every=10)
    """
    if not 0 <= smooth < 1:
        raise OptionError(
            f"smooth is {smooth}: it must be at least 0 and below 1 (0 = no smoothing)"
        )
    runs = losses if isinstance(losses, Mapping) else {"loss": losses}
    if not runs or any(len(run) == 0 for run in runs.values()):
        raise OptionError("losses is empty: give at least one loss value for each run")
    lines = []
    for (name, run), (color, dash) in zip(runs.items(), STYLES):
        run = np.asarray(run, dtype=float)
        steps = every * np.arange(1, len(run) + 1)
        ax.plot(steps, run, color=color, alpha=0.22, linewidth=0.8)
        lines += ax.plot(
            steps, running_mean(run, smooth), color=color, linestyle=dash, linewidth=1.9, label=name
        )
    ax.set(xlabel="training step", ylabel=ylabel, yscale="log" if logy else "linear")
    if len(runs) > 1:
        label_lines(ax, lines)
    return lines


def running_mean(values, decay: float) -> np.ndarray:
    """Exponential running mean m_k = sum_i decay^(k-i) v_i / sum_i decay^(k-i): exact for a
    constant from the first value on."""
    sums = accumulate(
        ((v, 1.0) for v in np.asarray(values, dtype=float)),
        lambda m, v: (decay * m[0] + v[0], decay * m[1] + 1),
    )
    return np.array([total / weight for total, weight in sums])


def plane(
    ax: Axes,
    points=None,
    *,
    limits: tuple[float, float] = (-3, 3),
    color: str = "#8A8A8A",
    size: float = 3,
    label: str = "",
):
    """A square plane with (n, 2) points; returns the scatter (its `set_offsets` moves the points),
    or None without points.

    >>> fig, ax = axes(3, 3); dots = plane(ax, [[0, 0], [1, 1]], limits=(-2, 2))
    """
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    if points is None:
        return None
    points = np.asarray(points, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ShapeError(f"points have shape {points.shape}: a plane needs (n, 2)")
    return ax.scatter(*points.T, s=size, color=color, linewidths=0, label=label)


def tile(x, columns: int | None = None, *, gap: int = 1, background: int = 255) -> np.ndarray:
    """A batch of images in [-1, 1] as one uint8 array: (B, 1, H, W) -> (h, w), (B, 3, H, W) -> (h,
    w, 3). Values outside are clipped.

    columns: images a row (default: all in one row). gap: pixels of `background` between images.

    >>> tile(np.zeros((3, 1, 28, 28))).shape
    (28, 86)
    """
    x = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, dtype=np.float32)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or len(x) == 0:
        raise ShapeError(
            f"images have shape {x.shape}: expected (B, 1, H, W) or (B, 3, H, W) with B at "
            "least 1, values in [-1, 1]"
        )
    columns = len(x) if columns is None else min(columns, len(x))
    if columns < 1:
        raise OptionError(f"columns is {columns}: give at least 1")
    count, channels, h, w = x.shape
    rows = -(-count // columns)
    sheet = np.full(
        (rows * (h + gap) - gap, columns * (w + gap) - gap, channels), background, dtype=np.uint8
    )
    pixels_ = (
        np.rint((x.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    )  # (B, H, W, C)
    for i, image in enumerate(pixels_):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet[..., 0] if channels == 1 else sheet


def image_grid(
    x,
    *,
    alt: str,
    caption: str,
    columns: int = 10,
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    zoom: int = 2,
) -> Picture:
    """A batch of images in [-1, 1] ((B, 1, H, W) or (B, 3, H, W)) as a `Picture`, sharp pixels,
    `zoom` screen pixels a pixel.

    labels: one text above each image. row_labels, column_labels: texts at the left and on top.

    >>> image_grid(np.zeros((4, 1, 28, 28)), labels="abcd", alt="Four squares", caption="Grey.").alt
    'Four squares'
    """
    columns = min(columns, len(x))
    rows = -(-len(x) // columns) if columns > 0 else 0
    for name, given, wanted in (
        ("labels", labels, len(x)),
        ("row_labels", row_labels, rows),
        ("column_labels", column_labels, columns),
    ):
        if given is not None and len(given) != wanted:
            raise ShapeError(f"{name} has {len(given)} texts for {wanted}: give one each")
    gap = 2 if labels is None else -(-16 // zoom)  # room for a line of type above each image
    sheet = tile(x, columns, gap=gap)
    if labels is None and row_labels is None and column_labels is None:
        return Picture(small_png(enlarge(sheet, zoom)), alt=alt, caption=caption)
    return Picture(
        small_png(
            labelled(sheet, x.shape[2:], gap, zoom, columns, labels, row_labels, column_labels)
        ),
        alt=alt,
        caption=caption,
    )


def labelled(sheet, size, gap, zoom, columns, labels, row_labels, column_labels) -> np.ndarray:
    """Put a tiled sheet on a white page with its texts; everything is measured in screen pixels."""
    h, w = size
    left = 8 + 7 * max(map(len, row_labels)) if row_labels is not None else 0
    top = 18 if column_labels is not None or labels is not None else 0
    page_h, page_w = sheet.shape[0] * zoom + top, sheet.shape[1] * zoom + left
    fig = Figure(figsize=(page_w / DPI, page_h / DPI), dpi=DPI, facecolor="white")
    fig.figimage(
        np.repeat(enlarge(sheet, zoom)[..., None], 3, -1)
        if sheet.ndim == 2
        else enlarge(sheet, zoom),
        left,
        0,
    )
    write = lambda x, y, text, **kw: fig.text(
        x / page_w, 1 - y / page_h, text, fontsize=8.5, color="#222222", **kw
    )
    for i, text in enumerate(labels if labels is not None else ()):
        write(
            left + (i % columns * (w + gap) + w / 2) * zoom,
            top + i // columns * (h + gap) * zoom - 3,
            text,
            ha="center",
            va="bottom",
        )
    for i, text in enumerate(column_labels if column_labels is not None else ()):
        write(left + (i * (w + gap) + w / 2) * zoom, top - 4, text, ha="center", va="bottom")
    for i, text in enumerate(row_labels if row_labels is not None else ()):
        write(left - 6, top + (i * (h + gap) + h / 2) * zoom, text, ha="right", va="center")
    return pixels(fig)


def enlarge(sheet: np.ndarray, zoom: int) -> np.ndarray:
    """Repeat every pixel zoom x zoom times."""
    return sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)


def pixels(fig: Figure) -> np.ndarray:
    """The figure as drawn: uint8 (H, W, 3)."""
    canvas = fig.canvas if isinstance(fig.canvas, FigureCanvasAgg) else FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def png(image: np.ndarray, compress_level: int = 1) -> bytes:
    """uint8 (H, W) or (H, W, 3) as PNG, quickly (compress_level 1 is for live pictures)."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, "PNG", compress_level=compress_level)
    return out.getvalue()


def small_png(image: np.ndarray) -> bytes:
    """PNG for a saved notebook: a 256-colour palette where the eye cannot tell (mean error below
    half a level), else full colour."""
    if image.ndim == 2:
        return png(image, 9)
    full = Image.fromarray(np.ascontiguousarray(image))
    few = full.quantize(256, dither=Image.Dither.NONE)
    error = np.abs(np.asarray(few.convert("RGB"), dtype=np.int16) - image).mean()
    out = io.BytesIO()
    (few if error < 0.5 else full).save(out, "PNG", optimize=True)
    return out.getvalue()


def figure_html(png_bytes: bytes, alt: str, caption: str) -> str:
    """The HTML of a picture with alt text and caption; the data URI must stay on one line (viewers
    drop a broken one)."""
    uri = "data:image/png;base64," + base64.b64encode(png_bytes).decode("ascii")
    style = "max-width:46em;margin-top:0.3em"
    return (
        f'<figure style="margin:0.5em 0"><img alt="{html.escape(alt)}" src="{uri}" '
        f'style="max-width:100%;background:white"><figcaption style="{style}">'
        f"<em>{html.escape(caption)}</em></figcaption></figure>"
    )


def require_text(name: str, text: str) -> None:
    """OptionError unless text is a non-empty string."""
    if not isinstance(text, str) or not text.strip():
        raise OptionError(
            f"{name} is empty: every picture needs a sentence there (alt for those who "
            "cannot see it, caption for all)"
        )
