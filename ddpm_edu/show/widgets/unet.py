"""UNetView: touch a block of a UNet and read what it does. Notebook 03."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch  # noqa: F401 (the doctest uses it)
import traitlets as tr

from ...errors import OptionError
from .. import plot
from ..unet import ARC, BLUE, RED, Block, arc, boxes, draw_unet, faces, skips
from .base import Widget, static


class UNetView(Widget):
    """UNets to touch: point at a block (or use the arrow keys) and read its shapes; its skip
    connections light up. Everything is sent once, so it also works without a kernel.

    networks: {name: blocks}, each from `unet.follow`. start: the name shown first. block: the block
    marked first, counted from 0.

    >>> from ddpm_edu.networks.unet import UNet, UNetConfig
    >>> from ddpm_edu.show.unet import follow
    >>> net = UNet(UNetConfig(1, channels=8, mult=(1, 2), depth=(0, 0), heads=(1, 1), groups=4))
    >>> view = UNetView({"tiny": follow(net, torch.zeros(1, 1, 8, 8), torch.zeros(1))}, caption="c")
    >>> view.networks[0]["words"][0]
    'first (1 of 14):  1 x 8 x 8  →  8 x 8 x 8\\nConv2d;  80 parameters'

    OptionError: no network, a start that is none of them, a block the first network lacks.
    """

    _esm = static("common.js") + static("unet.js")
    networks = tr.List().tag(sync=True)
    shown = tr.Int(0).tag(sync=True, echo_update=False)
    block = tr.Int(0).tag(sync=True, echo_update=False)
    colors = tr.Dict({"plain": BLUE, "chosen": RED, "arc": ARC}).tag(sync=True)

    def __init__(
        self,
        networks: Mapping[str, Sequence[Block]],
        *,
        caption: str,
        start: str | None = None,
        block: int = 0,
    ):
        plot.require_text("caption", caption)
        if not networks:
            raise OptionError("networks is empty: give at least one, as {name: follow(...)}")
        names = list(networks)
        start = names[0] if start is None else start
        if start not in networks:
            raise OptionError(f"start is {start!r}, which is none of: {', '.join(names)}")
        if not 0 <= block < len(networks[start]):
            raise OptionError(f"block is {block}: {start} has 0 ... {len(networks[start]) - 1}")
        self._blocks = networks
        super().__init__(
            caption=caption,
            networks=[_page(name, blocks) for name, blocks in networks.items()],
            shown=names.index(start),
            block=block,
            alt=f"{start} as a row of boxes that shrink towards the middle, joined by arcs. "
            + _words(networks[start])[block].replace("\n", "; "),
        )

    def still(self) -> bytes:
        name = list(self._blocks)[self.shown]
        fig, ax = plot.axes(8.4, 3.4)
        draw_unet(ax, self._blocks[name], chosen=self.block)
        words = _words(self._blocks[name])[self.block]
        ax.set_title(f"{name}\n{words}", loc="left", fontsize=10)
        return plot.small_webp(plot.sharp(fig))

    def still_width(self) -> int:
        return round(8.4 * plot.DPI)


def _words(blocks) -> list[str]:
    shape = lambda size: " x ".join(map(str, size))
    return [
        f"{b.name} ({k} of {len(blocks)}):  {shape(b.enters)}  →  {shape(b.leaves)}\n"
        f"{b.contents()};  {b.parameters:,} parameters"
        for k, b in enumerate(blocks, 1)
    ]


def _page(name, blocks) -> dict:
    """What the page draws, in units of the widest box; up is positive."""
    drawn, pairs = boxes(blocks), skips(blocks)
    return {
        "name": name,
        "boxes": [[[list(map(float, p)) for p in face] for face in faces(*b)] for b in drawn],
        "arcs": [arc(drawn[i], drawn[j]).round(3).tolist() for i, j in pairs],
        "pairs": [list(pair) for pair in pairs],
        "bars": [[float(b[0]), float(b[1]), block.parameters] for b, block in zip(drawn, blocks)],
        "words": _words(blocks),
    }
