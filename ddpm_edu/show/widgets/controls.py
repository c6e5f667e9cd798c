"""What a reader moves: sliders, menus, switches and lines of text. All notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import OptionError


@dataclass(frozen=True)
class Slider:
    """A slider over an increasing sequence of numbers, so the author chooses the scale.

    >>> t = Slider("t", range(1000), 300)                            # whole numbers, from 300
    >>> eta = Slider("eta", np.linspace(0, 1, 21), 0.0, label="eta (noise put back)")
    >>> sigma = Slider("sigma", np.geomspace(0.01, 80, 101), 1.0)    # starts nearest to 1
    >>> steps = Slider("steps", [1, 3, 9, 27, 81])

    OptionError: fewer than two values, values that do not increase, a start outside them.
    """

    name: str
    values: Sequence[float]
    value: float | None = None
    label: str = ""
    kind = "slider"

    def options(self) -> tuple:
        options = tuple(v.item() if hasattr(v, "item") else v for v in self.values)
        if len(options) < 2 or not all(a < b for a, b in zip(options, options[1:])):
            raise OptionError(
                f"slider {self.name!r}: its values must increase and be at least two; got "
                f"{len(options)} "
                f"({', '.join(map(str, options[:4]))} ...). Use range, np.linspace or np.geomspace"
            )
        return options

    def start(self, options: tuple) -> int:
        value = options[0] if self.value is None else self.value
        if not options[0] <= value <= options[-1]:
            raise OptionError(
                f"slider {self.name!r} starts at {value}, outside {options[0]} ... "
                f"{options[-1]}: choose a start inside"
            )
        return int(np.argmin(np.abs(np.asarray(options, dtype=float) - value)))


@dataclass(frozen=True)
class Choice:
    """A menu. `draw` receives the chosen option itself.

    >>> schedule = Choice("schedule", ["linear", "cosine"], "cosine")

    OptionError: fewer than two options, or a start that is not one of them.
    """

    name: str
    values: Sequence
    value: object = None
    label: str = ""
    kind = "choice"

    def options(self) -> tuple:
        if len(self.values) < 2:
            raise OptionError(
                f"choice {self.name!r} has {len(self.values)} option: give at least two"
            )
        return tuple(self.values)

    def start(self, options: tuple) -> int:
        if self.value is not None and self.value not in options:
            raise OptionError(
                f"choice {self.name!r} starts at {self.value!r}, which is not one of "
                f"{', '.join(map(str, options))}"
            )
        return 0 if self.value is None else options.index(self.value)


@dataclass(frozen=True)
class Toggle:
    """A switch: `draw` receives True or False.

    >>> clip = Toggle("clip", True, label="clip x0-hat to [-1, 1]")
    """

    name: str
    value: bool = False
    label: str = ""
    kind = "toggle"

    def options(self) -> tuple:
        return (False, True)

    def start(self, options: tuple) -> int:
        return int(bool(self.value))


@dataclass(frozen=True)
class Text:
    """A line of text, such as a prompt: `draw` receives the string, which may be empty. Redrawn on
    Enter or when the reader leaves the field.

    other: a second sensible text. The empty field shows it as a hint, and the browser test types
    it. limit: characters at most.

    >>> prompt = Text("prompt", "a red seven on a blue ground", other="a green two")

    OptionError: a text that is no string, longer than the limit, or of several lines; `other` the
    same as the start.
    """

    name: str
    value: str = ""
    label: str = ""
    other: str | None = None
    limit: int = 300
    kind = "text"

    def options(self) -> AnyText:
        options = AnyText(self.name, self.limit)
        if self.other is not None and options.require(self.other) == self.value:
            raise OptionError(
                f"text {self.name!r}: other is the same as the start. Give a second text, with "
                "another picture"
            )
        return options

    def start(self, options: AnyText) -> str:
        return options.require(self.value)


@dataclass(frozen=True)
class AnyText:
    """The options of a Text: every line of at most `limit` characters. The position of a text is
    the text itself."""

    name: str
    limit: int

    def require(self, text) -> str:
        if not isinstance(text, str):
            raise OptionError(f"text {self.name!r}: got {text!r}, needed a string")
        if len(text) > self.limit:
            raise OptionError(
                f"text {self.name!r}: {len(text)} characters, at most {self.limit} are allowed: "
                "shorten it"
            )
        if len(text.splitlines()) > 1:
            raise OptionError(
                f"text {self.name!r}: {len(text.splitlines())} lines, the field holds one: join "
                "them"
            )
        return text

    __getitem__ = index = require

    def __contains__(self, text) -> bool:
        return self.require(text) == text


def show(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
