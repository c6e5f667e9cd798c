"""Controls above a picture: `SliderPicture` (matplotlib), `SliderImage` (pixels). All notebooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import traitlets as tr

from ...errors import OptionError
from .. import plot
from .base import Widget, static, uint8, zoom
from .controls import Choice, Slider, Text, Toggle, show  # noqa: F401 (the doctests use them)


class _Panel(Widget):
    """Controls above a picture. `position` holds, for every control, the index of its current
    option (for a Text, the text)."""

    _moved, _least = "position", 1  # the trait that calls for a redraw; how many controls at least
    _esm = static("common.js") + static("controls.js") + static("panel.js")
    controls = tr.List().tag(sync=True)
    position = tr.Dict().tag(sync=True, echo_update=False)
    image = tr.Bytes().tag(sync=True)  # what the page shows: a PNG, or the pixels (raw)
    shape = tr.List([0, 0, 0]).tag(sync=True)
    scale = tr.Int(1).tag(sync=True)
    raw = tr.Bool(False).tag(sync=True)
    kind = tr.Unicode().tag(sync=True)
    idle = tr.List().tag(sync=True)  # names of the controls that play no part at these values

    def __init__(self, controls, *, alt, caption, idle=None, **traits):
        if len(controls) < self._least:
            raise OptionError("no control: give at least one Slider, Choice, Toggle or Text")
        names = [c.name for c in controls]
        if len(set(names)) < len(names):
            raise OptionError(
                f"two controls share a name: {', '.join(names)}. Each name is an argument of "
                "your function, so they must differ"
            )
        for name, text in ("alt", alt), ("caption", caption):
            if not callable(text):
                plot.require_text(name, text)
        self._options = {c.name: c.options() for c in controls}
        self._words = {"alt": alt, "caption": caption}
        self._idle = idle or (lambda **values: ())
        super().__init__(
            controls=[
                {
                    "name": c.name,
                    "label": c.label or c.name,
                    "kind": c.kind,
                    **_page(c, self._options[c.name]),
                }
                for c in controls
            ],
            position={c.name: c.start(self._options[c.name]) for c in controls},
            **traits,
        )
        self._redraw()
        self.observe(lambda change: self._live(self._redraw), self._moved)

    @property
    def values(self) -> dict:
        """The current value of every control."""
        return {name: options[self.position[name]] for name, options in self._options.items()}

    def move(self, **values) -> None:
        """Set controls from Python; OptionError for an unknown name or a value that is not one of
        the control's."""
        for name, value in values.items():
            if name not in self._options or value not in self._options[name]:
                raise OptionError(
                    f"cannot set {name} to {value!r}: the controls are {', '.join(self._options)}, "
                    "each with its own list of values"
                )
        self.position = {
            **self.position,
            **{name: self._options[name].index(value) for name, value in values.items()},
        }

    def _redraw(self) -> None:
        values = self.values
        with self._noting():
            image = self._image(values)
            words = {name: _filled(text, values) for name, text in self._words.items()}
        with self.hold_sync():  # image, alt text and caption reach the page in one message
            self.image = image
            self.alt, self.caption = words["alt"], words["caption"]
            self.idle = list(self._idle(**values))
            self.drawn += 1


def _filled(text, values: dict) -> str:
    """A text with {name} for a control's value, or a function of the values."""
    if callable(text):
        return text(**values)
    return text.format(**{name: show(value) for name, value in values.items()})


def _page(control, options) -> dict:
    """What the page must know of a control's values."""
    if isinstance(control, Text):
        return {"limit": control.limit, "other": control.other or ""}
    return {"texts": [show(v) for v in options]}


def _require_arguments(function, leading: tuple, names) -> None:
    try:
        inspect.signature(function).bind(*leading, **dict.fromkeys(names))
    except TypeError as problem:
        expected = ", ".join([*leading, *names])
        raise OptionError(
            f"{getattr(function, '__name__', 'the function')} cannot be called as "
            f"({expected}): {problem}. Name its arguments after the controls"
        ) from None


class SliderPicture(_Panel):
    """Controls above a matplotlib picture, redrawn by `draw(ax, **values)` on every move.

    draw: gets the Axes (an array of Axes when rows or columns > 1) and one keyword a control. It
    may return a function `update(**values)`: then the axes are not cleared and later moves call
    only that, which is quicker. alt, caption: text with {name} for a control's value, or a function
    of the values. idle: a function of the values that names the controls which play no part there;
    the page switches them off. width, height: inches (100 pixels each). Further keywords go to
    `plt.subplots` (sharey=True ...).

    >>> def draw(ax, t):
    ...     line, = ax.plot([0, 1], [0, t])
    ...     ax.set_ylim(0, 9)
    ...     def update(t):
    ...         line.set_ydata([0, t])
    ...     return update
    >>> t = Slider("t", range(10), 3)
    >>> widget = SliderPicture(draw, t, alt="A line rising to {t}", caption="t = {t}")
    >>> widget.alt
    'A line rising to 3'
    """

    def __init__(
        self,
        draw: Callable,
        *controls,
        alt,
        caption,
        idle=None,
        width: float = 7,
        height: float = 3,
        rows: int = 1,
        columns: int = 1,
        **subplots,
    ):
        _require_arguments(draw, ("ax",), [c.name for c in controls])
        self._draw, self._update = draw, None
        self._fig, self._ax = plot.axes(width, height, rows=rows, columns=columns, **subplots)
        super().__init__(controls, alt=alt, caption=caption, idle=idle, kind="slider-picture")

    def _image(self, values: dict) -> bytes:
        if self._update is not None:
            self._update(**values)
        else:
            for ax in self._fig.axes if self.drawn else ():
                ax.clear()
                plot.tidy(ax)
            update = self._draw(self._ax, **values)
            self._update = update if callable(update) else None
        image = plot.pixels(self._fig)
        self._fig.set_layout_engine(
            "none"
        )  # the layout stays as it is now: working it out again costs 30 ms a picture
        return plot.png(image)

    def still(self) -> bytes:
        return plot.small_webp(plot.sharp(self._fig))

    def still_width(self) -> int:
        return round(self._fig.get_size_inches()[0] * plot.DPI)


class _Pixels(_Panel):
    """A panel whose image is raw pixels."""

    def _sent(self, picture, what: str = "render's picture") -> bytes:
        """The bytes of a uint8 picture, its shape noted for the page; else ShapeError."""
        picture = uint8(picture, what, (2, 3))
        self.shape = [*picture.shape, 1][:3]
        return picture.tobytes()

    def _enlarged(self) -> np.ndarray:
        """The image as large as on the screen."""
        h, w, channels = self.shape
        picture = np.frombuffer(self.image, np.uint8)
        return plot.enlarge(picture.reshape((h, w, 3) if channels == 3 else (h, w)), self.scale)


class SliderImage(_Pixels):
    """Controls above raw pixels: `render(**values)` returns uint8 (H, W) or (H, W, 3). No
    matplotlib, so it is the fast one.

    scale: screen pixels a pixel (default: about 280 high). idle: as for `SliderPicture`.
    `plot.tile(batch)` turns images in [-1, 1] into such an array.

    >>> grey, t = lambda t: np.full((28, 28), t, np.uint8), Slider("t", range(256))
    >>> widget = SliderImage(grey, t, alt="Grey level {t}", caption="Grey.")
    >>> widget.move(t=200); widget.alt
    'Grey level 200'
    """

    def __init__(
        self, render: Callable, *controls, alt, caption, idle=None, scale: int | None = None
    ):
        _require_arguments(render, (), [c.name for c in controls])
        self._render = render
        super().__init__(
            controls,
            alt=alt,
            caption=caption,
            idle=idle,
            kind="slider-image",
            raw=True,
            scale=zoom(scale, 1, 1),
        )
        self.scale = zoom(scale, *self.shape[:2])

    def _image(self, values: dict) -> bytes:
        return self._sent(self._render(**values))

    def still(self) -> bytes:
        return plot.small_webp(self._enlarged())
