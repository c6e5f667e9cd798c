"""MM-DiT, the transformer of SD 3 and of FLUX: text and picture attend to each other. Notebook 16.

SD 3 = Esser et al. 2024 (arXiv 2403.03206), figure 2: two streams of tokens, each with weights of
its own, one attention over both. FLUX.1 (Black Forest Labs 2024) goes on with blocks of one stream,
and turns queries and keys by their place instead of adding sines.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import OptionError, ShapeError, fits, multiple, sizes
from .dit import TIME, pictures, shift_scale, sine_positions
from .unet import Conditioned, timestep_embedding


@dataclass(frozen=True)
class MMDiTConfig:
    """Sizes of an MM-DiT."""

    in_channels: int = 16  # of x_t and of the prediction
    patch: int = 2  # side of a square of pixels that becomes one token
    width: int = 1536  # D, numbers a token
    double: int = 24  # blocks of two streams
    single: int = 0  # blocks of one stream, after them; without any the last text is dropped
    heads: int = 24  # of attention
    context: int = 4096  # width of cond.context, the tokens of a text
    vector: int = 2048  # width of cond.vector, the whole text in one row
    qk_norm: int = 0  # 1: queries and keys are divided by their root mean square
    guided: int = 0  # 1: the guidance scale is an input (FLUX.1 dev was distilled so)
    grid: int = 192  # patches a side of the table of sines, cut at its centre; 0: rope
    rope: tuple[int, ...] = (0,)  # numbers of a head turned by: nothing, the row, the column

    def __post_init__(self):
        sizes(self, in_channels=(1, 4096), patch=(1, 64), width=(4, 2**15), heads=(1, 1024))
        sizes(self, double=(1, 512), single=(0, 512), context=(1, 2**15), vector=(1, 2**15))
        sizes(self, qk_norm=(0, 1), guided=(0, 1), grid=(0, 4096), rope=(0, 4096))
        multiple("MMDiTConfig.width", self.width, "heads", self.heads)
        multiple("MMDiTConfig.width", self.width, "the parts of a position", 4)
        head = self.width // self.heads
        if not self.grid and (len(self.rope) != 3 or sum(self.rope) != head or head % 2):
            raise OptionError(f"MMDiTConfig.rope = {self.rope}: pass three, together {head}")


SD3_MEDIUM = MMDiTConfig()
FLUX_DEV = MMDiTConfig(
    width=3072, double=19, single=38, vector=768, qk_norm=1, guided=1, grid=0, rope=(16, 56, 56)
)


def turned(x: Tensor, angle: Tensor | None) -> Tensor:
    """Rotary positions (Su et al. 2021): pairs of x (B, heads, N, d) turned by (N, d/2)."""
    if angle is None:
        return x
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def attend(q, k, v, angle) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of heads, back in rows: (B, N, D)."""
    h = F.scaled_dot_product_attention(turned(q, angle), turned(k, angle), v)
    return h.transpose(1, 2).flatten(2)


class Heads(nn.Module):
    """Q, K and V of one stream: x (B, N, D) -> three times (B, heads, N, d)."""

    def __init__(self, dim: int, heads: int, qk_norm: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        norm = lambda: nn.RMSNorm(dim // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.norm_q, self.norm_k = norm(), norm()

    def forward(self, x):
        split = lambda z: z.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = (split(layer(x)) for layer in (self.q, self.k, self.v))
        return self.norm_q(q), self.norm_k(k), v


class Stream(nn.Module):
    """What one kind of token owns in a block of two streams: a DiT block's layers."""

    def __init__(self, dim: int, heads: int, qk_norm: int, dropped: bool = False):
        super().__init__()
        self.ada = nn.Linear(dim, (2 if dropped else 6) * dim)
        self.attn = Heads(dim, heads, qk_norm)
        if not dropped:  # else nobody reads this text any more
            self.out = nn.Linear(dim, dim)
            self.mlp = nn.Sequential(
                nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim)
            )

    def ask(self, x, emb):
        """(Q, K, V) of adaLN(x), and what `answer` needs of the embedding."""
        shift, scale, *rest = self.ada(F.silu(emb))[:, None].split(x.shape[-1], -1)
        return self.attn(shift_scale(x, shift, scale)), rest

    def answer(self, x, h, rest):
        if not rest:
            return None
        gate1, shift, scale, gate2 = rest
        x = x + gate1 * self.out(h)
        return x + gate2 * self.mlp(shift_scale(x, shift, scale))


class DoubleBlock(nn.Module):
    """Two streams, one attention: (text (B, L, D), x (B, N, D)) -> both again."""

    def __init__(self, dim: int, heads: int, qk_norm: int, dropped: bool):
        super().__init__()
        self.text, self.picture = (
            Stream(dim, heads, qk_norm, dropped),
            Stream(dim, heads, qk_norm),
        )

    def forward(self, text, x, emb, angle):
        (of_text, rest_text), (of_x, rest_x) = self.text.ask(text, emb), self.picture.ask(x, emb)
        both = [torch.cat(pair, 2) for pair in zip(of_text, of_x)]  # (B, heads, L + N, d)
        h_text, h_x = attend(*both, angle).split([text.shape[1], x.shape[1]], 1)
        return self.text.answer(text, h_text, rest_text), self.picture.answer(x, h_x, rest_x)


class SingleBlock(nn.Module):
    """One stream of text and picture, attention and mlp side by side: (B, L + N, D) -> the same."""

    def __init__(self, dim: int, heads: int, qk_norm: int):
        super().__init__()
        self.ada = nn.Linear(dim, 3 * dim)
        self.attn = Heads(dim, heads, qk_norm)
        self.mlp = nn.Linear(dim, 4 * dim)
        self.out = nn.Linear(5 * dim, dim)

    def forward(self, x, emb, angle):
        shift, scale, gate = self.ada(F.silu(emb))[:, None].chunk(3, -1)
        h = shift_scale(x, shift, scale)
        h = torch.cat([attend(*self.attn(h), angle), F.gelu(self.mlp(h), approximate="tanh")], -1)
        return x + gate * self.out(h)


class MMDiT(Conditioned):
    """The velocity eps - x_0 from x_t, t and a text; `MMDiTConfig` gives its sizes.

    x_t (B, C, H, W), (1 - u) x_0 + u eps as the originals scale it, H and W multiples of the patch;
    t (B,), 1000 u; cond.context (B, L, context); cond.vector (B, vector) -> (B, C, H, W).
    guidance: the scale that a `guided` model is told. Raises ShapeError where these do not fit.
    """

    kind = "MM-DiT"

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        c = self.config = config
        two = lambda width: nn.Sequential(
            nn.Linear(width, c.width), nn.SiLU(), nn.Linear(c.width, c.width)
        )
        self.patches = nn.Conv2d(c.in_channels, c.width, c.patch, stride=c.patch)
        self.text = nn.Linear(c.context, c.width)
        self.time, self.vector = two(TIME), two(c.vector)
        if c.guided:
            self.guidance = two(TIME)
        last = c.double - 1 if not c.single else None
        self.doubles = nn.ModuleList(
            DoubleBlock(c.width, c.heads, c.qk_norm, i == last) for i in range(c.double)
        )
        self.singles = nn.ModuleList(
            SingleBlock(c.width, c.heads, c.qk_norm) for _ in range(c.single)
        )
        self.ada_out = nn.Linear(c.width, 2 * c.width)
        self.out = nn.Linear(c.width, c.patch**2 * c.in_channels)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond(), guidance: float = 3.5) -> Tensor:
        c, p = self.config, self.config.patch
        whose = f"an MM-DiT with patch = {p} takes"
        fits("x_t", x_t, ("B", "C", "H", "W"), whose, f"H, W multiples of {p}", of=(1, 1, p, p))
        x = self.patches(self._input(x_t, t, cond))  # (B, D, H/p, W/p)
        rows, columns = x.shape[2:]
        where, angle = self.places(rows, columns, cond.context.shape[1], x.device)
        x = x.flatten(2).transpose(1, 2) + where.to(x)  # (B, N, D)
        emb = self.time(timestep_embedding(t, TIME).to(x)) + self.vector(cond.vector.to(x))
        if c.guided:
            scale = torch.full((len(x),), 1000 * guidance, device=x.device)
            emb = emb + self.guidance(timestep_embedding(scale, TIME).to(x))
        text = self.text(cond.context.to(x))  # (B, L, D)
        for block in self.doubles:
            text, x = block(text, x, emb, angle)
        if c.single:
            both = torch.cat([text, x], 1)
            for block in self.singles:
                both = block(both, emb, angle)
            x = both[:, -rows * columns :]
        shift, scale = self.ada_out(F.silu(emb))[:, None].chunk(2, -1)
        return pictures(self.out(shift_scale(x, shift, scale)), rows, columns, p)

    def places(self, rows, columns, tokens, device):
        """(what is added to the patches, what turns queries and keys): SD 3's, or FLUX's."""
        c = self.config
        row, column = (torch.arange(n, device=device) for n in (rows, columns))
        if not c.grid:
            at = torch.cartesian_prod(row, column)  # (N, 2); a text lies at 0, 0
            at = F.pad(at, (1, 0, tokens, 0)).float()  # (L + N, 3)
            w = [10000.0 ** (-torch.arange(0, d, 2, device=device) / d) for d in c.rope]
            return torch.zeros(1, device=device), torch.cat(
                [at[:, i, None] * w[i] for i in range(3)], 1
            )
        if max(rows, columns) > c.grid:
            raise ShapeError(f"x_t has {rows} x {columns} patches: at most {c.grid} a side")
        middle = lambda i: (i + (c.grid - len(i)) // 2) / 3  # a third: trained first on 64 a side
        return sine_positions(middle(row), middle(column), c.width), None
