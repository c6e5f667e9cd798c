"""Masks of many kinds, for training what paints into them. Notebook 10.

1 is to be painted anew, 0 stays. A model that saw one kind only would know holes by their shape.
"""

import torch
from torch import Tensor

from ..errors import whole

SHARES = {"box": 0.4, "brush": 0.3, "half": 0.15, "all": 0.15}  # of the masks


def masks(n: int, side: int, seed: int = 0) -> Tensor:
    """n random masks (n, 1, side, side) of 0 and 1: boxes, strokes of a brush, halves, everything.

    Each kind has its share of SHARES; they come in any order.
    """
    whole("n", n, 1, 10**9, "masks")
    whole("side", side, 2, 4096, "pixels")
    gen = torch.Generator().manual_seed(seed)
    kind = torch.multinomial(torch.tensor(list(SHARES.values())), n, True, generator=gen)
    out = torch.ones(n, side, side)
    for k, paint in enumerate((boxes, strokes, halves)):
        own = (kind == k).nonzero()[:, 0]
        for part in own.split(1000):
            out[part] = paint(len(part), side, gen)
    return out[:, None]


def boxes(n: int, side: int, gen: torch.Generator) -> Tensor:
    """(n, side, side): rectangles of a quarter to all of each side, anywhere."""
    size = side * (0.25 + 0.75 * torch.rand(n, 2, generator=gen))
    first = (side - size) * torch.rand(n, 2, generator=gen)
    at = torch.arange(side) + 0.5
    row, column = ((at >= a) & (at <= b) for a, b in zip(*_ends(first, size)))
    return (row[:, :, None] & column[:, None]).float()


def _ends(first, size):
    low, high = first, first + size
    return (low[:, :1], low[:, 1:]), (high[:, :1], high[:, 1:])


def strokes(n: int, side: int, gen: torch.Generator) -> Tensor:
    """(n, side, side): what a round brush covers on its way along three random lines."""
    points = side * torch.rand(n, 4, 2, generator=gen)
    radius = side * (0.06 + 0.12 * torch.rand(n, 1, 1, generator=gen))
    at = torch.arange(side) + 0.5
    pixels = torch.stack(torch.meshgrid(at, at, indexing="ij"), -1)  # (side, side, 2)
    out = torch.zeros(n, side, side)
    for a, b in zip(points.unbind(1), points[:, 1:].unbind(1)):
        a, way = a[:, None, None], (b - a)[:, None, None]
        along = ((pixels - a) * way).sum(-1) / way.square().sum(-1).clamp(min=1e-6)
        near = a + along.clamp(0, 1)[..., None] * way
        out = torch.maximum(out, ((pixels - near).norm(dim=-1) <= radius).float())
    return out


def halves(n: int, side: int, gen: torch.Generator) -> Tensor:
    """(n, side, side): all on one side of a line near the middle: upper, lower, left or right."""
    edge = side * (0.35 + 0.3 * torch.rand(n, 1, generator=gen))
    which = torch.randint(4, (n,), generator=gen)
    line = (torch.arange(side) + 0.5 < edge) ^ (which >= 2)[:, None]  # (n, side)
    out = line[:, :, None].expand(-1, -1, side)
    return torch.where((which % 2 == 0)[:, None, None], out, out.mT).float()
