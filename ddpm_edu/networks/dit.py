"""DiT, the diffusion transformer: patches as tokens, the time by adaLN-zero. Notebook 16.

DiT = Peebles & Xie 2022 (arXiv 2212.09748); texts by cross-attention as in PixArt-alpha = Chen et
al. 2023 (arXiv 2310.00426). It is called like the UNet, so `loss`, `train` and every sampler run
it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import fits, multiple, sizes
from .unet import Attention, Conditioned, timestep_embedding

TIME = 256  # numbers that timestep_embedding makes of t, whatever the width


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a DiT. It has no levels: every block sees all the patches, at one width."""

    in_channels: int = 4  # of x_t, and of cond.picture where there is one
    out_channels: int = 0  # of the prediction; 0: as many as in_channels
    patch: int = 2  # side of a square of pixels that becomes one token
    width: int = 384  # D, numbers a token
    depth: int = 12  # blocks
    heads: int = 6  # of attention
    context: int = 0  # width of cond.context, the tokens of a text; 0: self-attention only
    vector: int = 0  # width V of cond.vector, added to the time; 0: none

    def __post_init__(self):
        sizes(self, in_channels=(1, 4096), out_channels=(0, 4096), patch=(1, 64))
        sizes(self, width=(4, 2**15), depth=(1, 512), heads=(1, 1024))
        sizes(self, context=(0, 2**15), vector=(0, 2**15))
        multiple("DiTConfig.width", self.width, "heads", self.heads)
        multiple("DiTConfig.width", self.width, "the parts of a position", 4)


# DiT-XL/2 for ImageNet's 1,000 classes; its 8 channels out are eps and the variance.
DIT_XL = DiTConfig(out_channels=8, width=1152, depth=28, heads=16, vector=1000)


def sine_positions(row: Tensor, column: Tensor, width: int) -> Tensor:
    """Where each patch lies, (rows * columns, width): half for its column, half for its row.

    row (rows,), column (columns,): the places i along each side, such as 0, 1, 2. Each half is
    [sin(i w_k), cos(i w_k)] with the w_k of `timestep_embedding`: a grid of any size.
    """
    sine = lambda i: timestep_embedding(i, width // 2).roll(width // 4, dims=1)  # sin first
    column, row = sine(column).expand(len(row), -1, -1), sine(row)[:, None]
    return torch.cat([column, row.expand_as(column)], dim=2).flatten(0, 1)


def pictures(x: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Tokens back in their places: (B, rows * columns, patch^2 C) -> (B, C, H, W)."""
    x = x.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, columns))  # (B, r, c, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def shift_scale(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift, adaLN: x (B, N, D), shift and scale (B, 1, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """x + gate attention(adaLN(x)), then x + gate mlp(adaLN(x)): (B, N, D) -> (B, N, D).

    A linear layer makes shift, scale and gate of both out of the time's embedding (B, D). It starts
    at 0, and so do the gates: a new block changes nothing (adaLN-zero). With a text,
    x + attention(x, context) lies between; its last layer starts at 0.
    """

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.attn = Attention(dim, dim, heads, bias=True)
        if context_dim:
            self.cross = Attention(dim, context_dim, heads, bias=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))
        self.ada = nn.Linear(dim, 6 * dim)

    def forward(self, x, emb, context=None):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(F.silu(emb))[:, None].chunk(6, -1)
        x = x + gate1 * self.attn(shift_scale(x, shift1, scale1))
        if hasattr(self, "cross"):
            x = x + self.cross(x, context)
        return x + gate2 * self.mlp(shift_scale(x, shift2, scale2))


class DiT(Conditioned):
    """eps (or v, x_0 or flow) predicted from x_t, t and the condition; `DiTConfig` gives its sizes.

    x_t (B, C, H, W), H and W multiples of the patch; t (B,), whole or fractional; cond.context
    (B, L, context), read by cross-attention in every block; cond.vector (B, vector), a class as
    one-hot say; cond.picture (B, in_channels - C, H, W) -> (B, out_channels, H, W).
    Raises ShapeError where these do not fit. A new DiT returns 0.
    """

    kind = "DiT"

    def __init__(self, config: DiTConfig):
        super().__init__()
        c = self.config = config
        self.patches = nn.Conv2d(c.in_channels, c.width, c.patch, stride=c.patch)
        self.time = nn.Sequential(nn.Linear(TIME, c.width), nn.SiLU(), nn.Linear(c.width, c.width))
        if c.vector:
            self.vector = nn.Linear(c.vector, c.width)  # zeros, "no class", leave its bias
        self.blocks = nn.ModuleList(DiTBlock(c.width, c.context, c.heads) for _ in range(c.depth))
        self.ada_out = nn.Linear(c.width, 2 * c.width)
        self.out = nn.Linear(c.width, c.patch**2 * (c.out_channels or c.in_channels))
        self._start()

    @torch.no_grad()
    def _start(self):
        """Weights as in the paper: Xavier's, 0 in what opens a block and in the last layer."""
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(layer.weight.flatten(1))
                nn.init.zeros_(layer.bias)
        for layer in (self.time[0], self.time[2], *([self.vector] if self.config.vector else [])):
            nn.init.normal_(layer.weight, std=0.02)
        crosses = [block.cross.out for block in self.blocks if self.config.context]
        for layer in (*(block.ada for block in self.blocks), *crosses, self.ada_out, self.out):
            nn.init.zeros_(layer.weight)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        c, p = self.config, self.config.patch
        whose = f"a DiT with patch = {p} takes"
        fits("x_t", x_t, ("B", "C", "H", "W"), whose, f"H, W multiples of {p}", of=(1, 1, p, p))
        x = self.patches(self._input(x_t, t, cond))  # (B, D, H/p, W/p)
        rows, columns = x.shape[2:]
        row, column = (torch.arange(n, device=x.device) for n in (rows, columns))
        where = sine_positions(row, column, c.width).to(x)
        x = x.flatten(2).transpose(1, 2) + where  # (B, N, D), N = rows * columns
        emb = self.time(timestep_embedding(t, TIME).to(x))  # (B, D)
        if c.vector:
            emb = emb + self.vector(cond.vector.to(x))
        for block in self.blocks:
            x = block(x, emb, cond.context)
        shift, scale = self.ada_out(F.silu(emb))[:, None].chunk(2, -1)
        return pictures(self.out(shift_scale(x, shift, scale)), rows, columns, p)
