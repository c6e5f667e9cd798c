"""The first UNet many people met, kept beside `unet.py` to compare. Notebook 03.

Max-pool down, bilinear up, self-attention after every level. It has the inputs and outputs of
`UNet`, so the same loss and samplers run it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import ShapeError, fits
from .unet import timestep_embedding


class DoubleConv(nn.Module):
    """conv, norm, GELU, conv, norm; one group in the norm: all channels of a picture together."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            nn.GroupNorm(1, c_out),
            nn.GELU(),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.GroupNorm(1, c_out),
        )

    def forward(self, x):
        return self.layers(x)


class SelfAttention(nn.Module):
    """h = x + attention(norm(x)), then h + mlp(norm(h)): every pixel looks at every pixel."""

    def __init__(self, dim: int, heads: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )

    def forward(self, x):
        h = x.flatten(2).transpose(1, 2)  # (B, H*W, C)
        n = self.norm(h)
        h = h + self.attention(n, n, n, need_weights=False)[0]
        h = h + self.mlp(h)
        return h.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)


class Level(nn.Module):
    """One level of the way down or up: two convolutions, the time added, self-attention."""

    def __init__(self, c_in: int, c_out: int, emb: int):
        super().__init__()
        self.conv, self.attention = DoubleConv(c_in, c_out), SelfAttention(c_out)
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(emb, c_out))

    def forward(self, x, emb):
        return self.attention(self.conv(x) + self.time(emb)[:, :, None, None])


class ClassicUNet(nn.Module):
    """x_t (B, in_channels, H, W), t (B,), cond.vector (B, vector) -> (B, in_channels, H, W).

    Three levels down and up; H and W at least 8. `vector` is the width of a text or class vector,
    projected and added to the time embedding. Raises ShapeError.
    """

    def __init__(self, in_channels: int = 1, channels: int = 32, vector: int = 0, emb: int = 128):
        super().__init__()
        c = channels
        self.in_channels, self.n_vector, self.emb = in_channels, vector, emb
        self.vector = nn.Linear(vector, emb) if vector else None
        self.first = DoubleConv(in_channels, c)
        self.down = nn.ModuleList(
            [Level(c, 2 * c, emb), Level(2 * c, 4 * c, emb), Level(4 * c, 4 * c, emb)]
        )
        self.middle = DoubleConv(4 * c, 4 * c)
        self.up = nn.ModuleList(
            [Level(8 * c, 2 * c, emb), Level(4 * c, c, emb), Level(2 * c, c, emb)]
        )
        self.last = nn.Conv2d(c, in_channels, 1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        fits("x_t", x_t, ("B", self.in_channels, "H", "W"), "this UNet takes")
        fits("t", t, (len(x_t),), "pass one time a picture,")
        if min(x_t.shape[2:]) < 8:
            raise ShapeError(f"x_t has shape {tuple(x_t.shape)}: H and W must be at least 8")
        emb = timestep_embedding(t, self.emb).to(x_t.dtype)  # (B, emb)
        if self.vector is not None:
            shape = len(x_t), self.n_vector
            fits("cond.vector", cond.vector, shape, "this UNet takes", "zeros for no condition")
            emb = emb + self.vector(cond.vector)
        h = self.first(x_t)
        skips = []
        for level in self.down:
            skips.append(h)
            h = level(F.max_pool2d(h, 2), emb)
        h = self.middle(h)
        for level in self.up:
            skip = skips.pop()
            h = F.interpolate(h, size=skip.shape[2:], mode="bilinear", align_corners=True)
            h = level(torch.cat([skip, h], dim=1), emb)
        return self.last(h)
