"""A picture's codes as they appear, two plans side by side: CodeFilm. Notebook 15."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import traitlets as tr

from ...errors import OptionError, ShapeError
from .. import plot
from .base import static, uint8
from .film import _Player

CELL = 26  # screen pixels of a place of the board


class CodeFilm(_Player):
    """Boards of codes that fill pass by pass, each beside the picture that the codes give so far.

    plans: {title: (steps, pictures)}. steps: one a pass of the network, each with codes (1, n),
    known (1, n) and confidence (1, n) of one picture of n = rows x columns codes (`CodeStep`).
    pictures: uint8 (passes + 1, H, W, 3), before the first pass and after each. All plans share one
    clock: a plan that needs fewer passes waits for the others. Pointing at a place, or the arrow
    keys on the boards, tells its code, the pass that chose it and how sure the network was.
    rows: of the board, a square one unless given. The rest as for `Film`.

    OptionError: no plan, a plan without steps, codes of more than one picture. ShapeError: plans
    with unequal boards or pictures, pictures that are not uint8 or not one a pass.
    """

    _esm = static("common.js") + static("transport.js") + static("codes.js")
    titles = tr.List().tag(sync=True)
    numbers = tr.Bytes().tag(sync=True)  # (P, N, n) int16: the code of a place, -1 where unknown
    sure = tr.Bytes().tag(sync=True)  # (P, N, n) bytes, 255 is certain
    cell = tr.Int(CELL).tag(sync=True)

    def __init__(
        self,
        plans: Mapping[str, tuple],
        *,
        label: str,
        caption: str,
        rows: int | None = None,
        fps: float = 4,
        start: int | None = None,
        loop: bool = False,
        autoplay: bool = True,
    ):
        if not plans:
            raise OptionError("plans is empty: give at least one, as {title: (steps, pictures)}")
        boards = [_board(title, steps) for title, (steps, _) in plans.items()]
        places = {codes.shape[1] for codes, _ in boards}
        n = places.pop()
        rows = round(n**0.5) if rows is None else rows
        if places or n % rows:
            raise ShapeError(
                f"boards of {n} places, {rows} rows: all plans need the same board, a whole number "
                "of rows"
            )
        films = [uint8(pictures, "pictures", (3, 4)) for _, pictures in plans.values()]
        shapes = {film.shape[1:] for film in films}
        if len(shapes) > 1 or len(films[0].shape) != 4:
            raise ShapeError(f"pictures have shapes {shapes}: all plans need the same (N, H, W, 3)")
        for title, film, (codes, _) in zip(plans, films, boards):
            if len(film) != len(codes):
                raise ShapeError(
                    f"{title}: {len(film)} pictures for {len(codes) - 1} passes: give one before "
                    "the first pass and one after each"
                )
        passes = max(len(codes) for codes, _ in boards)
        self._films = _waiting(films, passes)  # (P, N, H, W, 3)
        self._codes = _waiting([codes for codes, _ in boards], passes)
        self._passes = [len(codes) - 1 for codes, _ in boards]
        sure = _waiting([sure for _, sure in boards], passes)
        super().__init__(
            passes,
            [self._words(k) for k in range(passes)],
            label=label,
            caption=caption,
            fps=fps,
            start=start,
            loop=loop,
            autoplay=autoplay,
            titles=list(plans),
            numbers=self._codes.astype("<i2").tobytes(),
            sure=(255 * sure).round().astype(np.uint8).tobytes(),
            frames=self._films.tobytes(),
            shape=[len(plans), passes, rows, n // rows, *films[0].shape[1:3]],
        )

    def _words(self, k: int) -> str:
        counts = (self._codes[:, k] >= 0).sum(1)
        ends = ["" if k < passes else ", done" for passes in self._passes]
        total = self._codes.shape[2]
        parts = [f"{c} of {total} codes{end}" for c, end in zip(counts, ends)]
        return f"pass {k}: " + "; ".join(parts)

    def still(self, count: int = 5) -> bytes:
        """The pictures so far at `count` times, more of them early, as a picture."""
        plans, passes, rows, columns, *_ = self.shape
        last = passes - 1
        times = sorted({round(k) for k in np.geomspace(min(2, last), last, count).tolist()})
        size = 8.4 / len(times)
        fig, axes = plot.axes(
            8.4, (size + 0.22) * plans, rows=plans, columns=len(times), squeeze=False
        )
        for p, title in enumerate(self.titles):
            for ax, k in zip(axes[p], times):
                ax.imshow(self._films[p, k], extent=(0, columns, rows, 0), interpolation="nearest")
                for i in np.flatnonzero(self._codes[p, k] < 0):
                    y, x = divmod(int(i), columns)
                    ax.add_patch(_square(x, y))
                ax.set(xticks=[], yticks=[], xlim=(0, columns), ylim=(rows, 0))
                ax.grid(False)
                ax.set_title(f"pass {k}: {(self._codes[p, k] >= 0).sum()} codes", fontsize=10)
            axes[p][0].set_ylabel(title)
        return plot.small_webp(plot.sharp(fig))

    def still_width(self) -> int:
        return round(8.4 * plot.DPI)


def _square(x: int, y: int):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, facecolor="#E8E8E8", edgecolor="white", linewidth=0.6)


def _board(title: str, steps: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """The codes (passes + 1, n), -1 where unknown, and how sure they were, nothing known first."""
    if len(steps) == 0:
        raise OptionError(f"{title}: no steps: a plan needs at least one pass")
    codes, known, sure = (
        np.stack([np.asarray(getattr(step, name)) for step in steps])
        for name in ("codes", "known", "confidence")
    )
    if codes.ndim != 3 or codes.shape[1] != 1:
        raise OptionError(
            f"{title}: codes of shape {codes.shape[1:]}: give the steps of one picture, (1, n)"
        )
    codes = np.where(known, codes, -1)[:, 0]
    sure = np.where(known, sure, 0.0)[:, 0].clip(0, 1)
    nothing = np.full_like(codes[:1], -1)
    return np.concatenate([nothing, codes]), np.concatenate([np.zeros_like(sure[:1]), sure])


def _waiting(films: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Films of unequal lengths in one array: the last frame of a shorter one stays."""
    return np.stack([film[np.minimum(np.arange(n), len(film) - 1)] for film in films])
