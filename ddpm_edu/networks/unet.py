"""The denoising UNet, one class from MNIST digits to the SDXL refiner; only the config grows.

Original topology and arithmetic of Rombach et al. 2022 (latent diffusion) and Podell et al. 2023 (SDXL).
`down`, `mid` and `up` are flat lists of small lists of blocks; every output of `down` is a skip for `up`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import OptionError, ShapeError


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a UNet; tuples hold one entry a level, from the finest.

    in_channels, out_channels: of x_t and of the prediction (0: the same).  channels: width of the first level.
    mult: width of each level, times channels.  depth: transformer blocks after each ResBlock of a level (0: none).
    middle: transformer blocks in the middle.  heads: attention heads of each level.  context: width D of
    cond.context (0: self-attention only).  vector: width V of cond.vector (0: none).  blocks: ResBlocks a level.
    groups: of every GroupNorm.
    """

    in_channels: int = 4
    out_channels: int = 0
    channels: int = 320
    mult: tuple[int, ...] = (1, 2, 4, 4)
    depth: tuple[int, ...] = (1, 1, 1, 0)
    middle: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context: int = 0
    vector: int = 0
    blocks: int = 2
    groups: int = 32

    def __post_init__(self):
        levels = len(self.mult)
        for name, least in (
            ("in_channels", 1),
            ("out_channels", 0),
            ("middle", 0),
            ("context", 0),
            ("vector", 0),
            ("blocks", 1),
        ):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or not least <= size <= 2**16:
                raise OptionError(
                    f"{name} = {size!r:.40} is not a whole number from {least} to {2**16}"
                )
        if any(
            isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= 2**10 for n in self.depth
        ):
            raise OptionError(
                f"depth = {self.depth!r:.80}: whole numbers of at least 0, one a level"
            )
        for size in (self.channels, self.groups, *self.mult, *self.heads):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise OptionError(
                    f"{size!r} in {self}: channels, groups and every mult and heads are whole numbers of at least 1"
                )
        for name in ("mult", "depth", "heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists come out of JSON
            if len(getattr(self, name)) != levels or levels == 0:
                raise OptionError(
                    f"{name} = {getattr(self, name)} needs one entry a level, as mult = {self.mult} has"
                )
        for level, m in enumerate(self.mult):
            width = self.channels * m
            if width % self.groups:
                raise OptionError(
                    f"level {level} has {width} channels, not a multiple of groups = {self.groups}: change one of them"
                )
            if width % self.heads[level]:
                raise OptionError(
                    f"level {level} has {width} channels, not a multiple of heads = {self.heads[level]}: change one of them"
                )


SD15 = UNetConfig(context=768)
SD21 = UNetConfig(heads=(5, 10, 20, 20), context=1024)  # the 768-pixel model predicts v
SDXL_BASE = UNetConfig(
    mult=(1, 2, 4), depth=(0, 2, 10), middle=10, heads=(5, 10, 20), context=2048, vector=2816
)
SDXL_REFINER = UNetConfig(
    channels=384, depth=(0, 4, 4, 0), middle=4, heads=(6, 12, 24, 24), context=1280, vector=2560
)


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """[cos(t w_k), sin(t w_k)], w_k = 10000^(-k / (dim/2)), k = 0..dim/2-1: t (B,) -> (B, dim) float32.

    As in Transformers (Vaswani et al. 2017, section 3.5), but all cosines first, as the original checkpoints expect.
    """
    half = dim // 2
    w = torch.exp(
        -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    )
    angle = t.float()[:, None] * w
    return F.pad(
        torch.cat([angle.cos(), angle.sin()], dim=1), (0, dim % 2)
    )  # an odd dim ends in a 0


class ResBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x))) + time))): (B, C_in, H, W), (B, E) -> (B, C_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, emb: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-5)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(emb, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-5)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, emb, context):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(emb))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V, Q from x, K and V from `context` (x itself if None): (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(context_dim, dim, bias=False)
        self.v = nn.Linear(context_dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = (
            z.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N or L, d)
            for z in (self.q(x), self.k(context), self.v(context))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """GEGLU: out(a * GELU(b)) with a, b = proj(x), four times wider inside (Shazeer 2020); exact GELU."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 8 * dim)
        self.out = nn.Linear(4 * dim, dim)

    def forward(self, x):
        a, b = self.proj(x).chunk(2, dim=-1)
        return self.out(a * F.gelu(b))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text (where there is one), feed-forward, each added to its input."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(dim), Attention(dim, dim, heads)
        if context_dim:
            self.norm2, self.attn2 = nn.LayerNorm(dim), Attention(dim, context_dim, heads)
        self.norm3, self.ff = nn.LayerNorm(dim), FeedForward(dim)

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        if hasattr(self, "attn2"):
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Pixels as tokens: norm, project, `depth` transformer blocks, project back, add: (B, C, H, W) -> the same."""

    def __init__(self, dim: int, context_dim: int, heads: int, depth: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(TransformerBlock(dim, context_dim, heads) for _ in range(depth))
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x, emb, context):
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B, H*W, C)
        for block in self.blocks:
            h = block(h, context)
        return x + self.proj_out(h).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)


class Downsample(nn.Module):
    """Half the size by a convolution with stride 2."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x, emb, context):
        return self.conv(x)


class Upsample(nn.Module):
    """Back to `size` (H, W), twice the size: every pixel repeated, then a convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x, size):
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class UNet(nn.Module):
    """eps (or v, or x_0) predicted from x_t, t and the condition; see `UNetConfig` for its sizes.

    forward: x_t (B, in_channels, H, W); t (B,), whole or fractional; cond.context (B, L, context),
    cond.vector (B, vector). Returns (B, out_channels, H, W). Raises ShapeError where these do not fit. A model without
    classes (vector = 0) passes over a dataset's labels; one without text (context = 0) refuses a text.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        c = self.config = config
        emb = 4 * c.channels
        self.time = _two_layers(c.channels, emb)
        if c.vector:
            self.vector = _two_layers(c.vector, emb)

        def stage(c_in, c_out, level):
            blocks = [ResBlock(c_in, c_out, emb, c.groups)]
            if c.depth[level]:
                blocks.append(
                    SpatialTransformer(c_out, c.context, c.heads[level], c.depth[level], c.groups)
                )
            return nn.ModuleList(blocks)

        self.conv_in = nn.Conv2d(c.in_channels, c.channels, 3, padding=1)
        width, skips = c.channels, [c.channels]
        self.down = nn.ModuleList()
        for level, m in enumerate(c.mult):
            if level:
                self.down.append(nn.ModuleList([Downsample(width)]))
                skips.append(width)
            for _ in range(c.blocks):
                self.down.append(stage(width, c.channels * m, level))
                width = c.channels * m
                skips.append(width)

        self.mid = nn.ModuleList([ResBlock(width, width, emb, c.groups)])
        if c.middle:
            self.mid.append(SpatialTransformer(width, c.context, c.heads[-1], c.middle, c.groups))
        self.mid.append(ResBlock(width, width, emb, c.groups))

        self.up = nn.ModuleList()
        for level, m in reversed(list(enumerate(c.mult))):
            for i in range(c.blocks + 1):
                self.up.append(stage(width + skips.pop(), c.channels * m, level))
                width = c.channels * m
            if level:
                self.up[-1].append(Upsample(width))

        self.norm_out = nn.GroupNorm(c.groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, c.out_channels or c.in_channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        self._check(x_t, t, cond)
        return self.trunk(x_t, t, *cond)

    def trunk(self, x_t, t, context, vector):
        """The network itself, after `forward` has checked its inputs."""
        emb = self.time(timestep_embedding(t, self.config.channels).to(x_t.dtype))
        if self.config.vector:
            emb = emb + self.vector(vector.to(x_t.dtype))

        h = self.conv_in(x_t)
        skips = [h]
        for blocks in self.down:
            h = _run(blocks, h, emb, context)
            skips.append(h)
        h = _run(self.mid, h, emb, context)
        for blocks in self.up:
            h = torch.cat([h, skips.pop()], dim=1)
            h = _run(blocks, h, emb, context, size=skips[-1].shape[2:] if skips else None)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _check(self, x_t, t, cond):
        c, b = self.config, len(x_t)
        if x_t.ndim != 4 or x_t.shape[1] != c.in_channels:
            raise ShapeError(
                f"x_t has shape {tuple(x_t.shape)}: this UNet takes (B, {c.in_channels}, H, W)"
            )
        if t.shape != (b,):
            raise ShapeError(f"t has shape {tuple(t.shape)}: pass one time a picture, ({b},)")
        if c.vector and (cond.vector is None or cond.vector.shape != (b, c.vector)):
            raise ShapeError(
                f"cond.vector has shape {_shape(cond.vector)}: this UNet takes ({b}, {c.vector}), zeros for no condition"
            )
        if c.context and (
            cond.context is None
            or cond.context.ndim != 3
            or len(cond.context) != b
            or cond.context.shape[2] != c.context
        ):
            raise ShapeError(
                f"cond.context has shape {_shape(cond.context)}: this UNet takes ({b}, tokens, {c.context})"
            )
        if not c.context and cond.context is not None:
            raise ShapeError(
                f"cond.context has shape {_shape(cond.context)}, but this UNet reads no text (context = 0): pass none, or build it with context"
            )


class SpaceToDepth(nn.Module):
    """Run `model` on factor x factor patches folded into channels: the same picture, a factor^2 cheaper grid.

    (B, C, H, W) -> (B, C f^2, H/f, W/f) -> model -> back (Shi et al. 2016, pixel shuffle). The noise is the same
    numbers in another order, so schedule, loss and samplers do not notice.
    """

    def __init__(self, model: nn.Module, factor: int):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        f = self.factor
        if x_t.ndim != 4 or x_t.shape[2] % f or x_t.shape[3] % f:
            raise ShapeError(
                f"x_t has shape {tuple(x_t.shape)}: SpaceToDepth({f}) takes (B, C, H, W), H and W multiples of {f}"
            )
        return F.pixel_shuffle(self.model(F.pixel_unshuffle(x_t, f), t, cond), f)


def _two_layers(width: int, emb: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))


def _run(blocks, h, emb, context, size=None):
    for (
        block
    ) in blocks:  # an odd size halves and doubles to another one: the skip it must fit says which
        h = block(h, size) if isinstance(block, Upsample) else block(h, emb, context)
    return h


def _shape(x):
    return None if x is None else tuple(x.shape)
