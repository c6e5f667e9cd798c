r"""Still pictures and tables: one style, colours for the colour-blind too, alt text. All notebooks.

    fig, ax = plot.axes(width=8, height=3)
    plot.curves(ax, t, {"linear": a, "cosine": b}, xlabel="$t$", ylabel=r"$\bar\alpha_t$")
    plot.figure(fig, alt="Two falling curves", caption="Signal left after t steps.")

A notebook's plain `display(fig)` drops the alt text in JupyterLab. `figure` writes an HTML figure
with the picture inside (a data URI), which JupyterLab, GitHub's notebook view and the book all
show.
"""

from __future__ import annotations

import base64
import html
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from ..errors import OptionError, ShapeError

matplotlib.rcParams["mathtext.fontset"] = "stix"  # formulas in labels look as those in the text
DPI = 100  # screen pixels an inch
SHARP = 2  # stored pixels a screen pixel, for screens with many
WIDTH = 800  # screen pixels of a picture that fills the page
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
    ax.xaxis.label.set_size(11)
    ax.yaxis.label.set_size(11)
    ax.title.set_size(11)
    return ax


class Picture:
    """A picture with alt text and a caption; what `figure` and `image_grid` return. Shown when it
    ends a cell, or by `display`."""

    def __init__(self, data: bytes, *, alt: str, caption: str, width: int | None = None):
        require_text("alt", alt)
        require_text("caption", caption)
        self.data, self.alt, self.caption, self.width = data, alt, caption, width

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {
            "text/html": figure_html(self.data, self.alt, self.caption, self.width),
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
    width = round(fig.get_size_inches()[0] * DPI)
    picture = Picture(small_webp(sharp(fig)), alt=alt, caption=caption, width=width)
    if "matplotlib.pyplot" in sys.modules:  # left open it would be drawn again under the cell
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
    zoom: float | None = None,
) -> Picture:
    """A batch of images in [-1, 1] ((B, 1, H, W) or (B, 3, H, W)) as a `Picture`, sharp pixels.

    labels: one text above each image. row_labels, column_labels: texts at the left and on top.
    zoom: screen pixels a pixel, in halves; unless given, the grid fills the page.

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
    gap, sheet = 2, tile(x, columns, gap=2)
    left = max(map(text_width, row_labels)) + 10 if row_labels is not None else 0
    if labels is not None:
        left = max(left, LINE // 2)
    taken = left + LINE * (columns if labels is not None else 0)  # not by the images
    times = round(SHARP * zoom) if zoom else filling(sheet, taken)  # stored pixels a pixel
    if labels is None and row_labels is None and column_labels is None:
        image = enlarge(sheet, times)
    else:
        if labels is not None:  # room for a line of type above each image
            gap = -(-LINE * SHARP // times)
            sheet = tile(x, columns, gap=gap)
        texts = (labels, row_labels, column_labels)
        image = labelled(sheet, x.shape[2:], gap, times, left, columns, texts)
    return Picture(small_webp(image), alt=alt, caption=caption, width=image.shape[1] // SHARP)


def filling(sheet: np.ndarray, taken: int) -> int:
    """Stored pixels a pixel so that the sheet fills the page but for `taken` screen pixels of its
    width; at most 8 screen pixels a pixel."""
    h, w = sheet.shape[:2]
    return int(np.clip(SHARP * min((WIDTH - taken) / w, WIDTH / h), SHARP, SHARP * 8))


LINE = 18  # screen pixels of a line of type
TYPE = {"fontsize": 10.5, "color": "#222222"}


def text_width(text: str) -> int:
    """Screen pixels of a label, formulas set."""
    fig = Figure(dpi=DPI)
    box = fig.text(0, 0, text, **TYPE).get_window_extent(FigureCanvasAgg(fig).get_renderer())
    return int(np.ceil(box.width))


def labelled(sheet, size, gap, times, left, columns, texts) -> np.ndarray:
    """Put a tiled sheet on a white page with its texts (above each image, at the left of each row,
    above each column); all lengths but `left` are in stored pixels."""
    labels, row_labels, column_labels = (list(t) if t is not None else [] for t in texts)
    image = enlarge(sheet if sheet.ndim == 3 else np.repeat(sheet[..., None], 3, -1), times)
    across, down = (size[1] + gap) * times, (size[0] + gap) * times  # from image to image
    left, top = left * SHARP, LINE * SHARP * bool(labels or column_labels)
    page_h, page_w, dpi = image.shape[0] + top, left + image.shape[1], DPI * SHARP
    page_w += LINE * bool(labels)  # half a gap, as at the left
    fig = Figure(figsize=(page_w / dpi, page_h / dpi), dpi=dpi, facecolor="white")
    fig.figimage(image, left, 0)
    widest = max(map(text_width, labels + column_labels), default=1)
    small = TYPE | {"fontsize": TYPE["fontsize"] * min(1, across / SHARP / widest)}
    above = [(i % columns, i // columns, text) for i, text in enumerate(labels)]
    for column, row, text in above + [(i, 0, text) for i, text in enumerate(column_labels)]:
        x, y = left + column * across + size[1] * times / 2, top + row * down - 0.3 * LINE * SHARP
        fig.text(x / page_w, 1 - y / page_h, text, ha="center", va="baseline", **small)
    for row, text in enumerate(row_labels):
        y = top + row * down + size[0] * times / 2
        fig.text((left - 14) / page_w, 1 - y / page_h, text, ha="right", va="center", **TYPE)
    return pixels(fig)


def enlarge(sheet: np.ndarray, zoom: int) -> np.ndarray:
    """Repeat every pixel zoom x zoom times."""
    return sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)


def sharp(fig: Figure) -> np.ndarray:
    """The figure as it is stored: SHARP times the pixels of the screen."""
    fig.set_dpi(DPI * SHARP)
    image = pixels(fig)
    fig.set_dpi(DPI)
    return image


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


def small_webp(image: np.ndarray) -> bytes:
    """Lossless WebP for a saved notebook: a 256-colour palette where the eye cannot tell (mean
    error below one level of 256), else full colour."""
    full = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    few = full.quantize(256, dither=Image.Dither.NONE).convert("RGB")
    error = np.abs(np.asarray(few, dtype=np.int16) - np.asarray(full)).mean()
    out = io.BytesIO()
    (few if error < 1 else full).save(out, "WEBP", lossless=True, quality=30, method=2)
    return out.getvalue()


def figure_html(picture: bytes, alt: str, caption: str, width: int | None = None) -> str:
    """The HTML of a PNG or WebP with alt text and caption, `width` screen pixels wide (default: as
    many as it has). The data URI must stay on one line (viewers drop a broken one)."""
    kind = "png" if picture.startswith(b"\x89PNG") else "webp"
    uri = f"data:image/{kind};base64," + base64.b64encode(picture).decode("ascii")
    wide = f'width="{width}" ' if width else ""
    style = "max-width:46em;margin-top:0.3em"
    return (
        f'<figure style="margin:0.5em 0"><img alt="{html.escape(alt)}" src="{uri}" {wide}'
        f'style="max-width:100%;background:white"><figcaption style="{style}">'
        f"<em>{html.escape(typeset(caption))}</em></figcaption></figure>"
    )


def typeset(text: str) -> str:
    """Numbers as a printer sets them: a real minus sign, and a space before the per cent sign."""
    text = re.sub(r"(?<![\w.\])])-(?=\.?\d)", "\N{MINUS SIGN}", text)
    return re.sub(r"(?<=\d) ?%", "\N{NO-BREAK SPACE}%", text)


class Table:
    """Rows of texts below `head`, a caption under them; what `table` returns. The first column is
    left-aligned, cells (row, column) in `bold` are bold."""

    def __init__(self, head: list[str], rows: list[list[str]], caption: str, bold=frozenset()):
        require_text("caption", caption)
        self.head, self.rows, self.caption, self.bold = head, rows, caption, bold

    def _repr_mimebundle_(self, include=None, exclude=None):
        lines = [self.head, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        fit = lambda i, text: text.ljust(widths[i]) if i == 0 else text.rjust(widths[i])
        plain = ["  ".join(fit(i, text) for i, text in enumerate(line)) for line in lines]
        caption = html.escape(typeset(self.caption))
        return {
            "text/html": f"<table>{self._body()}</table><p><em>{caption}</em></p>",
            "text/plain": "\n".join([*plain, self.caption]),
        }

    def _body(self) -> str:
        side = lambda i: f"text-align:{'right' if i else 'left'};padding:1px 9px"
        cell = lambda i, text, tag: f'<{tag} style="{side(i)}">{text}</{tag}>'
        words = lambda r, i, text: f"<b>{text}</b>" if (r, i) in self.bold else text
        line = lambda cells: f"<tr>{''.join(cells)}</tr>"
        return line(cell(i, html.escape(t), "th") for i, t in enumerate(self.head)) + "".join(
            line(cell(i, words(r, i, html.escape(typeset(t))), "td") for i, t in enumerate(row))
            for r, row in enumerate(self.rows)
        )


def table(
    rows: Sequence[Mapping],
    *,
    caption: str,
    formats: Mapping[str, str] = {},
    best: Mapping[str, Callable] = {},
) -> Table:
    """Rows {column: value} as a table; the columns are the first row's keys.

    formats: {column: format}, such as {"accuracy": ".1%"}; other floats get 3 digits.
    best: {column: min or max}: the best of the column is bold, all of them where several are equal.

    >>> scores = [{"sampler": "DDIM", "Frechet": 0.41}, {"sampler": "Heun", "Frechet": 0.5}]
    >>> table(scores, best={"Frechet": min}, caption="Two samplers.").bold
    {(0, 1)}
    """
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise OptionError("rows: give at least one, and all with the same columns")
    columns = list(rows[0])
    for name, given in ("formats", formats), ("best", best):
        if unknown := set(given) - set(columns):
            raise OptionError(
                f"{name} names {', '.join(unknown)}: columns are {', '.join(columns)}"
            )
    form = lambda column, v: format(v, formats.get(column, ".3g" if isinstance(v, float) else ""))
    texts = [[form(column, row[column]) for column in columns] for row in rows]
    bold = {
        (r, columns.index(column))
        for column, better in best.items()
        for r, row in enumerate(rows)
        if row[column] == better(row[column] for row in rows)
    }
    return Table(columns, texts, caption, bold)


def require_text(name: str, text: str) -> None:
    """OptionError unless text is a non-empty string."""
    if not isinstance(text, str) or not text.strip():
        raise OptionError(
            f"{name} is empty: every picture needs a sentence there (alt for those who "
            "cannot see it, caption for all)"
        )
