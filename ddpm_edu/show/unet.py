"""A UNet as a picture: what each block does to the shape, and which copy goes where. Notebook 03.

    blocks = follow(net, x_t, t)         run it once and look
    fig, ax = plot.axes(8, 3)
    draw_unet(ax, blocks)                a box a tensor, an arc a skip connection

`widgets.UNetView` is the same picture to touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.collections import LineCollection, PolyCollection
from torch import nn

from . import plot

BLUE = ["#CFE3F1", "#8DB8D6", "#5B9BC6"]  # top, side, front of a box
RED = ["#F7C9A8", "#E58A4B", "#D55E00"]
ARC = plot.OKABE_ITO["orange"]


@dataclass
class Block:
    """One stop on the data's way through a UNet; `enters` and `leaves` are shapes (C, H, W)."""

    name: str
    layers: list
    parameters: int
    enters: tuple = ()
    leaves: tuple = ()

    def contents(self) -> str:
        """What is inside, in words."""
        words, pixels = [], self.enters[1] * self.enters[2]
        for layer in self.layers:
            depth = len(getattr(layer, "blocks", ()))  # of a SpatialTransformer
            kind = f"{depth} x transformer on {pixels:,} pixels" if depth else type(layer).__name__
            words.append(kind)
        return " + ".join(words)


def follow(model: nn.Module, *inputs) -> list[Block]:
    """Run a `UNet` or `ClassicUNet` once, note the shape that enters and leaves each block.

    Works on the meta device too, where tensors have a shape and no contents.
    """
    blocks, hooks = [], []
    for name, layers in _parts(model):
        count = sum(p.numel() for layer in layers for p in layer.parameters())
        block = Block(name, layers, count)

        def entering(module, args, block=block):
            block.enters = tuple(args[0].shape[1:])

        def leaving(module, args, out, block=block):
            block.leaves = tuple(out.shape[1:])

        hooks.append(layers[0].register_forward_pre_hook(entering))
        hooks.append(layers[-1].register_forward_hook(leaving))
        blocks.append(block)
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return blocks


def _parts(model) -> list:
    """(name, layers) of the blocks, in the order in which the data meets them."""
    if hasattr(model, "conv_in"):  # UNet
        first, middle, last = model.conv_in, model.mid, [model.norm_out, model.conv_out]
    else:  # ClassicUNet
        first, middle, last = model.first, model.middle, model.last
    named = [("first", first)]
    named += [(f"down {i}", part) for i, part in enumerate(model.down, 1)]
    named += [("middle", middle)]
    named += [(f"up {i}", part) for i, part in enumerate(model.up, 1)]
    named += [("last", last)]
    many = (list, nn.ModuleList)
    return [(name, list(part) if isinstance(part, many) else [part]) for name, part in named]


def skips(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """(from, to) for every skip connection, last in, first out: the first copy, of block 0, goes to
    the last block on the way up."""
    up = [i for i, block in enumerate(blocks) if block.name.startswith("up")]
    return list(zip(reversed(range(len(up))), up))


def boxes(blocks: Sequence[Block]) -> np.ndarray:
    """(n, 4): x, thickness, height, depth of the box of the tensor that leaves each block.
    Thickness means channels; height and depth mean H and W, each relative to the largest."""
    largest = np.max([block.leaves for block in blocks], axis=0)
    out, x = [], 0.0
    for channels, h, w in [np.array(block.leaves) / largest for block in blocks]:
        out.append((x, 0.1 + 0.9 * channels, h, 0.3 * w))
        x += 0.1 + 0.9 * channels + 0.28 + 0.15 * w
    return np.array(out)


def faces(x, c, h, d) -> list:
    """The top, the side and the front of a box, as polygons."""
    top = [(x, h / 2), (x + c, h / 2), (x + c + d, h / 2 + d / 2), (x + d, h / 2 + d / 2)]
    side = [
        (x + c, -h / 2),
        (x + c + d, -h / 2 + d / 2),
        (x + c + d, h / 2 + d / 2),
        (x + c, h / 2),
    ]
    front = [(x, -h / 2), (x + c, -h / 2), (x + c, h / 2), (x, h / 2)]
    return [top, side, front]


def arc(start, end) -> np.ndarray:
    """(40, 2) points of the bow from one box to just before another."""
    x, c, h, d = start
    a, b, angle = x + (c + d) / 2, end[0] - 0.1, np.linspace(0, np.pi, 40)
    height = (h + d) / 2 + (0.1 + 0.06 * (b - a)) * np.sin(angle)
    return np.stack([(a + b) / 2 + (a - b) / 2 * np.cos(angle), height], axis=1)


def draw_unet(ax, blocks, pairs=None, *, chosen: int | None = None, shapes: bool = False) -> None:
    """Boxes and arcs on an Axes. pairs: which box sends its copy to which, `skips(blocks)` by
    default. chosen: the box to paint red. shapes: write (C, H, W) below each box."""
    pairs, drawn = skips(blocks) if pairs is None else pairs, boxes(blocks)
    colors = [shade for k in range(len(blocks)) for shade in (RED if k == chosen else BLUE)]
    polygons = [face for box in drawn for face in faces(*box)]
    lines = [arc(drawn[i], drawn[j]) for i, j in pairs]
    widths = [2.5 if chosen in pair else 0.9 for pair in pairs]
    ax.add_collection(PolyCollection(polygons, facecolors=colors, edgecolors="#444", lw=0.5))
    ax.add_collection(LineCollection(lines, colors=ARC, linewidths=widths))
    for (x, c, h, d), block in zip(drawn, blocks) if shapes else ():
        text = "\n".join(map(str, block.leaves))
        ax.text(x + c / 2, -h / 2 - 0.06, text, ha="center", va="top", fontsize=8)
    right = drawn[-1][0] + drawn[-1][1] + drawn[-1][3]
    ax.set(xlim=(-0.2, right + 0.1), ylim=(-1.1 if shapes else -0.6, 0.85 + 0.06 * right))
    ax.axis("off")
